package outages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

func TestWorkerKilledInALoop(t *testing.T) {
	t.Parallel()
	const lasts, every = 20 * time.Second, 50 * time.Millisecond
	n := started(t, harness.NewToken(t), harness.KekdOptions{})
	protect(t, n.Token)
	met := map[int]bool{}
	tick := time.NewTicker(every)
	defer tick.Stop()
	asked := time.Now()
	for end := time.Now().Add(lasts); time.Now().Before(end); <-tick.C {
		for _, pid := range n.Workers() {
			met[pid] = true
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone already
		}
		if time.Since(asked) > time.Second {
			n.expect(t, "OK", "OK", "OK", ".*")
			asked = time.Now()
		}
	}
	ready := n.awaitState(t, "ready", "")
	// The pause grows to most of a second.
	if len(met) < 3 || len(met) > 80 {
		t.Errorf("%d workers were started in %v, want 3 to 80", len(met), lasts)
	}
	n.logged(t, `"hsm worker replaced".*"in_a_row":[0-9]+`)
	if got := n.Metrics(t).Sum("kekd_hsm_worker_restarts_total", nil); got == 0 {
		t.Error("the metrics tell of no restart")
	}
	n.back(t)
	t.Logf("%d workers in %v", len(met), lasts)
	result(20, "Worker killed every 50 ms for 20 s", fmt.Sprintf("Status, Encrypt and warm Decrypts are served throughout (coasting); cold Decrypts fail at once; %d workers were started", len(met)), after(ready))
}

// A worker that is stopped for a minute is not waited for.
func TestWorkerStopped(t *testing.T) {
	t.Parallel()
	const callTimeout = 10 * time.Second
	n := started(t, harness.NewToken(t), harness.KekdOptions{CallTimeout: callTimeout})
	pid := n.WorkerPID(t)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	n.await(t, callTimeout, "OK", "OK", "OK", "(Unavailable|DeadlineExceeded): .*")
	n.seal(t)
	n.logged(t, `"hsm call never returned, killing the worker"`)
	n.awaitState(t, "ready", "")
	for _, p := range n.Workers() {
		if p == pid {
			t.Error("the stopped worker is still there")
		}
	}
	took := time.Since(stopped)
	if took > callTimeout+soon {
		t.Errorf("ready %v after the SIGSTOP, want about %v", took, callTimeout)
	}
	n.back(t)
	result(21, "Worker stopped by SIGSTOP (60 s or for ever)", "Status, Encrypt and warm Decrypts are served; cold Decrypts run into the caller's deadline; the worker is killed after `hsm.callTimeout` (10 s) and replaced", fmt.Sprintf("%.1f s after the signal", took.Seconds()))
}

// The kernel kills a worker whose module eats up the memory, and not the parent.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	limited := memoryCgroup(t, 192<<20)
	token := harness.NewToken(t).WithFaults(t)
	n := newNode(t, token, harness.KekdOptions{})
	n.Start(t)
	if limited != "" { // what it starts from now on as well
		if err := os.WriteFile(filepath.Join(limited, "cgroup.procs"), []byte(strconv.Itoa(n.PID())), 0o600); err != nil {
			t.Fatalf("limit the memory of kekd: %v", err)
		}
	}
	n.awaitState(t, "ready", "")
	n.warmUp(t)
	score := func(pid int) int {
		v, err := strconv.Atoi(strings.TrimSpace(readFile(t, fmt.Sprintf("/proc/%d/oom_score_adj", pid))))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	pid := n.WorkerPID(t)
	if parent, worker := score(n.PID()), score(pid); worker < min(parent+100, 1000) {
		t.Errorf("oom_score_adj is %d for the parent and %d for the worker, want the worker ahead", parent, worker)
	}
	// One worker may have gone before the limit was there; this one has it.
	n.KillWorker(t)
	pid = n.WorkerPID(t, pid)
	if limited != "" {
		token.Faults(t, "C_EncryptInit leak=64 n=4")
	} else {
		t.Log("no memory cgroup can be made here: the worker gets the signal that the kernel would send")
		n.KillWorker(t)
	}
	var gone time.Time
	harness.Eventually(t, soon, "the worker is killed", func(ctx context.Context) error {
		if err := unlike(n.answers(ctx), []string{"OK", "OK", "OK", ".*"}); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			return fmt.Errorf("worker %d lives", pid)
		}
		gone = time.Now()
		return nil
	})
	token.Faults(t)
	n.awaitState(t, "ready", "")
	n.WorkerPID(t, pid)
	ready := time.Since(gone)
	n.logged(t, `the worker ended: signal: killed`)
	n.back(t)
	result(22, "Worker killed by the kernel for lack of memory", "Status, Encrypt and warm Decrypts are served; the worker goes first, not the parent", after(ready))
}

// memoryCgroup makes a cgroup with a limit in bytes, which goes when the test's
// processes have; empty where none can be made, as in most containers.
func memoryCgroup(t *testing.T, limit int64) string {
	t.Helper()
	for root, file := range map[string]string{"/sys/fs/cgroup": "memory.max", "/sys/fs/cgroup/memory": "memory.limit_in_bytes"} {
		dir := filepath.Join(root, fmt.Sprintf("kekd-outages-%d", os.Getpid()))
		if os.Mkdir(dir, 0o700) != nil {
			continue
		}
		// Not O_CREATE: the kernel has made it, or this is no cgroup that controls memory.
		f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(strconv.FormatInt(limit, 10))
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			_ = os.Remove(dir)
			continue
		}
		t.Cleanup(func() {
			err := os.Remove(dir)
			for end := time.Now().Add(soon); err != nil && time.Now().Before(end); err = os.Remove(dir) {
				time.Sleep(50 * time.Millisecond) // the last process is going
			}
			if err != nil {
				t.Errorf("remove the cgroup: %v", err)
			}
		})
		return dir
	}
	return ""
}
