package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// operation is what the callers do.
type operation string

const (
	opEncrypt operation = "Encrypt"
	opDecrypt operation = "Decrypt"
)

// schedule is a whole run: every target at every latency of the HSM and every
// number of callers, doing each operation, in every round.
type schedule struct {
	targets  []*target // the first is the one that the others are compared with
	callers  []int
	rounds   int
	duration time.Duration
	// latencies are what setLatency makes each operation of the HSM take longer;
	// none where the HSM is left alone.
	latencies  []time.Duration
	setLatency func(time.Duration) error
}

// stages are the latencies; a single 0 where there are none.
func (s schedule) stages() []time.Duration {
	if len(s.latencies) == 0 {
		return []time.Duration{0}
	}
	return s.latencies
}

// length is how long the run will measure, warm-ups included.
func (s schedule) length() time.Duration {
	cells := time.Duration(len(s.stages()) * len(s.targets) * len(s.callers) * 2)
	return cells * (time.Duration(s.rounds)*s.duration + s.warmUp())
}

// warmUp is how long each target runs at each setting before the first round,
// unmeasured, so that stacks, pools and heaps have grown.
func (s schedule) warmUp() time.Duration { return s.duration / 2 }

// cellKey names what is measured once a round.
type cellKey struct {
	latency time.Duration // of the HSM
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
// after the other, so that they meet the same machine. Each round starts with
// another one, and every second round goes backwards, so that none always runs
// behind the same neighbour.
func (s schedule) round(ctx context.Context, round int, d time.Duration, record func(cellKey, measurement)) error {
	for _, latency := range s.stages() {
		if s.setLatency != nil {
			if err := s.setLatency(latency); err != nil {
				return fmt.Errorf("set the latency of the HSM: %w", err)
			}
		}
		for _, callers := range s.callers {
			for _, op := range []operation{opEncrypt, opDecrypt} {
				for _, t := range turns(s.targets, round) {
					m, err := measure(ctx, t, op, callers, d)
					if err != nil {
						return fmt.Errorf("measure %s: %w", t.name, err)
					}
					record(cellKey{latency, t.name, callers, op}, m)
				}
			}
		}
	}
	return nil
}

// turns is the order of the targets in a round.
func turns(targets []*target, round int) []*target {
	first := round % len(targets)
	order := slices.Concat(targets[first:], targets[:first])
	if round%2 == 1 {
		slices.Reverse(order)
	}
	return order
}
