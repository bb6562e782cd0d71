package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"kekd/hsm"
	"kekd/internal/kek"
)

func newKeyDisable(a *app) *cobra.Command {
	return newKeyChange(a, "disable", "Take a key out of use, until it is enabled again",
		`Mark a key as disabled on the token. Every kekd wipes the key's seeds and refuses
to decrypt with it within one keyRing.refresh.

It is refused while etcd holds objects under the key, and when etcd cannot be
asked, since nobody could read those objects. The primary cannot be disabled: use
kekctl revoke.`, true, func() (keyChange, error) { return disableChange(), nil })
}

func disableChange() keyChange {
	return keyChange{
		verb: "disable",
		allowed: func(_ *session, k kek.Info, _ time.Time) string {
			switch k.State {
			case kek.Retired:
				return ""
			case kek.Primary:
				return fmt.Sprintf("key %s is the primary: everything that is written needs it; rotate first with kekctl rotate, or, if it must not be used any more, kekctl revoke %s", k.ID, k.ID)
			case kek.Pending:
				return fmt.Sprintf("key %s is pending: disabled, it would stop all writes at its activation; use kekctl key cancel %s", k.ID, k.ID)
			}
			return fmt.Sprintf("key %s is %s already", k.ID, k.State)
		},
		guarded: true,
		plan: func(k kek.Info) string {
			return fmt.Sprintf("Disables key %s: no kekd decrypts with it any more. kekctl key enable takes this back.", k.KeyID())
		},
		do: func(ctx context.Context, s *session, k kek.Info) (kek.Info, error) {
			return s.token.SetUse(ctx, k, hsm.Disabled())
		},
		done: func(s *session, k kek.Info) string {
			return fmt.Sprintf("Key %s is disabled; every kekd refuses it within %s. A kube-apiserver that runs keeps what it has unwrapped until it is restarted.", k.ID, s.cfg.KeyRing.Refresh)
		},
	}
}
