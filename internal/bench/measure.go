package main

import (
	"context"
	"sync"
	"time"
)

// callTimeout is each call's deadline: kube-apiserver's default.
const callTimeout = 3 * time.Second

// measurement is one closed-loop run against one target.
type measurement struct {
	elapsed   time.Duration
	latencies []time.Duration // of the calls that succeeded
	errors    int
	firstErr  error // nil when errors is 0
	hsmOps    float64
	cpu       time.Duration // of the target's processes, in steps of clockTick
}

// perSecond is the rate of calls that succeeded.
func (m measurement) perSecond() float64 { return float64(len(m.latencies)) / m.elapsed.Seconds() }

// measure lets callers call for d, each waiting for its answer before the next
// call. Calls that run when the time is over are finished and counted, and the
// time until the last of them has ended is the time measured. It returns an
// error only when ctx ends or the metrics cannot be read; failed calls are
// part of the measurement.
func measure(ctx context.Context, t *target, op operation, callers int, d time.Duration) (measurement, error) {
	call := t.encrypt
	if op == opDecrypt {
		call = t.decrypt
	}
	before, err := t.hsmOperations(ctx)
	if err != nil {
		return measurement{}, err
	}
	cpu, err := cpuOf(t.pids)
	if err != nil {
		return measurement{}, err
	}
	results := make([]measurement, callers)
	var running sync.WaitGroup
	start := time.Now()
	end := start.Add(d)
	for caller := range callers {
		running.Go(func() { results[caller] = loop(ctx, call, caller, end) })
	}
	running.Wait()
	m := measurement{elapsed: time.Since(start)}
	if ctx.Err() != nil {
		return measurement{}, context.Cause(ctx)
	}
	cpuAfter, err := cpuOf(t.pids)
	if err != nil {
		return measurement{}, err
	}
	m.cpu = cpuAfter - cpu
	after, err := t.hsmOperations(ctx)
	if err != nil {
		return measurement{}, err
	}
	m.hsmOps = after - before
	for _, r := range results {
		m.latencies = append(m.latencies, r.latencies...)
		m.errors += r.errors
		if m.firstErr == nil {
			m.firstErr = r.firstErr
		}
	}
	t.requests.Add(int64(len(m.latencies) + m.errors))
	return m, nil
}

// loop is one caller, who makes at least one call.
func loop(ctx context.Context, call func(ctx context.Context, caller, n int) error, caller int, end time.Time) measurement {
	m := measurement{latencies: make([]time.Duration, 0, 1024)}
	began := time.Now()
	for n := 0; ctx.Err() == nil; n++ {
		// As kube-apiserver does, each call has a deadline of its own.
		callCtx, cancel := context.WithTimeout(ctx, callTimeout)
		err := call(callCtx, caller, n)
		cancel()
		done := time.Now()
		if err != nil {
			m.errors++
			if m.firstErr == nil {
				m.firstErr = err
			}
		} else {
			m.latencies = append(m.latencies, done.Sub(began))
		}
		if !done.Before(end) {
			break
		}
		began = done
	}
	return m
}
