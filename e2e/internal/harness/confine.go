package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Confinement is how a daemon runs when not as the test itself does.
type Confinement struct {
	// UID is its user and group, without other groups and without any capability.
	UID int
	// Memlock is RLIMIT_MEMLOCK in bytes, soft and hard.
	Memlock uint64
	// Filter is a seccomp program; none where it is empty. It comes with
	// no_new_privs, as it does in a pod.
	Filter []unix.SockFilter `json:",omitempty"`
	// Env is added to its environment.
	Env []string `json:",omitempty"`
	// Trace, if not empty, is a file that strace writes all system calls to.
	Trace string
}

// InheritedFile is open in every confined daemon, without close-on-exec, when it
// starts.
const InheritedFile = "/etc/passwd"

// confineArgument marks the test binary's call of itself.
const confineArgument = "harness-confine"

// Confined turns the process into the confined program if Confine has started it,
// and returns otherwise. TestMain calls it first.
func Confined() {
	if len(os.Args) < 4 || os.Args[1] != confineArgument {
		return
	}
	var c Confinement
	err := json.Unmarshal([]byte(os.Args[2]), &c)
	if err == nil {
		err = c.become(os.Args[3:])
	}
	_, _ = fmt.Fprintln(os.Stderr, "confine:", err)
	os.Exit(1)
}

// become gives up what the confinement lacks, and runs the program in this process.
func (c Confinement) become(args []string) error {
	runtime.LockOSThread() // the filter is the thread's, and execve keeps the caller's
	for capability := range uintptr(unix.CAP_LAST_CAP + 1) {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", capability, err)
		}
	}
	// Whatever the test's own limit is, so that kekd's is seen to be kekd's.
	core := unix.Rlimit{}
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil {
		return err
	}
	core.Cur = core.Max
	if err := errors.Join(
		unix.Setrlimit(unix.RLIMIT_CORE, &core),
		unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: c.Memlock, Max: c.Memlock}),
		syscall.Setgroups(nil), syscall.Setresgid(c.UID, c.UID, c.UID), syscall.Setresuid(c.UID, c.UID, c.UID),
		// A change of the user has cleared it.
		unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0),
	); err != nil {
		return err
	}
	// Where a core would be written to, and could.
	if err := os.Chdir(filepath.Dir(args[0])); err != nil {
		return err
	}
	// What a careless service manager leaves open for kekd.
	if _, err := unix.Open(InheritedFile, unix.O_RDONLY, 0); err != nil {
		return fmt.Errorf("open a file for the program: %w", err)
	}
	if len(c.Filter) > 0 {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
		program := unix.SockFprog{Len: uint16(len(c.Filter)), Filter: &c.Filter[0]}                                       //nolint:gosec // G115: the kernel takes 4096
		_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program))) //nolint:gosec // G103: seccomp takes a pointer
		if errno != 0 {
			return fmt.Errorf("install the filter: %w", errno)
		}
	}
	return fmt.Errorf("run %s: %w", args[0], syscall.Exec(args[0], args, append(os.Environ(), c.Env...))) //nolint:gosec // G204: running programs is its job
}

// Confine makes the daemon, and kekctl on its node, run so from the next start on.
// It gives the daemon's and the token's files to the user. The test must be root's.
func (k *Kekd) Confine(tb testing.TB, c Confinement) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatal("run this as root: kekd runs as another user, whose memory the test reads")
	}
	// A checkout may stand where the user can't go.
	kekd := copyProgram(tb, KekdBinary(tb), filepath.Join(filepath.Dir(k.config), "kekd"))
	k.confine = &c
	k.service.path, k.service.args = confined(tb, c, kekd, "serve", "--config", k.config)
	if c.Trace != "" {
		strace, err := exec.LookPath("strace")
		if err != nil {
			tb.Fatalf("%v: install strace", err)
		}
		// -DD: strace is no parent of the daemon's and not of its group, so that
		// signals and exit codes are the daemon's.
		k.service.args = append([]string{"-DD", "-A", "-f", "-qq", "-o", c.Trace, k.service.path}, k.service.args...)
		k.service.path = strace
	}
	k.own(tb)
}

// own gives the files to the user that the daemon is confined to.
func (k *Kekd) own(tb testing.TB) {
	tb.Helper()
	if k.confine == nil {
		return
	}
	for _, dir := range []string{filepath.Dir(k.config), filepath.Dir(k.Token.Conf)} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, k.confine.UID, k.confine.UID) //nolint:gosec // G122: directories of the test's own
		})
		if err != nil {
			tb.Fatalf("give files to user %d: %v", k.confine.UID, err)
		}
	}
}

// Command runs kekctl on the daemon's node, as the daemon's user, to its end. A
// failure ends the test.
func (k *Kekd) Command(tb testing.TB, args ...string) {
	tb.Helper()
	args = append([]string{"--config", k.config}, args...)
	path := KekctlBinary(tb)
	if k.confine != nil {
		c := Confinement{UID: k.confine.UID, Memlock: k.confine.Memlock}
		copied := filepath.Join(filepath.Dir(k.config), "kekctl")
		if _, err := os.Stat(copied); err != nil {
			copyProgram(tb, path, copied)
		}
		path, args = confined(tb, c, copied, args...)
	}
	command(tb, nil, path, args...)
}

// RunConfined runs a program under a confinement to its end, and returns what it
// printed. A failure ends the test.
func RunConfined(tb testing.TB, c Confinement, program string, args ...string) string {
	tb.Helper()
	dir := shortDir(tb)
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // G302: the user must get in
		tb.Fatalf("open a directory: %v", err)
	}
	path, all := confined(tb, c, copyProgram(tb, program, filepath.Join(dir, "program")), args...)
	out, err := exec.CommandContext(tb.Context(), path, all...).CombinedOutput() //nolint:gosec // G204: running programs is its job
	if err != nil {
		tb.Fatalf("run %s: %v\n%s", program, err, out)
	}
	return string(out)
}

// confined is the command that runs a program under a confinement.
func confined(tb testing.TB, c Confinement, program string, args ...string) (path string, all []string) {
	tb.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		tb.Fatalf("spell the confinement: %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		tb.Fatalf("find the test's own program: %v", err)
	}
	return self, append([]string{confineArgument, string(text), program}, args...)
}

func copyProgram(tb testing.TB, from, to string) string {
	tb.Helper()
	in, err := os.Open(from) //nolint:gosec // G304: a program under test
	if err != nil {
		tb.Fatalf("copy a program: %v", err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755) //nolint:gosec // G302, G304: a program in a directory of its own
	if err == nil {
		_, err = io.Copy(out, in)
		err = errors.Join(err, out.Close())
	}
	if err != nil {
		tb.Fatalf("copy a program: %v", err)
	}
	return to
}

// PID is the running daemon's process id.
func (k *Kekd) PID() int { return k.service.run.pid }

// WorkerPID waits until the daemon is ready with one HSM worker, other than those
// given, and returns its process id.
func (k *Kekd) WorkerPID(tb testing.TB, others ...int) int {
	tb.Helper()
	var pid int
	Eventually(tb, kekdReadyWithin, "kekd has an HSM worker", func(ctx context.Context) error {
		if err := k.Ready(ctx); err != nil {
			return err
		}
		pids := k.service.children()
		if len(pids) != 1 || slices.Contains(others, pids[0]) {
			return fmt.Errorf("kekd has the children %v, want one beside %v", pids, others)
		}
		pid = pids[0]
		return nil
	})
	return pid
}

// Workers are the process ids of the daemon's children that live now.
func (k *Kekd) Workers() []int { return k.service.children() }

// AwaitHalted waits until a process that got SIGSTOP stands still with all its threads.
func AwaitHalted(tb testing.TB, pid int) {
	tb.Helper()
	Eventually(tb, killedWithin, "the process stands still", func(context.Context) error { return halted(pid) })
}

// Signal sends a signal to the daemon alone.
func (k *Kekd) Signal(tb testing.TB, sig syscall.Signal) {
	tb.Helper()
	k.service.signal(tb, sig)
}

// AwaitExit waits until the daemon has ended, however, and its worker with it.
func (k *Kekd) AwaitExit(tb testing.TB, within time.Duration) *os.ProcessState {
	tb.Helper()
	k.service.awaitExit(tb, within)
	k.service.awaitGroupGone(tb)
	return k.service.run.state
}

// Log is all that the daemon has printed so far, over all its starts.
func (k *Kekd) Log(tb testing.TB) string { return readFile(tb, k.service.log) }

// Dir is the directory of the daemon's files: configuration, state, socket.
func (k *Kekd) Dir() string { return filepath.Dir(k.config) }

// Get returns the status and the body of a path of the HTTP endpoint.
func (k *Kekd) Get(ctx context.Context, path string) (status int, body string, err error) {
	if err := k.service.alive(); err != nil {
		return 0, "", err
	}
	return get(ctx, http.DefaultClient, k.URL+path)
}

// PIN is the token's.
func (t *Token) PIN() string { return t.pin }

// WritePIN changes what the daemon's PIN file holds, and not the token's PIN.
func (t *Token) WritePIN(tb testing.TB, content string) {
	tb.Helper()
	if err := os.WriteFile(t.PINFile, []byte(content), 0o600); err != nil { // which keeps its owner
		tb.Fatalf("write the PIN file: %v", err)
	}
}
