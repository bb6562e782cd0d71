package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// statusCallers is how many callers keep a target busy: as many as kekd lets wait
// for the HSM at once.
const statusCallers = 64

// statusRounds is how often each target is measured.
const statusRounds = 4

// statusRow is the latency of Status at one target.
type statusRow struct {
	Target     string      `json:"target"`
	HSMLatency float64     `json:"hsmLatencyMilliseconds"`
	Idle       statusTimes `json:"idle"`
	Busy       statusTimes `json:"busy"`
}

// statusTimes are in microseconds; P99 is 0 where there are too few calls.
type statusTimes struct {
	P50   float64 `json:"p50Microseconds"`
	P99   float64 `json:"p99Microseconds,omitempty"`
	Max   float64 `json:"maxMicroseconds"`
	Calls int     `json:"calls"`
}

func newStatusTimes(latencies []time.Duration) statusTimes {
	us := microseconds(latencies)
	slices.Sort(us)
	return statusTimes{P50: quantile(us, 0.5), P99: rareQuantile(us, 0.99), Max: quantile(us, 1), Calls: len(us)}
}

// measureStatus measures Status alone, and while everything else is saturated.
func (s *stand) measureStatus(ctx context.Context) ([]statusRow, error) {
	var list []statusRow
	for _, latency := range s.o.latencies.extremes() {
		if err := s.setLatency(latency); err != nil {
			return nil, err
		}
		idle, busy := map[string][]time.Duration{}, map[string][]time.Duration{}
		for round := range statusRounds {
			for _, t := range turns(s.targets, round) {
				alone, err := statusLoop(ctx, t, s.o.status/2)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", t.name, err)
				}
				among, err := saturated(ctx, t, s.o.status)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", t.name, err)
				}
				idle[t.name] = append(idle[t.name], alone...)
				busy[t.name] = append(busy[t.name], among...)
			}
		}
		for _, t := range s.targets {
			list = append(list, statusRow{
				Target: t.name, HSMLatency: milliseconds(latency), Idle: newStatusTimes(idle[t.name]), Busy: newStatusTimes(busy[t.name]),
			})
		}
	}
	return list, nil
}

// saturated measures Status while all other callers encrypt and decrypt.
func saturated(ctx context.Context, t *target, d time.Duration) ([]time.Duration, error) {
	const lead = 100 * time.Millisecond // for the queues to fill up
	end := time.Now().Add(lead + d)
	loads := make([]measurement, statusCallers)
	var running sync.WaitGroup
	for caller := range statusCallers {
		call := t.encrypt
		if caller%2 == 1 {
			call = t.decrypt
		}
		running.Go(func() { loads[caller] = loop(ctx, call, caller, end) })
	}
	select {
	case <-time.After(lead):
	case <-ctx.Done():
	}
	latencies, err := statusLoop(ctx, t, d)
	running.Wait()
	for _, load := range loads {
		err = errors.Join(err, load.firstErr)
	}
	return latencies, err
}

// statusLoop is one caller of Status.
func statusLoop(ctx context.Context, t *target, d time.Duration) ([]time.Duration, error) {
	m := loop(ctx, func(ctx context.Context, _, _ int) error { return t.status(ctx) }, 0, time.Now().Add(d))
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return m.latencies, m.firstErr
}
