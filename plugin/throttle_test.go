package plugin

import (
	"testing"
	"time"
)

func TestThrottle(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	th := newThrottle(func() time.Time { return now })
	a, b := throttleKind{"Decrypt", "corrupt"}, throttleKind{"Decrypt", "busy"}
	burst := func(kind throttleKind, n int) (lines int, dropped uint64) {
		for range n {
			ok, d := th.allow(kind)
			if ok {
				lines++
			}
			dropped += d
		}
		return lines, dropped
	}
	steps := []struct {
		name        string
		wait        time.Duration
		kind        throttleKind
		n           int
		wantLines   int
		wantDropped uint64
	}{
		{"first lines pass", 0, a, throttleLines, throttleLines, 0},
		{"then none", time.Second, a, 90, 0, 0},
		{"another kind is not affected", 0, b, 3, 3, 0},
		{"not before the window ends", throttleWindow - time.Second - 1, a, 10, 0, 0},
		{"the next window tells how many were left out", 1, a, 2, 2, 100},
		{"once", 0, a, 1, 1, 0},
		{"a long silence saves nothing up", time.Hour, a, 1000, throttleLines, 0},
	}
	for _, s := range steps {
		now = now.Add(s.wait)
		if lines, dropped := burst(s.kind, s.n); lines != s.wantLines || dropped != s.wantDropped {
			t.Errorf("%s: %d lines, %d left out; want %d and %d", s.name, lines, dropped, s.wantLines, s.wantDropped)
		}
	}
}
