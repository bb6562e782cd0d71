package main

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestProgressLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		done, total int64
		took        time.Duration
		want        string
	}{
		{0, 0, 0, "inventory   0% [....................] 0/1"},
		{0, 100, time.Minute, "inventory   0% [....................] 0/100"},
		{50, 100, time.Second / 2, "inventory  50% [##########..........] 50/100"},
		{5000, 100_000, 10 * time.Second, "inventory   5% [#...................] 5000/100000 500/s 3m10s left"},
		{100, 100, 2 * time.Second, "inventory 100% [####################] 100/100 50/s 0s left"},
		{101, 100, 2 * time.Second, "inventory 100% [####################] 101/101 50/s 0s left"},
		{9_999_999, 10_000_000, 24 * time.Hour, "inventory  99% [###################.] 9999999/10000000 116/s 0s left"},
	} {
		got := progressLine("inventory", c.done, c.total, c.took)
		if got != c.want || len(got) >= 80 {
			t.Errorf("%d of %d: got %q, want %q", c.done, c.total, got, c.want)
		}
	}
}

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		p := &progress{w: &out, what: "x", begun: time.Now()}
		for i := range int64(100) {
			p.show(i, 100)
			time.Sleep(10 * time.Millisecond) // of the bubble's clock
		}
		p.clear()
		if n := strings.Count(out.String(), "100"); n != 10 {
			t.Errorf("drew %d lines in a second, want 10: %q", n, out.String())
		}
		if !strings.HasSuffix(out.String(), clearLine) {
			t.Errorf("the line is not cleared: %q", out.String())
		}
	})
	var none *progress
	none.show(1, 2)
	none.clear()
}
