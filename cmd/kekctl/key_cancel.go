package main

import (
	"time"

	"github.com/spf13/cobra"

	"kekd/internal/admin/keychange"
)

// cancelMargin is how long before its activation, beside keyRing.refresh, a key can
// be cancelled at the latest.
const cancelMargin = 5 * time.Second

func newKeyCancel(a *app) *cobra.Command {
	return newGuardedChange(a, keychange.Cancel, "Remove a pending key, under which nothing was encrypted yet",
		`Remove a key from the token whose activation is ahead.

It is refused unless every node, every API server and etcd agree that nothing was
encrypted under the key, and every node's clock is still well before the activation.
Whoever cannot be asked counts as using the key.`, noDays)
}

// noDays is for changes that schedule nothing.
func noDays() (int, error) { return 0, nil }
