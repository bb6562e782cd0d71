package main

import (
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	t.Parallel()
	// The name of a program may hold brackets and spaces.
	const line = "42 (a b) c) S 7 42 42 0 -1 4194304 100 0 0 0 250 50 9 9 20 0 8 0 100 1 2"
	got, err := parseStat(line)
	if err != nil || got != (procStat{parent: 7, cpu: 3 * time.Second}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "42 (x) S 7", "42 (x) S seven 42 42 0 -1 4194304 100 0 0 0 250 50", "42 x S 7 1 2 3 4 5 6 7 8 9 10 11 12"} {
		if got, err := parseStat(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, got)
		}
	}
}

func TestParseStatus(t *testing.T) {
	t.Parallel()
	got, err := parseStatus("Name:\tkekd\nVmPeak:\t 9 kB\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\nThreads:\t8\n")
	if err != nil || got != (memory{Now: 1 << 20, Peak: 2 << 20}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "VmRSS:\t 1 kB\n", "VmRSS:\t x kB\nVmHWM:\t 1 kB\n"} {
		if got, err := parseStatus(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, got)
		}
	}
}

func TestOwnProcess(t *testing.T) {
	t.Parallel()
	m, err := memoryOf(os.Getpid())
	if err != nil || m.Now <= 0 || m.Peak < m.Now/2 {
		t.Errorf("memory %+v, %v", m, err)
	}
	before, err := cpuOf([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	// A process that computes uses processor time, sooner or later.
	deadline := time.Now().Add(30 * time.Second)
	for after := before; after < before+3*clockTick; {
		if time.Now().After(deadline) {
			t.Fatalf("processor time went from %v to %v", before, after)
		}
		if after, err = cpuOf([]int{os.Getpid()}); err != nil {
			t.Fatal(err)
		}
	}

	child := exec.CommandContext(t.Context(), "/bin/cat")
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	children, err := childrenOf(os.Getpid())
	if err != nil || !slices.Contains(children, child.Process.Pid) {
		t.Errorf("children %v, %v; want %d among them", children, err, child.Process.Pid)
	}
	if err := stdin.Close(); err != nil {
		t.Error(err)
	}
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := cpuOf([]int{child.Process.Pid}); err == nil {
		t.Error("a process that is gone has processor time")
	}
}
