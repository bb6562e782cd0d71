package secret

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// HardenProcess makes the process keep its memory to itself, for good:
//
//   - not dumpable: no core dump, no ptrace by the same user, and /proc/PID/mem
//     belongs to root
//   - RLIMIT_CORE 0, soft and hard, which child processes inherit
//   - no new privileges, on every thread: a set-uid program run from here gains
//     nothing. Child processes inherit it.
//   - close-on-exec for every descriptor but the standard three: what was left open
//     by whoever started the process reaches no child, which runs a vendor's code
//
// Every step is tried; the errors of those that did not work are joined.
// Calling it again changes nothing.
func HardenProcess() error {
	return errors.Join(
		step("make the process undumpable", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)),
		step("turn core dumps off", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})),
		step("give up new privileges", noNewPrivileges()),
		step("keep descriptors from child processes", closeOnExec()),
	)
}

func step(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// closeOnExec marks all descriptors from 3 on.
func closeOnExec() error {
	const first = 3
	if unix.CloseRange(first, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return nil
	}
	// Linux before 5.11, or a seccomp profile that does not know the call.
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, entry := range open {
		// The directory's own descriptor is among them, and closed by now.
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// noNewPrivileges sets no_new_privs on all threads. prctl reaches the calling
// thread only, the Go runtime has started others by the time main runs, and
// syscall.AllThreadsSyscall refuses to work in a program with cgo. seccomp's
// TSYNC copies the flag to all threads along with a filter, so a filter that
// allows everything is installed; the kernel caches such a verdict, so calls
// cost nothing more. SPEC_ALLOW keeps older kernels from turning speculation
// off for a process that has a filter.
func noNewPrivileges() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	on, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil {
		return err
	}
	if on == 1 { // by an earlier call, or by whoever started us
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	program := unix.SockFprog{Len: 1, Filter: &allow}
	stuck, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
		uintptr(unsafe.Pointer(&program))) //nolint:gosec // G103: seccomp takes a pointer
	if errno != 0 {
		return fmt.Errorf("reach the other threads through seccomp: %w", errno)
	}
	if stuck != 0 {
		return fmt.Errorf("reach the other threads through seccomp: thread %d has a filter of its own", stuck)
	}
	return nil
}
