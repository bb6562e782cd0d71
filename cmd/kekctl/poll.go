package main

import (
	"context"
	"time"
)

// pollPause is the pause between two questions to the nodes.
const pollPause = 500 * time.Millisecond

// poll calls done again and again until it returns true, with a pause in between.
// Its error is ctx's.
func poll(ctx context.Context, pause time.Duration, done func() bool) error {
	for !done() {
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
	return nil
}
