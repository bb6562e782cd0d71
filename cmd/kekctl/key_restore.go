package main

import (
	"github.com/spf13/cobra"

	"kekd/internal/admin/keychange"
)

func newKeyRestore(a *app) *cobra.Command {
	return newKeyChange(a, keychange.Restore, "Cancel a scheduled destruction",
		`Put a key into use again that kekctl key destroy has scheduled for destruction. It
works until the key is purged.`)
}
