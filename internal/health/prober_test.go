package health

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

const interval = 10 * time.Second

// run starts a Prober in a bubble, with a Monitor on the bubble's clock, and ends
// it when the test does.
func run(t *testing.T, probe func(ctx context.Context) error) (*Prober, *Monitor) {
	m := New(Config{
		Grace: grace, StaleAfter: stale, Clock: time.Now, Logger: zap.NewNop(),
		Current: func() (string, bool) { return "k", true },
	})
	p := NewProber(ProberConfig{Interval: interval, Timeout: 5 * time.Second, Probe: probe, Monitor: m})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return p, m
}

func TestProberInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var starts []time.Time
		run(t, func(context.Context) error { starts = append(starts, time.Now()); return nil })
		began := time.Now()
		time.Sleep(100 * interval)
		synctest.Wait()
		if !starts[0].Equal(began) {
			t.Errorf("the first probe came after %v, want at once", starts[0].Sub(began))
		}
		equal := true
		for i := 1; i < len(starts); i++ {
			gap := starts[i].Sub(starts[i-1])
			if gap < interval*9/10 || gap > interval*11/10 {
				t.Errorf("gap %d = %v, want %v give or take a tenth", i, gap, interval)
			}
			equal = equal && gap == interval
		}
		if len(starts) < 90 || equal {
			t.Errorf("%d probes in 100 intervals, all gaps equal: %v", len(starts), equal)
		}
	})
}

func TestProberReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var failing atomic.Bool
		_, m := run(t, func(context.Context) error {
			if failing.Load() {
				return errDown
			}
			return nil
		})
		m.Published("k")
		expect := func(want State) {
			t.Helper()
			time.Sleep(2 * interval)
			synctest.Wait()
			if got := m.Report().State; got != want {
				t.Errorf("state = %s, want %s", got, want)
			}
		}
		expect(Ready)
		failing.Store(true)
		expect(Coasting)
		failing.Store(false)
		expect(Ready)
	})
}

func TestProberDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, m := run(t, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		m.Published("k")
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if got := m.Report(); got.State != Coasting || got.Reason != "the HSM did not answer in time" {
			t.Errorf("Report = %s, %q, want coasting for a timeout", got.State, got.Reason)
		}
	})
}

func TestProberKick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var starts []time.Time
		p, _ := run(t, func(context.Context) error { starts = append(starts, time.Now()); return nil })
		time.Sleep(3 * time.Second)
		kicked := time.Now()
		p.Kick()
		synctest.Wait()
		if len(starts) != 2 || !starts[1].Equal(kicked) {
			t.Fatalf("a kick long after the last probe: probes at %v, want one at once", starts)
		}
		// A storm of kicks is one probe a second.
		for range 30 {
			for range 100 {
				p.Kick()
			}
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		for i := 2; i < len(starts); i++ {
			if gap := starts[i].Sub(starts[i-1]); gap != kickGap {
				t.Errorf("gap %d under kicks = %v, want %v", i, gap, kickGap)
			}
		}
		if n := len(starts); n < 4 || n > 5 {
			t.Errorf("%d probes, want a second one and then one a second for 3 seconds", n)
		}
	})
}

// A probe that kekd's own stop cut short says nothing about the HSM.
func TestProberStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Config{
			Grace: grace, StaleAfter: stale, Clock: time.Now, Logger: zap.NewNop(),
			Current: func() (string, bool) { return "k", true },
		})
		m.Published("k")
		p := NewProber(ProberConfig{
			Interval: interval, Timeout: 5 * time.Second, Monitor: m,
			Probe: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		p.Run(ctx)
		if got := m.Report().State; got != Ready {
			t.Errorf("state after the stop = %s, want ready", got)
		}
	})
}
