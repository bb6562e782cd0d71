package tracing

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// A collector that goes away, hangs and comes back costs no request anything, and
// holds up no stop.
func TestCollectorAway(t *testing.T) {
	r := newReceiver(t)
	k := harness.NewKekd(t, harness.NewToken(t), harness.KekdOptions{Tracing: fmt.Sprintf("{endpoint: %q}", "http://"+r.address), LogLevel: "info"})
	k.StartReady(t)
	client := k.KMS(t)
	sealed, err := client.Encrypt(t.Context(), []byte("plaintext"))
	if err != nil {
		t.Fatal(err)
	}
	// Far above what a request takes, even here, and below what a collector is given.
	const slow = 2 * time.Second
	work := func(what string) {
		t.Helper()
		var worst time.Duration
		for range 3000 {
			begun := time.Now()
			if _, err := client.Decrypt(t.Context(), sealed); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			worst = max(worst, time.Since(begun))
		}
		t.Logf("%s: the slowest of 3000 Decrypts took %s", what, worst)
		if worst > slow {
			t.Errorf("%s: a Decrypt took %s", what, worst)
		}
	}
	spans := func(result string) float64 {
		return k.Metrics(t).Sum("kekd_trace_spans_total", map[string]string{"result": result})
	}
	rises := func(result string) {
		t.Helper()
		before := spans(result)
		harness.Eventually(t, 30*time.Second, "spans are "+result, func(ctx context.Context) error {
			if spans(result) > before {
				return nil
			}
			_, err := client.Decrypt(ctx, sealed)
			return errors.Join(errors.New("none more"), err)
		})
	}

	work("the collector is there")
	rises("exported")
	r.stop()
	work("the collector is away")
	rises("failed")
	r.start(t)
	rises("exported")
	r.setHang(true)
	work("the collector hangs")
	work("the collector hangs still")
	rises("failed")
	if n := spans("dropped"); n == 0 {
		t.Error("no span was dropped: more than there is room for were waiting")
	}
	r.setHang(false)
	rises("exported")
	if n := r.count(t); n == 0 {
		t.Error("no span came")
	}

	r.setHang(true)
	work("before the stop")
	if took := k.Stop(t); took > 15*time.Second {
		t.Errorf("the stop took %s", took)
	}
}

// Without tracing.endpoint nothing is sent, whatever the environment says.
func TestOff(t *testing.T) {
	r := newReceiver(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+r.address)
	t.Setenv("OTEL_TRACES_EXPORTER", "otlp")
	k := harness.NewKekd(t, harness.NewToken(t), harness.KekdOptions{})
	k.StartReady(t)
	if _, err := k.KMS(t).Encrypt(t.Context(), []byte("plaintext")); err != nil {
		t.Fatal(err)
	}
	k.Stop(t)
	if n := r.count(t); n != 0 {
		t.Errorf("%d spans came", n)
	}
}
