package main

import (
	"github.com/spf13/cobra"

	"kekd/internal/kek"
)

func newKeyRestore(a *app) *cobra.Command {
	return newKeyChange(a, "restore", "Take back that a key is scheduled for destruction",
		`Put a key into use again that kekctl key destroy has scheduled for destruction. It
works until the key is purged.`, false, func() (keyChange, error) {
			return enableChange("restore", kek.Scheduled, "enable"), nil
		})
}
