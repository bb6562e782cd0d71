package harness

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

// ErrHopeless is wrapped by an attempt's error when no later attempt can work.
var ErrHopeless = errors.New("waiting is pointless")

// pollInterval is the pause between two attempts: short beside everything that
// is waited for, long enough to leave the processor to those who do the work.
const pollInterval = 100 * time.Millisecond

// Eventually repeats try until it returns nil, and returns how long that took.
// It ends the test when within has passed, or when the error wraps ErrHopeless.
// Each attempt gets a context that ends with the deadline.
func Eventually(tb testing.TB, within time.Duration, what string, try func(ctx context.Context) error) time.Duration {
	tb.Helper()
	start := time.Now()
	ctx, cancel := context.WithDeadline(tb.Context(), start.Add(within))
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var last error
	for {
		err := try(ctx)
		if err == nil {
			return time.Since(start)
		}
		if last == nil || ctx.Err() == nil {
			last = err // and not that the time ran out under the last attempt
		}
		if errors.Is(err, ErrHopeless) {
			tb.Fatalf("%s: %v", what, err)
		}
		select {
		case <-ctx.Done():
			tb.Fatalf("%s: not within %v, last: %v", what, within, last)
		case <-tick.C:
		}
	}
}

// Every calls f at a pace until ctx ends, or f is done.
func Every(ctx context.Context, pace time.Duration, f func() (done bool)) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for ctx.Err() == nil && !f() {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// backgroundCall bounds a call of Background, as kube-apiserver bounds its own.
const backgroundCall = 3 * time.Second

// Background calls f at a pace, one call after the other, until the test ends.
func Background(tb testing.TB, pace time.Duration, f func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(tb.Context())
	var work sync.WaitGroup
	work.Go(func() {
		Every(ctx, pace, func() bool {
			one, cancel := context.WithTimeout(ctx, backgroundCall)
			defer cancel()
			f(one)
			return false
		})
	})
	tb.Cleanup(func() {
		cancel()
		work.Wait()
	})
}
