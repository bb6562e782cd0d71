package main

import (
	"github.com/spf13/cobra"

	"kekd/internal/admin/keychange"
)

func newKeyDisable(a *app) *cobra.Command {
	return newGuardedChange(a, keychange.Disable, "Take a key out of use, until it is enabled again",
		`Mark a key as disabled on the token. Every kekd wipes the key's seeds and refuses
to decrypt with it within one keyRing.refresh.

It is refused unless every node, every API server and etcd agree that the key is out
of use, and has been for longer than any of them can lag (somewhat more than a minute
after a rotation; --wait waits for that). Whoever cannot be asked counts as using the
key. The primary cannot be disabled: use kekctl revoke.`, noDays)
}
