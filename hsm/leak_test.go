package hsm_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"kekd/hsm"
	"kekd/hsm/hsmtest"
	"kekd/hsm/worker"
)

// openFiles counts this process's file descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// Nothing of a worker outlives Close, however it ends. Not parallel, since it
// counts what belongs to the whole process.
func TestNothingIsLeftBehind(t *testing.T) {
	newRig(t, nil).token.Close() // the runtime opens files of its own with the first socket
	for _, c := range []struct {
		name string
		use  func(t *testing.T, r *rig)
	}{
		{"idle", func(*testing.T, *rig) {}},
		{"killed", func(t *testing.T, r *rig) {
			must(t, syscall.Kill(r.token.WorkerPID(), syscall.SIGKILL))
		}},
		{"replaced many times", func(t *testing.T, r *rig) {
			for range 3 {
				r.faults(t, "C_Encrypt crash n=1")
				eventually(t, "it works", func() bool { return r.wrap(t.Context()) == nil })
			}
		}},
		{"a call hangs", func(t *testing.T, r *rig) {
			r.faults(t, "C_Encrypt hang")
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if r.wrap(ctx) == nil {
				t.Error("it did not hang")
			}
		}},
		{"starting", func(t *testing.T, r *rig) {
			must(t, syscall.Kill(r.token.WorkerPID(), syscall.SIGKILL))
			eventually(t, "the worker's end is noticed", func() bool { return r.token.WorkerPID() == 0 })
			r.faults(t, "C_Initialize hang")
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if r.wrap(ctx) == nil {
				t.Error("it did not hang")
			}
		}},
		{"the start failed", func(t *testing.T, r *rig) {
			must(t, os.Rename(r.Config.Module, r.Config.Module+".away"))
			for range 3 {
				if r.keys(t.Context()) == nil {
					t.Error("it found the token")
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			goroutines := goleak.IgnoreCurrent()
			files := openFiles(t)
			r := newRig(t, nil, impatient)
			pids := []int{r.token.WorkerPID()}
			c.use(t, r)
			pids = append(pids, r.token.WorkerPID())
			r.token.Close()
			if err := r.wrap(t.Context()); err == nil {
				t.Error("a call after Close succeeded")
			}
			for _, pid := range pids {
				if pid != 0 {
					eventually(t, fmt.Sprintf("worker %d is gone", pid), func() bool { return gone(pid) })
				}
			}
			goleak.VerifyNone(t, goroutines)
			if now := openFiles(t); now != files {
				t.Errorf("%d open files, %d before", now, files)
			}
		})
	}
}

// The worker has the variables of hsm.env and no others: those of kekd may hold
// what a vendor's code should not see.
func TestWorkerEnvironment(t *testing.T) {
	t.Setenv("KEKD_TEST_SECRET", "not for the module") // so this is not parallel
	f := hsmtest.NewFake(t, nil)
	seen := filepath.Join(t.TempDir(), "environ")
	self, err := os.Executable()
	must(t, err)
	token := f.Open(t, func(c *hsm.Config) {
		c.Env = map[string]string{"VENDOR_CONF": "/etc/vendor.conf", "EMPTY": ""}
		c.Command = func() *exec.Cmd {
			// The shell shows the environment that it was started with.
			return exec.Command("/bin/sh", "-c", `/bin/cat /proc/$$/environ > "$1" && exec "$2" "$3"`, "sh", seen, self, worker.Arg)
		}
	})
	_, err = token.Keys(t.Context())
	must(t, err)
	b, err := os.ReadFile(seen)
	must(t, err)
	got := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
	slices.Sort(got)
	if diff := cmp.Diff([]string{"EMPTY=", "VENDOR_CONF=/etc/vendor.conf"}, got); diff != "" {
		t.Errorf("the worker's environment (-want +got):\n%s", diff)
	}
}
