package main

import (
	"errors"
	"os"
	"path/filepath"
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
			{name: "seeded", hsm: &counterReader{}, pids: []int{1}},
		},
		callers:  []int{8},
		rounds:   3,
		duration: time.Second,
	}
	failing := calls(0, 0)
	failing.errors, failing.firstErr = 5, errors.New("busy")
	slow := calls(450, 200*time.Microsecond)
	slow.hsmOps, slow.cpu = 10, 250*time.Millisecond
	return s, map[cellKey][]measurement{
		{0, noopName, 8, opEncrypt}: {calls(1000, 100*time.Microsecond), calls(500, 200*time.Microsecond), calls(1000, 100*time.Microsecond)},
		{0, "seeded", 8, opEncrypt}: {calls(950, 100*time.Microsecond), slow, calls(1100, 12*time.Millisecond)},
		{0, noopName, 8, opDecrypt}: {calls(10, time.Millisecond), calls(10, time.Millisecond), calls(10, time.Millisecond)},
		{0, "seeded", 8, opDecrypt}: {calls(10, time.Millisecond), failing, calls(5, time.Millisecond)},
	}
}

func TestNewReport(t *testing.T) {
	t.Parallel()
	report := newReport(threeRounds())
	four, none, hundred := 4.0, 0.0, 100.0
	want := []row{
		{
			Callers: 8, Operation: opEncrypt, Target: noopName, Calls: 2500, P50: 100, P90: 200, P99: 200,
			PerSecond: summary{Median: 1000, Lower: 750, Upper: 1000}, Ratio: summary{1, 1, 1}, P99Ratio: &summary{1, 1, 1},
		},
		{
			Callers: 8, Operation: opEncrypt, Target: "seeded", Calls: 2500, P50: 200, P90: 12000, P99: 12000,
			PerSecond: summary{Median: 950, Lower: 700, Upper: 1025}, Ratio: summary{Median: 0.95, Lower: 0.925, Upper: 1.025},
			P99Ratio: &summary{Median: 1, Lower: 1, Upper: 60.5}, HSMPerThousand: &four, CPU: &hundred,
		},
		{
			Callers: 8, Operation: opDecrypt, Target: noopName, Calls: 30, P50: 1000, P90: 1000,
			PerSecond: summary{10, 10, 10}, Ratio: summary{1, 1, 1},
		},
		{
			Callers: 8, Operation: opDecrypt, Target: "seeded", Calls: 20, P50: 1000, P90: 1000,
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

// A latency of the HSM is a setting of its own, with its own no-op.
func TestNewReportByLatency(t *testing.T) {
	t.Parallel()
	s, cells := threeRounds()
	s.latencies = latenciesFlag{0, 5 * time.Millisecond}
	for key, rounds := range cells {
		key.latency = 5 * time.Millisecond
		cells[key] = rounds[:1]
	}
	report := newReport(s, cells)
	if len(report.Rows) != 8 {
		t.Fatalf("%d rows", len(report.Rows))
	}
	for i, row := range report.Rows {
		want, calls := 0.0, 1
		if i >= 4 {
			want, calls = 5, 0
		}
		if row.HSMLatency != want || row.Target == noopName && row.Ratio.Median != 1 || calls == 1 && row.Calls < 20 {
			t.Errorf("row %d: %+v", i, row)
		}
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
Ops/s and the ratios to the no-op are medians over the rounds, the ratios with their quartiles; latencies are of all calls together; a dash stands where there are too few calls to tell.

| callers | operation | target | ops/s | p50 | p99 | p99.9 | ops/s to no-op | p99 to no-op | CPU a call | HSM ops per 1,000 | errors |
| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| 8 | Encrypt | no-op | 1000 | 100 µs | 200 µs | - | 1.00 (1.00-1.00) | 1.00 (1.00-1.00) | - | - | 0 |
| 8 | Encrypt | seeded | 950 | 200 µs | 12.0 ms | - | 0.95 (0.93-1.02) | 1.00 (1.00-60.50) | 100.0 µs | 4.00 | 0 |
| 8 | Decrypt | no-op | 10 | 1000 µs | - | - | 1.00 (1.00-1.00) | - | - | - | 0 |
| 8 | Decrypt | seeded | 5 | 1000 µs | - | - | 0.50 (0.25-0.75) | - | - | 0.00 | 5 |
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("markdown (-want +got):\n%s", diff)
	}
}

// The whole report, as bench report stores it and bench write prints it.
func TestFullMarkdown(t *testing.T) {
	t.Parallel()
	r := newReport(threeRounds())
	r.Settings.Sessions = 16
	r.Operations = []operations{{
		Target: "seeded", Requests: 2000,
		ByKekd:   map[string]float64{"wrap": 0, "unwrap": 0, "probe": 4, "keys": 1},
		ByModule: map[string]uint64{"C_EncryptInit": 2, "C_DecryptInit": 2},
	}}
	r.Starts = []start{{Target: "seeded", HSMLatency: 20, Seconds: summary{0.5, 0.4, 0.6}, Resident: 3 << 20}}
	r.Memory = []footprint{{Target: "seeded", Process: memory{1 << 20, 2 << 20}, Worker: &memory{1 << 20, 3 << 20}}}
	r.Cold = []cold{{HSMLatency: 1, Seeds: 50, Cold: coldResult{0.25, 50}, Warm: coldResult{0.004, 0}, Naive: coldResult{1.5, 50}}}
	r.Status = []statusRow{{Target: "seeded", Idle: statusTimes{P50: 100, Max: 300, Calls: 9}, Busy: statusTimes{P50: 200, P99: 900, Max: 20000, Calls: 500}}}
	path := filepath.Join(t.TempDir(), "kekd", "report.json")
	if err := storeReport(r, path); err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(page, []byte("# Head\n"+beginMarker+"\nold\n"+endMarker+"\n<!-- apiserver:begin -->\nother\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr strings.Builder
	if code := run(t.Context(), []string{"write", "-page", page, path}, &stdout, &stderr); code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr.String())
	}
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	got := string(b)
	for _, want := range []string{
		"# Head\n" + beginMarker + "\n\nlinux/", "\n" + endMarker + "\n<!-- apiserver:begin -->\nother\n", "16 PKCS#11 sessions",
		"| as it is | 8 | Encrypt | 0.95 (0.93-1.02) |",
		"at most 1.20 of its p99, by the medians. Missed: ops/s 0.50 (Decrypt, 8 callers, HSM as it is); of 2 settings.",
		"| seeded | 2000 | 0 | keys 1, probe 4 | 4 | 2.00 |",
		"| + 1 ms | 50 | 250 ms | 50 | 4 ms | 0 | 1.5 s | 50 |",
		"| as it is | seeded | 100 µs | - | 200 µs | 900 µs | 20.0 ms | 500 |",
		"| seeded | + 20 ms | 500 ms (400-600) | 3.0 MiB | 2.0 MiB | 3.0 MiB |",
		"<details><summary>HSM as it is</summary>\n\n| callers |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "old\n") {
		t.Error("what stood between the markers is still there")
	}
}

func TestWriteRefuses(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "report.json")
	if err := storeReport(newReport(threeRounds()), path); err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(page, []byte("no markers\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"write"}, exitUsage, "want one argument"},
		{[]string{"write", "/nonexistent/report.json"}, exitFailed, "read report: "},
		{[]string{"write", page}, exitFailed, "invalid character"},
		{[]string{"write", "-page", page, path}, exitFailed, "it has no lines <!-- bench:begin -->"},
		{[]string{"report", "-callers", "65"}, exitUsage, "-callers: must be at most 64"},
		{[]string{"report", "-latencies", "1,x"}, exitUsage, `"x" is not a number of milliseconds`},
		{[]string{"report", "-rounds", "0", "-sessions", "65", "more"}, exitUsage, "unexpected argument \"more\"\n-rounds: must be"},
		{[]string{"report", "-naive", "/nonexistent/naive", "-dir", filepath.Join(t.TempDir(), "d")}, exitFailed, "make bench builds it"},
	} {
		var stdout, stderr strings.Builder
		if code := run(t.Context(), tt.args, &stdout, &stderr); code != tt.code || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("%q: exit code %d, want %d; stderr %q has no %q", tt.args, code, tt.code, stderr.String(), tt.want)
		}
	}
	if b, err := os.ReadFile(page); err != nil || string(b) != "no markers\n" {
		t.Errorf("the page is now %q, %v", b, err)
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
