package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kekd/hsm"
	"kekd/internal/kek"
)

// maxDestroyDelay is the longest time to a destruction: longer ones are slips.
const maxDestroyDelay = 3650

func newKeyDestroy(a *app) *cobra.Command {
	var after string
	c := newKeyChange(a, "destroy", "Schedule a key for destruction, restorable until it is purged",
		`Mark a key on the token as scheduled for destruction, and take it out of use. The
key stays on the token: kekctl key restore brings it back, and kekctl key purge
ends it, but not before the date.

It is refused while etcd holds objects under the key, and when etcd cannot be
asked. Mind the backups of etcd: one that was made while objects stood under the
key needs it, so let --after be longer than you keep backups.`, true, func() (keyChange, error) {
			days, err := parseDays(after)
			return destroyChange(days), err
		})
	c.Flags().StringVar(&after, "after", "", "when the key may be purged, in days from today (UTC), such as 30d; required")
	return c
}

// parseDays reads a number of days, such as 30d.
func parseDays(s string) (int, error) {
	n, err := strconv.Atoi(strings.TrimSuffix(s, "d"))
	if err != nil || !strings.HasSuffix(s, "d") || n < 0 || n > maxDestroyDelay {
		return 0, codeError{exitUsage, fmt.Sprintf("--after: must be a number of days from 0d to %dd, such as 30d, got %q", maxDestroyDelay, s)}
	}
	return n, nil
}

func destroyChange(days int) keyChange {
	// Whole days: the date stands in the key's label.
	day := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, days)
	return keyChange{
		verb: "destroy",
		allowed: func(_ *session, k kek.Info, _ time.Time) string {
			switch k.State {
			case kek.Retired, kek.Disabled:
				return ""
			case kek.Scheduled:
				return fmt.Sprintf("key %s is scheduled already, for %s; kekctl key restore takes that back", k.ID, k.DestroyAfter.Format(time.DateOnly))
			case kek.Pending:
				return fmt.Sprintf("key %s is pending; use kekctl key cancel %s", k.ID, k.ID)
			}
			return fmt.Sprintf("key %s is the primary and cannot be destroyed; rotate first with kekctl rotate", k.ID)
		},
		guarded: true,
		plan: func(k kek.Info) string {
			return fmt.Sprintf("Takes key %s out of use, to be purged after %s. Until then kekctl key restore brings it back.", k.KeyID(), day.Format(time.DateOnly))
		},
		do: func(ctx context.Context, s *session, k kek.Info) (kek.Info, error) {
			return s.token.SetUse(ctx, k, hsm.DestroyAfter(day))
		},
		done: func(s *session, k kek.Info) string {
			return fmt.Sprintf("Key %s is out of use within %s. Nothing is destroyed yet: from %s on, kekctl key purge %s does.", k.ID, s.cfg.KeyRing.Refresh, day.Format(time.DateOnly), k.ID)
		},
	}
}
