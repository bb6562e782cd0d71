package secret

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// hardenChild asks a copy of the test binary to harden itself: it cannot be
// undone, so it is not for the process that runs the other tests.
const hardenChild = "SECRET_TEST_HARDEN"

func TestMain(m *testing.M) {
	if os.Getenv(hardenChild) != "" {
		if err := hardenAndLook(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestHardenProcess(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), self)
	child.Env = append(os.Environ(), hardenChild+"=1")
	if out, err := child.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// hardenAndLook starts threads, hardens twice and then looks at what the kernel
// says, thread by thread.
func hardenAndLook() error {
	const threads = 4
	var wg sync.WaitGroup
	ready, leave := make(chan struct{}, threads), make(chan struct{})
	defer wg.Wait()
	defer close(leave)
	for range threads {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ready <- struct{}{}
			<-leave
		})
	}
	for range threads {
		<-ready
	}
	if n, err := filters(); err != nil || n != "0" {
		return fmt.Errorf("before: %s seccomp filters, want 0: %w", n, err)
	}
	// As whoever starts kekd may leave one behind.
	inherited, err := unix.Open("/dev/null", unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(HardenProcess(), HardenProcess()); err != nil {
		return err
	}
	if n, err := filters(); err != nil || n != "1" {
		return fmt.Errorf("after two calls: %s seccomp filters, want 1: %w", n, err)
	}
	if flags, err := unix.FcntlInt(uintptr(inherited), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		return fmt.Errorf("an inherited descriptor has flags %#x, want FD_CLOEXEC: %w", flags, err)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || dumpable != 0 {
		return fmt.Errorf("dumpable = %d, want 0: %w", dumpable, err)
	}
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil || core != (unix.Rlimit{}) {
		return fmt.Errorf("RLIMIT_CORE = %+v, want zeros: %w", core, err)
	}
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(tasks) <= threads {
		return fmt.Errorf("found %d threads, want more than %d: %w", len(tasks), threads, err)
	}
	for _, task := range tasks {
		if flag, err := field(task, "NoNewPrivs"); err != nil || flag != "1" {
			return fmt.Errorf("%s: NoNewPrivs = %q, want 1: %w", task, flag, err)
		}
	}
	return nil
}

func filters() (string, error) { return field("/proc/self/status", "Seccomp_filters") }

func field(path, name string) (string, error) {
	status, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("%s has no %s", path, name)
}
