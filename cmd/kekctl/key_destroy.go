package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"kekd/internal/admin/keychange"
)

// maxDestroyDelay is the longest time to a destruction: longer ones are slips.
const maxDestroyDelay = 3650

func newKeyDestroy(a *app) *cobra.Command {
	var after string
	c := newGuardedChange(a, keychange.Destroy, "Schedule a key for destruction, restorable until it is purged",
		`Mark a key on the token as scheduled for destruction, and take it out of use. The
key stays on the token: kekctl key restore brings it back, and kekctl key purge
removes it for good, but not before the date.

It is refused unless every node, every API server and etcd agree that the key is out
of use, and has been for longer than any of them can lag (somewhat more than a minute
after a rotation; --wait waits for that). Whoever cannot be asked counts as using the
key. Mind the backups of etcd: one that was made while objects were encrypted under
the key needs it, so let --after be longer than you keep backups.`, func() (int, error) { return parseDays(after) })
	c.Flags().StringVar(&after, "after", "", "for how many days the key stays restorable, such as 30d, counted to the end of the day (UTC); at least keyRing.policy.minDestroyDelay; required")
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
