package main

import (
	"context"
	"fmt"
	"time"
)

// operation is what the callers do.
type operation string

const (
	opEncrypt operation = "Encrypt"
	opDecrypt operation = "Decrypt"
)

// schedule is a whole run: every target at every number of callers, doing each
// operation, in every round.
type schedule struct {
	targets  []*target // the first is the one that the others are compared with
	callers  []int
	rounds   int
	duration time.Duration
}

// length is how long the run will measure, warm-ups included.
func (s schedule) length() time.Duration {
	cells := time.Duration(len(s.targets) * len(s.callers) * 2)
	return cells * (time.Duration(s.rounds)*s.duration + s.warmUp())
}

// warmUp is how long each target runs at each setting before the first round,
// unmeasured, so that stacks, pools and heaps have grown.
func (s schedule) warmUp() time.Duration { return s.duration / 2 }

// cellKey names what is measured once a round.
type cellKey struct {
	target  string
	callers int
	op      operation
}

// run measures. It calls progress before each round, counted from 0, and
// returns the context's cause when that ends first.
func (s schedule) run(ctx context.Context, progress func(round int)) (*report, error) {
	cells := map[cellKey][]measurement{}
	if err := s.round(ctx, 0, s.warmUp(), func(cellKey, measurement) {}); err != nil {
		return nil, err
	}
	for round := range s.rounds {
		progress(round)
		err := s.round(ctx, round, s.duration, func(key cellKey, m measurement) { cells[key] = append(cells[key], m) })
		if err != nil {
			return nil, err
		}
	}
	return newReport(s, cells), nil
}

// round measures each cell once. Within a setting the targets run directly one
// after the other, so that they meet the same machine, and each round starts
// with another one, so that none always runs behind the same neighbour.
func (s schedule) round(ctx context.Context, round int, d time.Duration, record func(cellKey, measurement)) error {
	for _, callers := range s.callers {
		for _, op := range []operation{opEncrypt, opDecrypt} {
			for i := range s.targets {
				t := s.targets[(i+round)%len(s.targets)]
				m, err := measure(ctx, t, op, callers, d)
				if err != nil {
					return fmt.Errorf("measure %s: %w", t.name, err)
				}
				record(cellKey{t.name, callers, op}, m)
			}
		}
	}
	return nil
}
