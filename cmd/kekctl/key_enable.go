package main

import (
	"github.com/spf13/cobra"

	"kekd/internal/admin/keychange"
)

func newKeyEnable(a *app) *cobra.Command {
	return newKeyChange(a, keychange.Enable, "Put a disabled key into use again",
		`Take a disabled key back into the ring. It decrypts again; it encrypts only if it
is the newest key that is activated.`)
}
