// Package inventory shows kekctl inventory at work on a real etcd: its counts, its
// time and memory at size, and that it takes for readable what kube-apiserver does.
package inventory

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// report is what the tests read of kekctl inventory -o json.
type report struct {
	Seconds   float64
	Compacted int
	Resumed   int
	Stores    []struct{ Endpoint string }
	Objects   int
	Resources []struct {
		Resource string
		Objects  int
		Counts   []struct {
			standing
			Objects int
		}
	}
	Unparsable []struct{ Key, Problem string }
}

type standing struct{ Class, Provider, KeyID string }

// counts are the objects of a report by resource and standing.
func (r report) counts() map[string]map[standing]int {
	counts := map[string]map[standing]int{}
	for _, resource := range r.Resources {
		counts[resource.Resource] = map[standing]int{}
		for _, c := range resource.Counts {
			counts[resource.Resource][c.standing] = c.Objects
		}
	}
	return counts
}

// usage is what a process needed.
type usage struct {
	wall    time.Duration
	cpu     time.Duration
	peakKiB int
}

// kekctl runs kekctl inventory to its end.
func kekctl(t testing.TB, args ...string) (stdout, stderr string, used usage, err error) {
	t.Helper()
	return run(t, harness.KekctlBinary(t), args...)
}

func run(t testing.TB, path string, args ...string) (stdout, stderr string, used usage, err error) {
	t.Helper()
	var out, notes bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, append([]string{"inventory"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &notes
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	peak := make(chan int)
	go func() { peak <- watchPeak(cmd.Process.Pid) }()
	err = cmd.Wait()
	used = usage{time.Since(begun), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), <-peak}
	return out.String(), notes.String(), used, err
}

// watchPeak returns the largest VmHWM that it saw of a process. The kernel's
// ru_maxrss is of no use: a process begins with its parent's.
func watchPeak(pid int) int {
	peak := 0
	for {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return peak // it was waited for
		}
		for line := range strings.Lines(string(status)) {
			var kib int
			if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
				peak = max(peak, kib)
			}
		}
		time.Sleep(2 * time.Millisecond) // a sampling rate; nothing is waited for
	}
}

// mustInventory returns the report on a store.
func mustInventory(t *testing.T, args ...string) (report, usage) {
	t.Helper()
	return mustInventoryOf(t, harness.KekctlBinary(t), args...)
}

// mustInventoryOf returns the report that the kekctl at a path makes.
func mustInventoryOf(t testing.TB, path string, args ...string) (report, usage) {
	t.Helper()
	stdout, stderr, used, err := run(t, path, append(args, "-o", "json")...)
	if err != nil {
		t.Fatalf("kekctl inventory: %v\n%s", err, stderr)
	}
	var r report
	if err := json.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatalf("read the report: %v\n%s", err, stdout)
	}
	return r, used
}

// mustFail returns what kekctl says when it fails with exit code 1.
func mustFail(t *testing.T, args ...string) (stderr string, used usage) {
	t.Helper()
	stdout, stderr, used, err := kekctl(t, args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || stdout != "" {
		t.Fatalf("kekctl inventory ended with %v, want exit code 1\n%s\n%s", err, stdout, stderr)
	}
	return stderr, used
}
