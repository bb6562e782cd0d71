package load

import (
	"context"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// TestDamagedSeedsStarveNobody: SoftHSM 2.6 answers a damaged seed as it would
// answer when it is broken, so that kekd must look twice. A thousand of them,
// asked for by many at once, do not keep a good one waiting.
func TestDamagedSeedsStarveNobody(t *testing.T) {
	const (
		damaged = 1000
		callers = 48
		good    = 50
	)
	r := startRig(t, harness.KekdOptions{Sessions: 4})
	bad, cold := many(damaged, r.kek.damaged), many(good, r.kek.seal)
	stopStatus := r.watchStatus(t, r.connect(t), 20*time.Millisecond)
	r.token.Faults(t, "C_Decrypt ms=5")
	worker := r.WorkerPID(t)

	var y, z tally
	began := time.Now()
	c := r.connect(t)
	ctx, done := context.WithCancel(t.Context())
	go func() {
		defer done()
		workers(callers, func(i int) {
			for _, v := range every(bad, i, callers) {
				for {
					asked := time.Now()
					err := c.opens(t.Context(), v)
					y.note(asked, err, func(err error) bool { return refused(err) || transient(err) })
					if !transient(err) {
						break
					}
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
	}()
	other := r.connect(t)
	for _, v := range cold {
		if ctx.Err() != nil {
			break
		}
		asked := time.Now()
		z.note(asked, other.opens(t.Context(), v), never)
		time.Sleep(10 * time.Millisecond)
	}
	<-ctx.Done()
	took := time.Since(began)
	status := stopStatus()
	t.Logf("%d damaged seeds took %s: %s", damaged, ms(took), &y)
	t.Logf("%d good ones beside them: %s; half within %s, 99%% within %s; Status 99%% within %s",
		z.total(), &z, ms(z.quantile(0.5)), ms(z.quantile(0.99)), ms(status.quantile(0.99)))
	y.check(t, "damaged")
	z.check(t, "good")
	if got := r.WorkerPID(t); got != worker {
		t.Errorf("worker %d after %d: damaged seeds cost it its life", got, worker)
	}
	if took > 20*time.Second {
		t.Errorf("%d damaged seeds took %s, want less than 20s", damaged, took)
	}
	if p99 := z.quantile(0.99); p99 > time.Second {
		t.Errorf("the 99th percentile of good seeds is %s, want less than 1s", p99)
	}
}
