package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"kekd/internal/kek"
)

// cancelMargin is how long before its activation, beside keyRing.refresh, a key can
// be cancelled at the latest: a node whose clock is ahead may use it already.
const cancelMargin = 5 * time.Second

func newKeyCancel(a *app) *cobra.Command {
	return newKeyChange(a, "cancel", "Remove a pending key, which nothing was encrypted under yet",
		`Destroy a key whose activation is ahead. No node has encrypted anything under it,
so nothing is lost. Close to the activation this is refused, since the clock of a
node may be ahead.`, false, func() (keyChange, error) { return cancelChange(), nil })
}

func cancelChange() keyChange {
	return keyChange{
		verb: "cancel",
		allowed: func(s *session, k kek.Info, now time.Time) string {
			left := k.Activation.Sub(now)
			switch margin := s.cfg.KeyRing.Refresh + cancelMargin; {
			case k.State != kek.Pending:
				return fmt.Sprintf("key %s is %s; only a pending key can be cancelled", k.ID, k.State)
			case left < margin:
				return fmt.Sprintf("key %s activates in %s, and a node may encrypt under it already; let it activate and rotate again with kekctl key rotate", k.ID, left.Round(time.Second))
			}
			return ""
		},
		plan: func(k kek.Info) string {
			return fmt.Sprintf("Removes the pending key %s, which would become the primary at %s.", k.ID, k.Activation.Format(time.RFC3339))
		},
		do: removeKey,
		done: func(_ *session, k kek.Info) string {
			return fmt.Sprintf("Key %s is gone; the primary stays what it is.", k.ID)
		},
	}
}

// removeKey destroys a key on the token. What it returns is the key as it was.
func removeKey(ctx context.Context, s *session, k kek.Info) (kek.Info, error) {
	return k, s.token.Destroy(ctx, k)
}
