//go:build e2eclock

package main

import (
	"fmt"
	"os"
	"strings"
	"time"
	"unsafe"
)

// now is the clock of all parts, wrong by KEKD_E2E_CLOCK_OFFSET, or by what the
// file says that KEKD_E2E_CLOCK_FILE names, at any time. Only the binary that
// end-to-end tests use for clocks that differ or jump is built so.
func now() time.Time {
	file := os.Getenv("KEKD_E2E_CLOCK_FILE")
	if file == "" {
		return time.Now().Add(parse("KEKD_E2E_CLOCK_OFFSET", os.Getenv("KEKD_E2E_CLOCK_OFFSET")))
	}
	text, err := os.ReadFile(file) //nolint:gosec // G304: a file of the test
	if err != nil {
		fail(err)
	}
	return jump(time.Now(), parse(file, strings.TrimSpace(string(text))))
}

// jump sets the wall clock of t and leaves its monotonic clock alone, as a step of
// the system's clock does. Package time offers no way, so this is done to its inside:
// one bit, 33 bits of seconds, 30 bits of nanoseconds.
func jump(t time.Time, by time.Duration) time.Time {
	by = by.Truncate(time.Second)
	stepped := t
	wall := (*uint64)(unsafe.Pointer(&stepped)) //nolint:gosec // G103: see above
	*wall += uint64(by/time.Second) << 30       //nolint:gosec // G115: wraps as it should
	if want := t.Round(0).Add(by); !stepped.Round(0).Equal(want) || stepped.Sub(t) != 0 {
		fail(fmt.Errorf("package time has changed inside: got %s, want %s", stepped, want))
	}
	return stepped
}

func parse(what, text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		fail(fmt.Errorf("%s: %w", what, err))
	}
	return d
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "the clock of the test:", err)
	os.Exit(2)
}
