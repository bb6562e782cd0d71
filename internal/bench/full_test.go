package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The whole of bench report, with everything as small as it can be: what it
// measures is not looked at, but that it measures all of it, and that no warm
// request of seeded kekd reaches the HSM.
func TestReport(t *testing.T) {
	t.Parallel()
	// Not t.TempDir: with the test's name in it the path may pass 107 bytes.
	dir, err := os.MkdirTemp("", "kekd-bench")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	bin := filepath.Join(dir, "bin") + "/"
	command(t, "go", "build", "-o", bin, "kekd/cmd/kekd", "kekd/cmd/kekctl", "kekd/internal/bench/cmd/...")
	root := filepath.Join("..", "..")
	command(t, "make", "-s", "-C", root, "bin/kekd-faults.so")

	var stdout, stderr strings.Builder
	stored := filepath.Join(dir, "report.json")
	code := run(t.Context(), []string{
		"report", "-kekd", bin + "kekd", "-kekctl", bin + "kekctl", "-noop", bin + "noop", "-naive", bin + "naive",
		"-faults", filepath.Join(root, "bin", "kekd-faults.so"), "-dir", filepath.Join(dir, "t"), "-json", stored,
		"-rounds", "1", "-duration", "5ms", "-callers", "1,2", "-latencies", "0,1", "-seeds", "3,5", "-cold-rounds", "1", "-starts", "1", "-status", "5ms",
	}, &stdout, &stderr)
	if code != exitOK {
		t.Fatalf("exit code %d\n%s", code, stderr.String())
	}
	if strings.Contains(stderr.String(), "warning") {
		t.Errorf("a plugin did not end well:\n%s", stderr.String())
	}
	r, err := loadReport(stored)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(r.Rows), 2*2*2*5; got != want {
		t.Errorf("%d rows, want %d", got, want)
	}
	for _, row := range r.Rows {
		if row.Errors != 0 || row.Calls == 0 {
			t.Errorf("%+v", row)
		}
	}
	for _, o := range r.Operations {
		crypt := int(o.ByModule["C_EncryptInit"] + o.ByModule["C_DecryptInit"])
		switch {
		case o.Requests == 0:
			t.Errorf("%s: no requests", o.Target)
		case o.Target == seededName && o.ByKekd["wrap"]+o.ByKekd["unwrap"] != 0:
			t.Errorf("warm requests of seeded kekd reached the HSM: %v", o.ByKekd)
		case o.Target != seededName && crypt < o.Requests:
			t.Errorf("%s: %d operations for %d requests", o.Target, crypt, o.Requests)
		}
	}
	for _, c := range r.Cold {
		if c.Cold.HSMOperations < c.Seeds || c.Warm.HSMOperations >= c.Seeds || c.Naive.HSMOperations != c.Seeds {
			t.Errorf("a cold cache of %d seeds: %+v", c.Seeds, c)
		}
	}
	if len(r.Operations) != 3 || len(r.Cold) != 4 || len(r.Status) != 10 || len(r.Starts) != 8 || len(r.Memory) != 5 {
		t.Errorf("parts: %d, %d, %d, %d, %d", len(r.Operations), len(r.Cold), len(r.Status), len(r.Starts), len(r.Memory))
	}
	if i := slices.IndexFunc(r.Memory, func(f footprint) bool { return f.Target == seededName }); i < 0 || r.Memory[i].Worker == nil {
		t.Errorf("no memory of kekd's worker: %+v", r.Memory)
	}
	if !strings.Contains(stdout.String(), "Aim at 8 and more callers") {
		t.Errorf("no verdict in:\n%s", stdout.String())
	}
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}
