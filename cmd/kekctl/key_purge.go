package main

import (
	"github.com/spf13/cobra"

	"kekd/internal/admin/keychange"
)

func newKeyPurge(a *app) *cobra.Command {
	return newGuardedChange(a, keychange.Purge, "Remove a key for good whose date has come",
		`Remove a key from the token that kekctl key destroy has scheduled, once its date has
come. Nothing brings it back: what was encrypted under it, in etcd or in a backup,
can never be read again.

It is refused unless every node, every API server and etcd agree that the key is out
of use. Whoever cannot be asked counts as using the key.`, noDays)
}
