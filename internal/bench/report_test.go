package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
)

func TestQuantile(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		sorted []float64
		q      float64
		want   float64
	}{
		{"of nothing", nil, 0.5, 0},
		{"of one", []float64{7}, 0.99, 7},
		{"the least", []float64{1, 2, 3}, 0, 1},
		{"the greatest", []float64{1, 2, 3}, 1, 3},
		{"the middle of an odd number", []float64{1, 2, 9}, 0.5, 2},
		{"the middle of an even number", []float64{1, 2, 4, 9}, 0.5, 3},
		{"between two", []float64{0, 100}, 0.99, 99},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := quantile(tt.sorted, tt.q); got != tt.want {
				t.Errorf("quantile(%v, %v) = %v, want %v", tt.sorted, tt.q, got, tt.want)
			}
		})
	}
}

func TestSummarize(t *testing.T) {
	t.Parallel()
	values := []float64{5, 1, 4, 2, 3}
	if got := summarize(values); got != (summary{Median: 3, Lower: 2, Upper: 4}) {
		t.Errorf("summarize: %+v", got)
	}
	if diff := cmp.Diff([]float64{5, 1, 4, 2, 3}, values); diff != "" {
		t.Errorf("summarize changed its input:\n%s", diff)
	}
}

// calls makes a measurement of a second in which n calls took l each.
func calls(n int, l time.Duration) measurement {
	m := measurement{elapsed: time.Second}
	for range n {
		m.latencies = append(m.latencies, l)
	}
	return m
}

// threeRounds is a run in which the machine halves its speed in the second
// round: the rates show it, and the ratios do not.
func threeRounds() (schedule, map[cellKey][]measurement) {
	s := schedule{
		targets: []*target{
			{name: noopName, conns: make([]*grpc.ClientConn, 1)},
			{name: "seeded", metrics: &counterReader{}},
		},
		callers:  []int{8},
		rounds:   3,
		duration: time.Second,
	}
	failing := calls(0, 0)
	failing.errors, failing.firstErr = 5, errors.New("busy")
	slow := calls(45, 200*time.Microsecond)
	slow.hsmOps = 1
	return s, map[cellKey][]measurement{
		{noopName, 8, opEncrypt}: {calls(100, 100*time.Microsecond), calls(50, 200*time.Microsecond), calls(100, 100*time.Microsecond)},
		{"seeded", 8, opEncrypt}: {calls(95, 100*time.Microsecond), slow, calls(110, 12*time.Millisecond)},
		{noopName, 8, opDecrypt}: {calls(10, time.Millisecond), calls(10, time.Millisecond), calls(10, time.Millisecond)},
		{"seeded", 8, opDecrypt}: {calls(10, time.Millisecond), failing, calls(5, time.Millisecond)},
	}
}

func TestNewReport(t *testing.T) {
	t.Parallel()
	report := newReport(threeRounds())
	four, none := 4.0, 0.0
	want := []row{
		{
			Callers: 8, Operation: opEncrypt, Target: noopName, Calls: 250, P50: 100, P99: 200,
			PerSecond: summary{Median: 100, Lower: 75, Upper: 100}, Ratio: summary{1, 1, 1},
		},
		{
			Callers: 8, Operation: opEncrypt, Target: "seeded", Calls: 250, P50: 200, P99: 12000,
			PerSecond: summary{Median: 95, Lower: 70, Upper: 102.5}, Ratio: summary{Median: 0.95, Lower: 0.925, Upper: 1.025},
			HSMPerThousand: &four,
		},
		{
			Callers: 8, Operation: opDecrypt, Target: noopName, Calls: 30, P50: 1000, P99: 1000,
			PerSecond: summary{10, 10, 10}, Ratio: summary{1, 1, 1},
		},
		{
			Callers: 8, Operation: opDecrypt, Target: "seeded", Calls: 20, P50: 1000, P99: 1000,
			PerSecond: summary{Median: 5, Lower: 2.5, Upper: 7.5}, Ratio: summary{Median: 0.5, Lower: 0.25, Upper: 0.75},
			HSMPerThousand: &none, Errors: 5, FirstError: "busy",
		},
	}
	roughly := cmp.Comparer(func(a, b float64) bool { return a-b < 1e-9 && b-a < 1e-9 })
	if diff := cmp.Diff(want, report.Rows, roughly); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	const failures = "seeded: 5 of 20 Decrypt calls by 8 callers did not succeed, the first with: busy"
	if err := report.failures(); err == nil || err.Error() != failures {
		t.Errorf("failures: %v", err)
	}
}

func TestMarkdown(t *testing.T) {
	t.Parallel()
	report := newReport(threeRounds())
	report.Machine = machine{OS: "linux", Arch: "amd64", CPUs: 2, Go: "go1.26"}
	var b strings.Builder
	if err := report.writeMarkdown(&b); err != nil {
		t.Fatal(err)
	}
	const want = `linux/amd64, 2 CPUs, go1.26; 3 rounds of 1s, 32-byte plaintexts, 1 connection(s) a target.
Ops/s and the ratio to the no-op are medians over the rounds, the ratio with its quartiles; latencies are of all calls.

Callers: 8

| operation | target | ops/s | p50 | p99 | ratio to no-op | HSM ops per 1,000 | errors |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| Encrypt | no-op | 100 | 100 µs | 200 µs | 1.00 (1.00-1.00) | - | 0 |
| Encrypt | seeded | 95 | 200 µs | 12.0 ms | 0.95 (0.93-1.02) | 4.00 | 0 |
| Decrypt | no-op | 10 | 1000 µs | 1000 µs | 1.00 (1.00-1.00) | - | 0 |
| Decrypt | seeded | 5 | 1000 µs | 1000 µs | 0.50 (0.25-0.75) | 0.00 | 5 |
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("markdown (-want +got):\n%s", diff)
	}
}

// errWriter is a full disk.
type errWriter struct{}

func (errWriter) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestReportCannotBeWritten(t *testing.T) {
	t.Parallel()
	report := newReport(threeRounds())
	for name, write := range map[string]func() error{
		"markdown": func() error { return report.writeMarkdown(errWriter{}) },
		"json":     func() error { return report.writeJSON(errWriter{}) },
	} {
		if err := write(); err == nil || !strings.Contains(err.Error(), "write report: no space left") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
