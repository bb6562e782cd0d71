package harness

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	// logTail is how much of a log is shown when its test failed, in bytes.
	logTail = 4 << 10
	// killedWithin bounds what the kernel needs to end a process.
	killedWithin = 10 * time.Second
)

// service is a program that a test starts and stops, several times perhaps. All
// its output goes to one file, unless stdout has one of its own.
type service struct {
	name   string
	path   string
	args   []string
	env    []string // added to the test's own environment
	log    string
	stdout string // a file; empty for the log
	// stderr, if not nil, takes standard error in place of the log.
	stderr *os.File

	run *run // the newest run, nil before the first
}

// run is one life of a service.
type run struct {
	pid    int
	exited chan struct{}    // closed when it was waited for
	state  *os.ProcessState // readable once exited is closed
}

func newService(tb testing.TB, name, path string, args, env []string) *service {
	tb.Helper()
	s := &service{name: name, path: path, args: args, env: env, log: logFile(tb, name)}
	tb.Cleanup(func() {
		s.endGroup()
		if tb.Failed() {
			tb.Logf("end of the log of %s:\n%s", s.name, tail(s.log))
		}
	})
	return s
}

// logFile makes a fresh file for the log of one service of one test. It goes
// with the test, unless the environment names a directory to keep logs in.
func logFile(tb testing.TB, name string) string {
	tb.Helper()
	dir := os.Getenv("KEKD_E2E_LOGS")
	if dir == "" {
		dir = tb.TempDir()
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		tb.Fatalf("make the directory KEKD_E2E_LOGS: %v", err)
	}
	f, err := os.CreateTemp(dir, strings.ReplaceAll(tb.Name(), "/", "-")+"-"+name+"-*.log")
	if err != nil {
		tb.Fatalf("make a log file: %v", err)
	}
	defer func() { _ = f.Close() }()
	return f.Name()
}

// start runs the program. It must not be running.
func (s *service) start(tb testing.TB) {
	tb.Helper()
	if s.running() {
		tb.Fatalf("start %s: it runs already, pid %d", s.name, s.run.pid)
	}
	log := appendTo(tb, s.log)
	defer func() { _ = log.Close() }()
	_, _ = fmt.Fprintf(log, "--- start of %s at %s\n", s.name, time.Now().Format(time.RFC3339Nano))

	cmd := exec.Command(s.path, s.args...) //nolint:gosec // G204: running programs is its job
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Stdout, cmd.Stderr = log, log
	if s.stderr != nil {
		cmd.Stderr = s.stderr
	}
	if s.stdout != "" {
		out := appendTo(tb, s.stdout)
		defer func() { _ = out.Close() }()
		cmd.Stdout = out
	}
	// Its own group, so that what it starts can be found and ended with it.
	// Pdeathsig covers the test binary's own death, a timeout's panic included.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	r := &run{exited: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// Pdeathsig fires when the thread that started the child ends, so this
		// goroutine keeps its thread for as long as the child lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			r.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // the state below says it all
		r.state = cmd.ProcessState
		close(r.exited)
	}()
	if err := <-started; err != nil {
		tb.Fatalf("start %s: %v", s.name, err)
	}
	s.run = r
}

// appendTo opens a file to write at its end.
func appendTo(tb testing.TB, path string) *os.File {
	tb.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // G304: a file that the harness made
	if err != nil {
		tb.Fatalf("open the output of a program: %v", err)
	}
	return f
}

// running tells whether the program was started and has not ended. Its children
// do not count.
func (s *service) running() bool {
	if s.run == nil {
		return false
	}
	select {
	case <-s.run.exited:
		return false
	default:
		return true
	}
}

// alive is nil while the program runs, and hopeless to wait for otherwise.
func (s *service) alive() error {
	if s.running() {
		return nil
	}
	if s.run == nil {
		return fmt.Errorf("%s was not started: %w", s.name, ErrHopeless)
	}
	return fmt.Errorf("%s ended, %v: %w", s.name, s.run.state, ErrHopeless)
}

// signal sends sig to the program alone, not to its children.
func (s *service) signal(tb testing.TB, sig syscall.Signal) {
	tb.Helper()
	if !s.running() {
		tb.Fatalf("send %v to %s: it does not run", sig, s.name)
	}
	// The process is not waited for yet, or a moment ago was not: the pid cannot
	// have gone to another within that moment.
	if err := syscall.Kill(s.run.pid, sig); err != nil {
		tb.Fatalf("send %v to %s: %v", sig, s.name, err)
	}
}

// halted returns an error while a thread of the program is not stopped.
func (s *service) halted() error { return halted(s.run.pid) }

// halted returns an error while a thread of a process is not stopped.
func halted(pid int) error {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return err
	}
	for _, path := range stats {
		stat, err := os.ReadFile(path) //nolint:gosec // G304: of /proc
		if err != nil {
			return err
		}
		// pid (name) state ...; the name may hold anything.
		if state := stat[bytes.LastIndexByte(stat, ')')+2]; state != 'T' {
			return fmt.Errorf("%s has the state %c, want T", path, state)
		}
	}
	return nil
}

// kill ends the program with SIGKILL, then requires that its children go too: a
// crash may leave nothing behind.
func (s *service) kill(tb testing.TB) {
	tb.Helper()
	s.signal(tb, syscall.SIGKILL)
	s.awaitExit(tb, killedWithin)
	s.awaitGroupGone(tb)
}

// stop ends the program with SIGTERM and requires that it exits with status 0
// in time and leaves no child.
func (s *service) stop(tb testing.TB, within time.Duration) time.Duration {
	tb.Helper()
	start := time.Now()
	s.signal(tb, syscall.SIGTERM)
	s.awaitExit(tb, within)
	if !s.run.state.Success() {
		tb.Fatalf("stop %s: %v", s.name, s.run.state)
	}
	took := time.Since(start)
	s.awaitGroupGone(tb)
	return took
}

func (s *service) awaitExit(tb testing.TB, within time.Duration) {
	tb.Helper()
	select {
	case <-s.run.exited:
	case <-time.After(within):
		tb.Fatalf("%s still runs %v after the signal to end", s.name, within)
	}
}

func (s *service) awaitGroupGone(tb testing.TB) {
	tb.Helper()
	deadline := time.Now().Add(killedWithin)
	for {
		left := group(s.run.pid)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("%s ended and left the processes %v", s.name, left)
		}
		time.Sleep(pollInterval)
	}
}

// endGroup ends the program and all its children, whatever state they are in.
// It is for cleaning up and reports nothing.
func (s *service) endGroup() {
	if s.run == nil {
		return
	}
	if s.running() {
		_ = syscall.Kill(s.run.pid, syscall.SIGKILL)
		<-s.run.exited
	}
	// While a member lives the group's number cannot be given to another process.
	for _, pid := range group(s.run.pid) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// children lists the living processes of the program's group without itself.
func (s *service) children() []int {
	var pids []int
	for _, pid := range group(s.run.pid) {
		if pid != s.run.pid {
			pids = append(pids, pid)
		}
	}
	return pids
}

// group lists the living members of a process group. Zombies are no members:
// orphans wait for an init that may never collect them in a container.
func group(pgid int) []int {
	dirs, _ := filepath.Glob("/proc/[0-9]*/stat")
	var pids []int
	for _, path := range dirs {
		stat, err := os.ReadFile(path) //nolint:gosec // G304: a file of /proc
		if err != nil {
			continue // it ended since
		}
		// pid (comm) state ppid pgrp …; comm may hold spaces and parentheses.
		end := bytes.LastIndexByte(stat, ')')
		fields := strings.Fields(string(stat[end+1:]))
		if len(fields) < 3 || fields[0] == "Z" || fields[0] == "X" || fields[2] != strconv.Itoa(pgid) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// logged tells whether the log holds the text.
func (s *service) logged(text string) bool {
	b, err := os.ReadFile(s.log)
	return err == nil && bytes.Contains(b, []byte(text))
}

// tail returns the end of a file, cut to whole lines.
func tail(path string) string {
	b, err := os.ReadFile(path) //nolint:gosec // G304: a file that the harness made
	if err != nil {
		return err.Error()
	}
	if len(b) > logTail {
		b = b[len(b)-logTail:]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	return string(b)
}

// command runs a program to its end. A failure ends the test and shows what the
// program said.
func command(tb testing.TB, env []string, path string, args ...string) {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), path, args...) //nolint:gosec // G204: running programs is its job
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("run %s: %v\n%s", filepath.Base(path), err, out)
	}
}
