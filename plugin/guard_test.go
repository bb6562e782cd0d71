package plugin

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kekd/internal/kek"
)

func TestPanicIsRecovered(t *testing.T) {
	r := start(t)
	r.sealer.open = func(_ context.Context, s kek.Sealed) ([]byte, error) {
		return s.Ciphertext[len(s.Ciphertext) : len(s.Ciphertext)+len(s.KeyID)+4096], nil
	}
	client := r.client(t)
	err := call(t.Context(), client, "Decrypt")
	if got := status.Convert(err); got.Code() != codes.Internal || got.Message() != "internal error" {
		t.Errorf("got %v", got)
	}
	if err := call(t.Context(), client, "Encrypt"); err != nil {
		t.Errorf("Encrypt after the panic: %v", err)
	}
	requests, inFlight, _, panics := r.tally.snapshot()
	if diff := cmp.Diff(map[string]int{"Decrypt Internal": 1, "Encrypt OK": 1}, requests); diff != "" {
		t.Errorf("requests observed (-want +got):\n%s", diff)
	}
	if panics != 1 || inFlight != 0 {
		t.Errorf("%d panics and %d in flight, want 1 and 0", panics, inFlight)
	}
	lines := r.logs.FilterMessage("request failed").All()
	if len(lines) != 1 || lines[0].Level != zap.ErrorLevel {
		t.Fatalf("log is %v, want one error line", lines)
	}
	fields := lines[0].ContextMap()
	stack, ok := fields["stack"].([]any)
	if !ok || len(stack) == 0 || !strings.Contains(fmt.Sprint(stack[0]), "TestPanicIsRecovered") {
		t.Errorf("stack does not begin where it panicked: %v", fields["stack"])
	}
	if what, ok := fields["error"].(string); !ok || !strings.Contains(what, "slice bounds out of range") {
		t.Errorf("error is %v", fields["error"])
	}
}

// A full house sheds Encrypt and Decrypt at once and goes on answering Status.
func TestOverload(t *testing.T) {
	const capacity = 3
	r := start(t, func(c *Config, _ *Server) { c.MaxInFlight = capacity })
	release := make(chan struct{})
	entered := make(chan struct{}, capacity)
	r.sealer.open = func(ctx context.Context, _ kek.Sealed) ([]byte, error) {
		entered <- struct{}{}
		select {
		case <-release:
			return seed, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	client := r.client(t)
	var wg sync.WaitGroup
	for range capacity {
		wg.Go(func() {
			if err := call(t.Context(), client, "Decrypt"); err != nil {
				t.Errorf("Decrypt within the cap: %v", err)
			}
		})
	}
	for range capacity {
		receive(t, "a Decrypt in the sealer", entered)
	}
	for range 50 {
		for _, method := range []string{"Encrypt", "Decrypt"} {
			got := status.Convert(call(t.Context(), client, method))
			if got.Code() != codes.ResourceExhausted || got.Message() != "too many requests at once" {
				t.Fatalf("%s over the cap: %v", method, got)
			}
		}
		if err := call(t.Context(), client, "Status"); err != nil {
			t.Fatalf("Status under load: %v", err)
		}
	}
	close(release)
	wg.Wait()
	if err := call(t.Context(), client, "Encrypt"); err != nil {
		t.Errorf("Encrypt after the load: %v", err)
	}
	if _, inFlight, _, _ := r.tally.snapshot(); inFlight != 0 || r.tally.peak != capacity {
		t.Errorf("in flight %d, peak %d; want 0 and %d", inFlight, r.tally.peak, capacity)
	}
}

// As many hung requests as the cap allows, on one connection, as the apiserver
// has one: gRPC's own stream limit must not make Status wait behind them.
func TestStatusPassesHungRequests(t *testing.T) {
	r := start(t, func(c *Config, _ *Server) { c.MaxInFlight = 64 })
	release := make(chan struct{})
	entered := make(chan struct{}, 64)
	r.sealer.seal = func(context.Context, []byte) (kek.Sealed, error) { // ignores its context
		entered <- struct{}{}
		<-release
		return kek.Sealed{}, kek.ErrUnavailable
	}
	client := r.client(t)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() { _ = call(t.Context(), client, "Encrypt") })
	}
	for range 64 {
		receive(t, "an Encrypt in the sealer", entered)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := call(ctx, client, "Status"); err != nil {
		t.Errorf("Status: %v", err)
	}
	close(release)
	wg.Wait()
}

func TestEnterNeverExceedsMax(t *testing.T) {
	g := &guard{observer: nopObserver{}, max: 4}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var inside, peak, served int
	for range 16 {
		wg.Go(func() {
			for range 500 {
				if !g.enter() {
					continue
				}
				mu.Lock()
				inside++
				served++
				peak = max(peak, inside)
				mu.Unlock()
				mu.Lock()
				inside--
				mu.Unlock()
				g.leave()
			}
		})
	}
	wg.Wait()
	if peak > 4 || served == 0 || g.inFlight.Load() != 0 {
		t.Errorf("peak %d, served %d, left %d", peak, served, g.inFlight.Load())
	}
}

func TestFailuresDoNotFloodTheLog(t *testing.T) {
	r := start(t)
	r.sealer.open = func(context.Context, kek.Sealed) ([]byte, error) { return nil, kek.ErrUnavailable }
	client := r.client(t)
	for range 200 {
		if code := status.Code(call(t.Context(), client, "Decrypt")); code != codes.Unavailable {
			t.Fatalf("Decrypt: %v", code)
		}
	}
	if n := r.logs.FilterMessage("request failed").Len(); n < throttleLines || n > 5*throttleLines {
		t.Errorf("%d lines for 200 failures", n)
	}
	requests, _, _, _ := r.tally.snapshot()
	if requests["Decrypt Unavailable"] != 200 {
		t.Errorf("observed %v, want all 200", requests)
	}
}
