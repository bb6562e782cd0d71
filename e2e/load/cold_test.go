package load

import (
	"context"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// TestColdStart: two apiservers that start at once ask for 10,000 seeds that kekd
// has not met, in the same order. That takes as long as the HSM needs and not
// longer, with one unwrap a seed.
func TestColdStart(t *testing.T) {
	const (
		seeds    = 10_000
		sessions = 8
		latency  = 5 * time.Millisecond
		callers  = 64 // of each apiserver
	)
	r := startRig(t, harness.KekdOptions{
		Sessions: sessions, CacheSize: seeds, ProbeInterval: time.Minute, Refresh: 10 * time.Second,
	})
	values := many(seeds, r.kek.seal)
	r.token.Faults(t, "C_Decrypt ms=5")
	stopStatus := r.watchStatus(t, r.connect(t), 50*time.Millisecond)
	stopSessions := r.watchSessions(t)
	calls, before := r.token.Calls(t)["C_Decrypt"], r.Metrics(t)

	var y tally
	began := time.Now()
	clients := []client{r.connect(t), r.connect(t)}
	workers(len(clients)*callers, func(i int) {
		c, first := clients[i%len(clients)], i/len(clients)
		for _, v := range every(values, first, callers) {
			for { // as kube-apiserver does
				asked := time.Now()
				err := c.opens(t.Context(), v)
				if !y.note(asked, err, transient) || err == nil {
					break
				}
				time.Sleep(5 * time.Millisecond)
			}
		}
	})
	took := time.Since(began)
	busy := stopSessions()
	ideal := seeds * latency / sessions
	after := r.Metrics(t)
	calls = r.token.Calls(t)["C_Decrypt"] - calls
	status := stopStatus()
	y.check(t, "Decrypt")

	ops := func(op string) float64 {
		labels := map[string]string{"op": op}
		return after.Sum("kekd_hsm_operations_total", labels) - before.Sum("kekd_hsm_operations_total", labels)
	}
	t.Logf("%d seeds in %s, the HSM alone needs %s: %.0f%% of its speed", seeds, ms(took), ideal, 100*ideal.Seconds()/took.Seconds())
	t.Logf("%.1f of %d sessions were in use at a time", busy, sessions)
	t.Logf("%d C_Decrypt: %.0f unwraps and %.0f of probes and proofs; requests %s; Status p99 %s",
		calls, ops("unwrap"), ops("probe")+ops("prove"), &y, ms(status.quantile(0.99)))
	if got := ops("unwrap"); got != seeds {
		t.Errorf("%.0f unwraps of %d seeds", got, seeds)
	}
	if most := seeds + uint64(ops("probe")+4*ops("prove")); calls < seeds || calls > most {
		t.Errorf("%d calls of C_Decrypt, want %d to %d", calls, seeds, most)
	}
	if busy < 0.75*sessions {
		t.Errorf("%.1f of %d sessions were in use at a time, want them to be saturated", busy, sessions)
	}
	// A busy machine sleeps longer than it was told to, in the module too.
	if took > 6*ideal {
		t.Errorf("it took %s, want less than six times the HSM's own %s", took, ideal)
	}
	if got := after.Sum("kekd_seed_cache_entries", nil); got != seeds {
		t.Errorf("%.0f seeds are cached, want %d", got, seeds)
	}
}

// watchSessions looks at how many sessions are in use, until the returned function is
// called, which gives the mean.
func (r *rig) watchSessions(t *testing.T) (stop func() float64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var sum, n float64
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for err == nil {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			var used float64
			if used, err = r.gauge(t.Context(), `kekd_hsm_sessions{state="in_use"}`); err == nil {
				sum, n = sum+used, n+1
			}
		}
	}()
	return func() float64 {
		t.Helper()
		cancel()
		<-done
		must(t, err)
		return sum / max(n, 1)
	}
}

// every returns the elements of a slice from first on, step apart.
func every[T any](s []T, first, step int) []T {
	var out []T
	for i := first; i < len(s); i += step {
		out = append(out, s[i])
	}
	return out
}
