//go:build e2eclock

package main

import (
	"fmt"
	"os"
	"time"
)

// now is the clock of all parts, wrong by KEKD_E2E_CLOCK_OFFSET. Only the binary
// that end-to-end tests use for nodes whose clocks differ is built so.
func now() time.Time { return time.Now().Add(clockOffset()) }

func clockOffset() time.Duration {
	d, err := time.ParseDuration(os.Getenv("KEKD_E2E_CLOCK_OFFSET"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "KEKD_E2E_CLOCK_OFFSET:", err)
		os.Exit(2)
	}
	return d
}
