package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kekd/hsm/worker"
	"kekd/internal/bench/plugins"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsv2 "k8s.io/kms/apis/v2"
)

// The tests' own binary is the no-op server when it is started with a socket.
const asNoop = "KEKD_BENCH_TEST_NOOP"

func TestMain(m *testing.M) {
	if worker.Is(os.Args) {
		os.Exit(worker.Main(worker.OpenModule))
	}
	if os.Getenv(asNoop) != "" && !slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "-test.") }) {
		if err := plugins.Serve(plugins.NewNoop(), os.Stdin); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	if err := os.Setenv(asNoop, "1"); err != nil { // for the plugins that tests start
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// runBench is run, with the tests' own binary for the no-op server.
func runBench(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return run(ctx, append([]string{"-noop", os.Args[0]}, args...), stdout, stderr)
}

// fakePlugin is a no-op plugin whose every Encrypt and Decrypt counts as an
// HSM operation, and which can be made to go wrong once it was opened.
type fakePlugin struct {
	*plugins.Noop
	encrypts, decrypts atomic.Int64
	failing            atomic.Bool // Encrypt answers with an error
	lying              atomic.Bool // Decrypt answers with another plaintext
}

func (p *fakePlugin) Encrypt(ctx context.Context, req *kmsv2.EncryptRequest) (*kmsv2.EncryptResponse, error) {
	p.encrypts.Add(1)
	if p.failing.Load() {
		return nil, status.Error(codes.ResourceExhausted, "busy")
	}
	return p.Noop.Encrypt(ctx, req)
}

func (p *fakePlugin) Decrypt(ctx context.Context, req *kmsv2.DecryptRequest) (*kmsv2.DecryptResponse, error) {
	p.decrypts.Add(1)
	resp, err := p.Noop.Decrypt(ctx, req)
	if err == nil && p.lying.Load() {
		clear(resp.GetPlaintext())
	}
	return resp, err
}

// ServeHTTP is the metrics page.
func (p *fakePlugin) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	_, _ = fmt.Fprintf(w, "# TYPE hsm_ops_total counter\nhsm_ops_total{op=\"encrypt\"} %d\nhsm_ops_total{op=\"decrypt\"} %d\n",
		p.encrypts.Load(), p.decrypts.Load())
}

// serve starts the plugin on a socket and its metrics on loopback.
func (p *fakePlugin) serve(t *testing.T) targetSpec {
	t.Helper()
	// Not t.TempDir: with the test's name in it the path may pass 107 bytes.
	dir, err := os.MkdirTemp("", "kms")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "kms.sock")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	p.Noop = plugins.NewNoop()
	server := grpc.NewServer()
	kmsv2.RegisterKeyManagementServiceServer(server, p)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	metrics := httptest.NewServer(p)
	t.Cleanup(func() {
		metrics.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return targetSpec{name: "fake", socket: socket, metricsURL: metrics.URL}
}

// open prepares the plugin to be measured.
func (p *fakePlugin) open(t *testing.T, conns int) *target {
	t.Helper()
	target, err := openTarget(t.Context(), p.serve(t), conns, "hsm_ops_total")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(target.close)
	return target
}

func TestRun(t *testing.T) {
	t.Parallel()
	spec := new(fakePlugin).serve(t)
	var stdout, stderr strings.Builder
	args := []string{
		"-target", "fake=" + spec.socket + "," + spec.metricsURL, "-metric", "hsm_ops_total",
		"-callers", "1,3", "-rounds", "2", "-duration", "10ms", "-conns", "2", "-out", "json",
	}
	if code := runBench(t.Context(), args, &stdout, &stderr); code != exitOK {
		t.Fatalf("exit code %d\n%s", code, stderr.String())
	}
	var got report
	if err := json.Unmarshal([]byte(stdout.String()), &got); err != nil {
		t.Fatal(err)
	}
	var cells []string
	for _, row := range got.Rows {
		cells = append(cells, fmt.Sprintf("%d %s %s", row.Callers, row.Operation, row.Target))
		if row.Calls < 2*row.Callers || row.Errors != 0 || row.PerSecond.Median <= 0 || row.P50 <= 0 || row.P90 < row.P50 || row.P99 != 0 && row.P99 < row.P90 || row.Ratio.Median <= 0 {
			t.Errorf("implausible: %+v", row)
		}
		switch {
		case row.Target == noopName && row.Ratio != summary{1, 1, 1}:
			t.Errorf("the no-op's ratio to itself is %+v", row.Ratio)
		case row.Target != "fake" && row.HSMPerThousand != nil:
			t.Errorf("%s has HSM operations: %v", row.Target, *row.HSMPerThousand)
		case row.Target == "fake" && (row.HSMPerThousand == nil || *row.HSMPerThousand != 1000):
			t.Errorf("each call is one HSM operation, got %v for 1,000", row.HSMPerThousand)
		}
	}
	want := []string{
		"1 Encrypt no-op", "1 Encrypt control", "1 Encrypt fake", "1 Decrypt no-op", "1 Decrypt control", "1 Decrypt fake",
		"3 Encrypt no-op", "3 Encrypt control", "3 Encrypt fake", "3 Decrypt no-op", "3 Decrypt control", "3 Decrypt fake",
	}
	if diff := cmp.Diff(want, cells); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	if got.Settings != (settings{Rounds: 2, DurationSeconds: 0.01, Connections: 2, PlaintextBytes: 32}) {
		t.Errorf("settings: %+v", got.Settings)
	}
	if strings.Contains(stderr.String(), "warning") {
		t.Errorf("the no-op servers did not end well:\n%s", stderr.String())
	}
}

func TestRunRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		args []string
		code int
		want string // on stderr
	}{
		{"help", []string{"-h"}, exitOK, "-target name=socket[,metricsURL]"},
		{"an unknown flag", []string{"-bogus"}, exitUsage, "not defined: -bogus"},
		{"an argument that is no flag", []string{"/run/kekd/kekd.sock"}, exitUsage, "targets are given with -target"},
		{"a target without a socket", []string{"-target", "kekd"}, exitUsage, "want name=socket"},
		{"a target with a relative socket", []string{"-target", "kekd=kekd.sock"}, exitUsage, "must be an absolute path"},
		{"a target without a name", []string{"-target", "=/kekd.sock"}, exitUsage, `the name "" must be`},
		{"a name that breaks the table", []string{"-target", "a|b=/kekd.sock"}, exitUsage, `the name "a|b" must be`},
		{"a name twice", []string{"-target", "a=/1.sock", "-target", "a=/2.sock"}, exitUsage, `"a" is given twice`},
		{"the no-op's name", []string{"-target", "no-op=/1.sock"}, exitUsage, "taken by a no-op server"},
		{"metrics that are no URL", []string{"-target", "a=/1.sock,127.0.0.1:8780"}, exitUsage, "must be an http or https URL"},
		{"metrics of another scheme", []string{"-target", "a=/1.sock,file:///metrics"}, exitUsage, "must be an http or https URL"},
		{"no callers", []string{"-callers", ""}, exitUsage, "not a number from 1 to 1024"},
		{"callers that are no number", []string{"-callers", "1,many"}, exitUsage, `"many" is not a number`},
		{"no caller", []string{"-callers", "0"}, exitUsage, `"0" is not a number from 1`},
		{"callers twice", []string{"-callers", "8,8"}, exitUsage, "8 is given twice"},
		{
			"all that is out of range at once",
			[]string{"-rounds", "0", "-duration", "2m", "-conns", "0", "-out", "csv", "-metric", ""},
			exitUsage,
			"bench: error: -conns: must be 1 to 64, got 0\n-rounds: must be 1 to 10000, got 0\n-duration: must be 1ms to 1m, got 2m0s\n" +
				"-out: must be markdown or json, got \"csv\"\n-metric: must not be empty\n",
		},
		{"a plugin that is not there", []string{"-target", "kekd=/nonexistent/kekd.sock"}, exitFailed, "target kekd: ask for the status at /nonexistent/kekd.sock"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr strings.Builder
			if code := runBench(t.Context(), tt.args, &stdout, &stderr); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if !strings.Contains(stderr.String(), tt.want) {
				t.Errorf("stderr %q has no %q", stderr.String(), tt.want)
			}
			if stdout.Len() > 0 {
				t.Errorf("stdout: %q", stdout.String())
			}
		})
	}
}

func TestRunIsInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	stderr := &cancelOn{text: "round 1 of", cancel: func() { cancel(errors.New("interrupted by the test")) }}
	var stdout strings.Builder
	code := runBench(ctx, []string{"-duration", "10ms", "-callers", "2"}, &stdout, stderr)
	if code != exitFailed || !strings.Contains(stderr.String(), "bench: error: measure no-op: interrupted by the test") {
		t.Errorf("exit code %d, stderr:\n%s", code, stderr.String())
	}
	if stdout.Len() > 0 {
		t.Errorf("stdout: %q", stdout.String())
	}
}

// cancelOn cancels once a text is written to it. It is not safe for concurrent
// use; what a child process writes comes by a pipe of its own only if there is
// something, and then the test fails anyway.
type cancelOn struct {
	strings.Builder
	text   string
	cancel func()
}

func (c *cancelOn) Write(p []byte) (int, error) {
	if strings.Contains(string(p), c.text) {
		c.cancel()
	}
	return c.Builder.Write(p)
}

func TestMeasure(t *testing.T) {
	t.Parallel()
	t.Run("counts each call once", func(t *testing.T) {
		t.Parallel()
		p := &fakePlugin{}
		target := p.open(t, 3)
		for _, op := range []operation{opEncrypt, opDecrypt} {
			encrypts, decrypts := p.encrypts.Load(), p.decrypts.Load()
			m, err := measure(t.Context(), target, op, 4, 5*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			done := [2]int64{p.encrypts.Load() - encrypts, p.decrypts.Load() - decrypts}
			want := [2]int64{int64(len(m.latencies)), 0}
			if op == opDecrypt {
				want = [2]int64{0, want[0]}
			}
			if done != want || m.errors != 0 || m.firstErr != nil || int(m.hsmOps) != len(m.latencies) {
				t.Errorf("%s: the plugin saw %v, want %v; errors %d (%v), HSM operations %v", op, done, want, m.errors, m.firstErr, m.hsmOps)
			}
			if m.elapsed < 5*time.Millisecond || len(m.latencies) < 4 {
				t.Errorf("%s: %d calls in %v", op, len(m.latencies), m.elapsed)
			}
		}
	})
	t.Run("tells failed calls apart", func(t *testing.T) {
		t.Parallel()
		p := &fakePlugin{}
		target := p.open(t, 1)
		p.failing.Store(true)
		m, err := measure(t.Context(), target, opEncrypt, 2, time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if len(m.latencies) != 0 || m.errors < 2 || status.Code(m.firstErr) != codes.ResourceExhausted || m.perSecond() != 0 {
			t.Errorf("%d calls succeeded, %d failed, the first with %v; %v/s", len(m.latencies), m.errors, m.firstErr, m.perSecond())
		}
	})
	t.Run("checks what Decrypt returns", func(t *testing.T) {
		t.Parallel()
		p := &fakePlugin{}
		target := p.open(t, 1)
		p.lying.Store(true)
		m, err := measure(t.Context(), target, opDecrypt, 2, time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if len(m.latencies) != 0 || !errors.Is(m.firstErr, errWrongPlaintext) {
			t.Errorf("%d calls succeeded, the first error is %v", len(m.latencies), m.firstErr)
		}
	})
	t.Run("ends with its context", func(t *testing.T) {
		t.Parallel()
		opened := new(fakePlugin).open(t, 1)
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(10*time.Millisecond, func() { cancel(errors.New("enough")) })
		if _, err := measure(ctx, opened, opEncrypt, 2, time.Minute); err == nil {
			t.Error("an interrupted measurement has a result")
		}
	})
}

func TestOpenTargetRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		breaks func(*fakePlugin, *targetSpec)
		want   string
	}{
		{"a plugin that does not encrypt", func(p *fakePlugin, _ *targetSpec) { p.failing.Store(true) }, "encrypt: "},
		{"a plugin that decrypts wrongly", func(p *fakePlugin, _ *targetSpec) { p.lying.Store(true) }, "decrypt: the plugin returned another plaintext"},
		{"metrics that are not there", func(_ *fakePlugin, s *targetSpec) { s.metricsURL = "http://127.0.0.1:1/metrics" }, "read metrics: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := &fakePlugin{}
			spec := p.serve(t)
			tt.breaks(p, &spec)
			target, err := openTarget(t.Context(), spec, 1, "hsm_ops_total")
			if err == nil {
				target.close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q has no %q", err, tt.want)
			}
		})
	}
}

// A target with failed calls must not pass for a measurement.
func TestRunReportsFailedCalls(t *testing.T) {
	t.Parallel()
	p := &fakePlugin{}
	opened := p.open(t, 1)
	p.failing.Store(true)
	s := schedule{targets: []*target{opened}, callers: []int{1}, rounds: 1, duration: time.Millisecond}
	report, err := s.run(t.Context(), func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := report.failures(); err == nil || !strings.Contains(err.Error(), "fake: ") || !strings.Contains(err.Error(), "Encrypt calls by 1 callers did not succeed, the first with: ") {
		t.Errorf("failures: %v", err)
	}
	if report.Rows[1].Errors != 0 || report.Rows[1].Ratio.Median != 1 {
		t.Errorf("the Decrypts work, and yet: %+v", report.Rows[1])
	}
}

// Rounds start with one target after the other, in both directions, and leave none
// out.
func TestScheduleTakesTurns(t *testing.T) {
	t.Parallel()
	var targets []*target
	for _, name := range []string{"a", "b", "c"} {
		opened := new(fakePlugin).open(t, 1)
		opened.name = name
		targets = append(targets, opened)
	}
	s := schedule{targets: targets, callers: []int{1}}
	var got []string
	for round := range 4 {
		order := ""
		err := s.round(t.Context(), round, time.Microsecond, func(key cellKey, _ measurement) { order += key.target })
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, order)
	}
	if diff := cmp.Diff([]string{"abcabc", "acbacb", "cabcab", "cbacba"}, got); diff != "" {
		t.Errorf("order of the targets, Encrypt then Decrypt (-want +got):\n%s", diff)
	}
}
