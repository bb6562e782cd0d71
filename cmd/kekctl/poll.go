package main

import (
	"context"
	"time"
)

// pollPause is the pause between two questions to the nodes.
const pollPause = 250 * time.Millisecond

// poll calls done again and again until it returns true, with a pause in between.
// Its error is ctx's.
func poll(ctx context.Context, between time.Duration, done func() bool) error {
	for !done() {
		if err := pause(ctx, between); err != nil {
			return err
		}
	}
	return nil
}

// pause waits, or returns ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
