package load

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"kekd/e2e/internal/harness"
)

// TestOverload: 10,000 cold requests that come at once while the HSM is slow are
// answered or shed, Status goes on as if nothing were, and a second after the HSM
// is back so is kekd.
func TestOverload(t *testing.T) {
	for _, tc := range []struct {
		name, fault string
		// stuck is how long the HSM keeps calls that it has taken when it is well
		// again: nothing but the worker's end frees a session that hangs.
		stuck time.Duration
	}{
		{"slow", "C_Decrypt ms=1000", time.Second},
		{"hung", "C_Decrypt hang", 2 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) { overload(t, tc.fault, tc.stuck) })
	}
}

func overload(t *testing.T, fault string, stuck time.Duration) {
	const (
		requests = 10_000
		clients  = 8
	)
	r := startRig(t, harness.KekdOptions{CallTimeout: 2 * time.Second})
	values := many(requests, r.kek.seal)
	connections := make([]client, clients)
	for i := range connections {
		connections[i] = r.connect(t)
		must(t, connections[i].opens(t.Context(), values[0]))
	}
	before, err := r.usage(t.Context())
	must(t, err)
	own, shared := r.watchStatus(t, r.connect(t), 20*time.Millisecond), r.watchStatus(t, connections[0], 20*time.Millisecond)

	r.token.Faults(t, fault)
	var y, warm tally
	began := time.Now()
	ctx, flooded := context.WithCancel(t.Context())
	go func() {
		defer flooded()
		workers(requests, func(i int) {
			asked := time.Now()
			y.note(asked, connections[i%clients].opens(t.Context(), values[i]), transient)
		})
	}()
	// Beside them somebody whose seed is warm, who may be shed but is told so at once.
	warmClient := r.connect(t)
	peak := before
	for ctx.Err() == nil {
		asked := time.Now()
		warm.note(asked, warmClient.opens(t.Context(), values[0]), transient)
		u, err := r.usage(t.Context())
		must(t, err)
		peak.parentRSS, peak.goroutines = max(peak.parentRSS, u.parentRSS), max(peak.goroutines, u.goroutines)
		peak.threads = max(peak.threads, u.threads)
		time.Sleep(10 * time.Millisecond)
	}
	took := time.Since(began)

	r.token.Faults(t)
	recovered := harness.Eventually(t, 20*time.Second, "a cold value opens", func(ctx context.Context) error {
		return warmClient.opens(ctx, r.kek.seal())
	})
	a, b := own(), shared()
	y.check(t, "Decrypt")
	t.Logf("%d requests were answered within %s: %s; 99%% within %s", requests, ms(took), &y, ms(y.quantile(0.99)))
	t.Logf("Status on a connection of its own: 99%% within %s, at most %s; on one that 1,250 requests wait on: %s, %s",
		ms(a.quantile(0.99)), ms(a.quantile(1)), ms(b.quantile(0.99)), ms(b.quantile(1)))
	t.Logf("RSS %.0f MiB before, %.0f MiB at most; goroutines %.0f, %.0f; threads %.0f, %.0f",
		before.parentRSS/mib, peak.parentRSS/mib, before.goroutines, peak.goroutines, before.threads, peak.threads)
	t.Logf("warm requests beside them: %s; 99%% within %s", &warm, ms(warm.quantile(0.99)))
	t.Logf("%s after the HSM was well again a cold value opened (it keeps calls for %s)", ms(recovered), stuck)

	if shed := y.count(codes.ResourceExhausted) + y.count(codes.Unavailable); shed < requests/2 {
		t.Errorf("%d requests were shed, want most of %d", shed, requests)
	}
	if y.total() != requests {
		t.Errorf("%d answers to %d requests", y.total(), requests)
	}
	if grown := peak.parentRSS - before.parentRSS; grown > 100*mib {
		t.Errorf("10,000 requests take %.0f MiB, want less than 100", grown/mib)
	}
	if limit := 2*time.Second + stuck; recovered > limit {
		t.Errorf("recovered %s after the HSM, want less than %s", recovered, limit)
	}
	harness.Eventually(t, 10*time.Second, "what the flood took is given back", func(ctx context.Context) error {
		u, err := r.usage(ctx)
		if err == nil && u.goroutines > before.goroutines+20 {
			err = fmt.Errorf("%.0f goroutines, %.0f before", u.goroutines, before.goroutines)
		}
		return err
	})
}

const mib = 1 << 20
