package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"kekd/hsm"
	"kekd/internal/kek"
)

func newKeyEnable(a *app) *cobra.Command {
	return newKeyChange(a, "enable", "Put a disabled key into use again",
		`Take a disabled key back into the ring. It decrypts again; it encrypts only if it
is the newest key that is activated.`, false, func() (keyChange, error) {
			return enableChange("enable", kek.Disabled, "restore"), nil
		})
}

// enableChange makes a key usable that is out of use in this state; the other
// command is for the other state.
func enableChange(verb string, from kek.State, other string) keyChange {
	return keyChange{
		verb: verb,
		allowed: func(_ *session, k kek.Info, _ time.Time) string {
			switch k.State {
			case from:
				return ""
			case kek.Disabled, kek.Scheduled:
				return fmt.Sprintf("key %s is %s; use kekctl key %s %s", k.ID, k.State, other, k.ID)
			}
			return fmt.Sprintf("key %s is in use already: it is %s", k.ID, k.State)
		},
		plan: func(k kek.Info) string {
			return fmt.Sprintf("Makes key %s usable again: every kekd decrypts with it.", k.KeyID())
		},
		do: func(ctx context.Context, s *session, k kek.Info) (kek.Info, error) {
			return s.token.SetUse(ctx, k, hsm.Enabled())
		},
		done: func(s *session, k kek.Info) string {
			return fmt.Sprintf("Key %s is usable again within %s.", k.ID, s.cfg.KeyRing.Refresh)
		},
	}
}
