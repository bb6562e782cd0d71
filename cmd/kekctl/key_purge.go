package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"kekd/internal/kek"
)

func newKeyPurge(a *app) *cobra.Command {
	return newKeyChange(a, "purge", "Destroy a key for good whose date has come",
		`Destroy a key on the token that kekctl key destroy has scheduled, once its date has
come. Nothing brings it back: what was encrypted under it, in etcd or in a backup,
can never be read again.

It is refused while etcd holds objects under the key, and when etcd cannot be
asked.`, true, func() (keyChange, error) { return purgeChange(), nil })
}

func purgeChange() keyChange {
	return keyChange{
		verb: "purge",
		allowed: func(_ *session, k kek.Info, now time.Time) string {
			switch {
			case k.State != kek.Scheduled:
				return fmt.Sprintf("key %s is %s; only a key that is scheduled for destruction can be purged: kekctl key destroy %s --after 30d", k.ID, k.State, k.ID)
			case now.Before(k.DestroyAfter):
				return fmt.Sprintf("key %s must not be purged before %s (UTC)", k.ID, k.DestroyAfter.Format(time.DateOnly))
			}
			return ""
		},
		guarded: true,
		plan: func(k kek.Info) string {
			return fmt.Sprintf("DESTROYS key %s for good. Backups of etcd that need it become worthless.", k.KeyID())
		},
		do: removeKey,
		done: func(_ *session, k kek.Info) string {
			return fmt.Sprintf("Key %s is destroyed.", k.ID)
		},
	}
}
