package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is what a run found. Its JSON form is the program's output.
type report struct {
	Machine  machine  `json:"machine"`
	Settings settings `json:"settings"`
	Rows     []row    `json:"rows"`
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
}

// row is one target at one number of callers doing one operation.
type row struct {
	Callers   int       `json:"callers"`
	Operation operation `json:"operation"`
	Target    string    `json:"target"`
	// PerSecond is the rate of successful calls, over the rounds.
	PerSecond summary `json:"perSecond"`
	// Ratio is that rate divided by the no-op's in the same round, over the rounds.
	Ratio summary `json:"ratioToNoop"`
	// P50 and P99 are latencies in microseconds, of all rounds together.
	P50 float64 `json:"p50Microseconds"`
	P99 float64 `json:"p99Microseconds"`
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
	for _, callers := range s.callers {
		for _, op := range []operation{opEncrypt, opDecrypt} {
			baseline := cells[cellKey{s.targets[0].name, callers, op}]
			for _, t := range s.targets {
				key := cellKey{t.name, callers, op}
				r.Rows = append(r.Rows, newRow(key, cells[key], baseline, t.metrics != nil))
			}
		}
	}
	return r
}

func newRow(key cellKey, rounds, baseline []measurement, countsHSM bool) row {
	result := row{Callers: key.callers, Operation: key.op, Target: key.target}
	var rates, ratios, latencies []float64
	hsmOps := 0.0
	for i, m := range rounds {
		rates = append(rates, m.perSecond())
		if base := baseline[i].perSecond(); base > 0 {
			ratios = append(ratios, m.perSecond()/base)
		}
		for _, l := range m.latencies {
			latencies = append(latencies, float64(l)/float64(time.Microsecond))
		}
		hsmOps += m.hsmOps
		result.Calls += len(m.latencies) + m.errors
		result.Errors += m.errors
		if result.FirstError == "" && m.firstErr != nil {
			result.FirstError = m.firstErr.Error()
		}
	}
	slices.Sort(latencies)
	result.PerSecond, result.Ratio = summarize(rates), summarize(ratios)
	result.P50, result.P99 = quantile(latencies, 0.5), quantile(latencies, 0.99)
	if countsHSM && result.Calls > 0 {
		perThousand := hsmOps * 1000 / float64(result.Calls)
		result.HSMPerThousand = &perThousand
	}
	return result
}

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

// writeMarkdown writes one table a number of callers.
func (r *report) writeMarkdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s/%s, %d CPUs, %s; %d rounds of %v, %d-byte plaintexts, %d connection(s) a target.\n",
		r.Machine.OS, r.Machine.Arch, r.Machine.CPUs, r.Machine.Go,
		r.Settings.Rounds, time.Duration(r.Settings.DurationSeconds*float64(time.Second)), r.Settings.PlaintextBytes, r.Settings.Connections)
	b.WriteString("Ops/s and the ratio to the no-op are medians over the rounds, the ratio with its quartiles; latencies are of all calls.\n")
	callers := 0
	for _, row := range r.Rows {
		if row.Callers != callers {
			callers = row.Callers
			fmt.Fprintf(&b, "\nCallers: %d\n\n", callers)
			b.WriteString("| operation | target | ops/s | p50 | p99 | ratio to no-op | HSM ops per 1,000 | errors |\n")
			b.WriteString("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n")
		}
		hsm := "-"
		if row.HSMPerThousand != nil {
			hsm = fmt.Sprintf("%.2f", *row.HSMPerThousand)
		}
		fmt.Fprintf(&b, "| %s | %s | %.0f | %s | %s | %.2f (%.2f-%.2f) | %s | %d |\n",
			row.Operation, row.Target, row.PerSecond.Median, microseconds(row.P50), microseconds(row.P99),
			row.Ratio.Median, row.Ratio.Lower, row.Ratio.Upper, hsm, row.Errors)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// microseconds prints a latency with three digits or more.
func microseconds(us float64) string {
	if us >= 10_000 {
		return fmt.Sprintf("%.1f ms", us/1000)
	}
	return fmt.Sprintf("%.0f µs", us)
}
