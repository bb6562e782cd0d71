package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"
)

// report is what a run found. Its JSON form is the program's output.
type report struct {
	Machine  machine  `json:"machine"`
	Settings settings `json:"settings"`
	Rows     []row    `json:"rows"`

	// What follows is measured by the subcommand report alone.

	Operations []operations `json:"operations,omitempty"`
	Starts     []start      `json:"starts,omitempty"`
	Memory     []footprint  `json:"memory,omitempty"`
	Cold       []cold       `json:"coldDecrypts,omitempty"`
	Status     []statusRow  `json:"status,omitempty"`
}

type machine struct {
	OS   string `json:"os"`
	Arch string `json:"arch"`
	CPUs int    `json:"cpus"`
	Go   string `json:"go"`
}

type settings struct {
	Rounds          int     `json:"rounds"`
	DurationSeconds float64 `json:"durationSeconds"`
	Connections     int     `json:"connections"`
	PlaintextBytes  int     `json:"plaintextBytes"`
	// Sessions is the size of the pools of PKCS#11 sessions, where the bench set it.
	Sessions int `json:"sessions,omitempty"`
}

// row is one target at one number of callers doing one operation.
type row struct {
	// HSMLatency is what was added to each operation of the HSM, in milliseconds.
	HSMLatency float64   `json:"hsmLatencyMilliseconds"`
	Callers    int       `json:"callers"`
	Operation  operation `json:"operation"`
	Target     string    `json:"target"`
	// PerSecond is the rate of successful calls, over the rounds.
	PerSecond summary `json:"perSecond"`
	// Ratio is that rate divided by the no-op's in the same round, over the rounds.
	Ratio summary `json:"ratioToNoop"`
	// P99Ratio is the 99th percentile of the latencies of a round divided by the
	// no-op's of the same round, over the rounds; nil where a round has too few calls.
	P99Ratio *summary `json:"p99RatioToNoop,omitempty"`
	// P50, P90, P99 and P999 are latencies in microseconds, of all rounds together;
	// 0 where there are too few to tell.
	P50  float64 `json:"p50Microseconds"`
	P90  float64 `json:"p90Microseconds"`
	P99  float64 `json:"p99Microseconds,omitempty"`
	P999 float64 `json:"p999Microseconds,omitempty"`
	// CPU is the processor time for a call, in microseconds, of all processes of the
	// plugin; nil where it is not known, or too little for the kernel's clock.
	CPU *float64 `json:"cpuMicroseconds,omitempty"`
	// HSMPerThousand is HSM operations for a thousand calls; nil where they are not counted.
	HSMPerThousand *float64 `json:"hsmOperationsPer1000,omitempty"`
	Calls          int      `json:"calls"`
	Errors         int      `json:"errors"`
	FirstError     string   `json:"firstError,omitempty"`
}

// newReport works out the rows in the order of the schedule: by callers, then
// operation, then target. Every cell holds one measurement for each round.
func newReport(s schedule, cells map[cellKey][]measurement) *report {
	r := &report{
		Machine: machine{OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), Go: runtime.Version()},
		Settings: settings{
			Rounds:          s.rounds,
			DurationSeconds: s.duration.Seconds(),
			Connections:     len(s.targets[0].conns),
			PlaintextBytes:  seedSize,
		},
	}
	for _, latency := range s.stages() {
		for _, callers := range s.callers {
			for _, op := range []operation{opEncrypt, opDecrypt} {
				baseline := cells[cellKey{latency, s.targets[0].name, callers, op}]
				for _, t := range s.targets {
					key := cellKey{latency, t.name, callers, op}
					r.Rows = append(r.Rows, newRow(key, cells[key], baseline, t))
				}
			}
		}
	}
	return r
}

func newRow(key cellKey, rounds, baseline []measurement, t *target) row {
	result := row{HSMLatency: milliseconds(key.latency), Callers: key.callers, Operation: key.op, Target: key.target}
	var rates, ratios, tails, calls, latencies []float64
	hsmOps, cpu := 0.0, time.Duration(0)
	for i, m := range rounds {
		rates = append(rates, m.perSecond())
		if base := baseline[i].perSecond(); base > 0 {
			ratios = append(ratios, m.perSecond()/base)
		}
		if own, noop := tail(m), tail(baseline[i]); own > 0 && noop > 0 {
			tails = append(tails, own/noop)
		}
		calls = append(calls, float64(min(len(m.latencies), len(baseline[i].latencies))))
		latencies = append(latencies, microseconds(m.latencies)...)
		hsmOps += m.hsmOps
		cpu += m.cpu
		result.Calls += len(m.latencies) + m.errors
		result.Errors += m.errors
		if result.FirstError == "" && m.firstErr != nil {
			result.FirstError = m.firstErr.Error()
		}
	}
	slices.Sort(latencies)
	result.PerSecond, result.Ratio = summarize(rates), summarize(ratios)
	// By the middle round, so that one in which the machine stood still counts.
	if summarize(calls).Median >= tailCalls {
		s := summarize(tails)
		result.P99Ratio = &s
	}
	result.P50, result.P90 = quantile(latencies, 0.5), quantile(latencies, 0.9)
	result.P99, result.P999 = rareQuantile(latencies, 0.99), rareQuantile(latencies, 0.999)
	if result.Calls == 0 {
		return result
	}
	if t.hsm != nil {
		perThousand := hsmOps * 1000 / float64(result.Calls)
		result.HSMPerThousand = &perThousand
	}
	if cpu >= 10*clockTick {
		perCall := float64(cpu) / float64(time.Microsecond) / float64(result.Calls)
		result.CPU = &perCall
	}
	return result
}

// tailCalls is how many calls a round must have for its 99th percentile to count.
const tailCalls = 200

// tail is the 99th percentile of one round in microseconds; 0 without calls.
func tail(m measurement) float64 {
	latencies := microseconds(m.latencies)
	slices.Sort(latencies)
	return quantile(latencies, 0.99)
}

func microseconds(latencies []time.Duration) []float64 {
	us := make([]float64, len(latencies))
	for i, l := range latencies {
		us[i] = float64(l) / float64(time.Microsecond)
	}
	return us
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// failures is an error that names each row with failed calls, or nil: numbers
// of calls that failed are no measurement.
func (r *report) failures() error {
	var errs []error
	for _, row := range r.Rows {
		if row.Errors > 0 {
			errs = append(errs, fmt.Errorf("%s: %d of %d %s calls by %d callers did not succeed, the first with: %s",
				row.Target, row.Errors, row.Calls, row.Operation, row.Callers, row.FirstError))
		}
	}
	return errors.Join(errs...)
}

func (r *report) writeJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}
