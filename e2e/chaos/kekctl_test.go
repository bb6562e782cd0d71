package chaos

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kekd/e2e/internal/harness"
)

// command is one run of kekctl. Unlike harness.Kekctl it is safe for any goroutine.
type command struct {
	args   []string
	pid    int
	begun  time.Time
	stdout output
	stderr output

	exited chan struct{}
	ended  time.Time // readable once exited is closed, as code
	code   int       // -1 if a signal ended it
}

// output collects what a program prints.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

// String is what was printed so far.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// launch starts kekctl on a node, in a process group of its own. It dies with the test
// binary.
func (n *node) launch(stdin *os.File, args ...string) (*command, error) {
	args = append([]string{"--config", n.kekd.ConfigFile()}, args...)
	c := &command{args: args, exited: make(chan struct{}), begun: time.Now()}
	cmd := exec.Command(n.kekctlPath, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+n.kubeconfig)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, &c.stdout, &c.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if stdin != nil {
		cmd.Stdin = stdin
	}
	// A worker that outlives kekctl for a moment may hold the pipes.
	cmd.WaitDelay = time.Second
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // Pdeathsig is the thread's
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			c.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // the state says it all
		c.code, c.ended = cmd.ProcessState.ExitCode(), time.Now()
		_ = syscall.Kill(-c.pid, syscall.SIGKILL) // whatever is left of its group
		close(c.exited)
	}()
	return c, <-started
}

// signal sends a signal to kekctl alone; it may have ended.
func (c *command) signal(sig syscall.Signal) {
	select {
	case <-c.exited:
	default:
		_ = syscall.Kill(c.pid, sig)
	}
}

// end kills whatever still runs.
func (c *command) end() {
	c.signal(syscall.SIGKILL)
	<-c.exited
}

func (c *command) running() bool {
	select {
	case <-c.exited:
		return false
	default:
		return true
	}
}

// wait waits for the exit code.
func (c *command) wait(t testing.TB) int {
	t.Helper()
	select {
	case <-c.exited:
	case <-time.After(kekctlWithin):
		c.end()
		t.Fatalf("kekctl %q does not end within %v\n%s", c.args, kekctlWithin, c.stderr.String())
	}
	return c.code
}

// String is the run as a failure shows it.
func (c *command) String() string {
	return fmt.Sprintf("kekctl %q ended with %d\n%s%s", c.args, c.code, c.stdout.String(), c.stderr.String())
}

// awaitText waits until kekctl has said something, and fails if it ends without.
func (c *command) awaitText(t *testing.T, texts ...string) {
	t.Helper()
	harness.Eventually(t, kekctlWithin, fmt.Sprintf("kekctl %q says one of %q", c.args, texts), func(_ ctx) error {
		said := c.stderr.String()
		for _, text := range texts {
			if strings.Contains(said, text) {
				return nil
			}
		}
		if !c.running() {
			return fmt.Errorf("it has ended: %w\n%v", harness.ErrHopeless, c)
		}
		return fmt.Errorf("it said %q", said)
	})
}

// start starts kekctl on a node. It ends with the test at the latest.
func (n *node) start(t testing.TB, args ...string) *command {
	t.Helper()
	return n.startWith(t, nil, args...)
}

func (n *node) startWith(t testing.TB, stdin *os.File, args ...string) *command {
	t.Helper()
	c, err := n.launch(stdin, args...)
	if err != nil {
		t.Fatalf("start kekctl: %v", err)
	}
	t.Cleanup(c.end)
	return c
}

// try runs kekctl on a node to its end.
func (n *node) try(t testing.TB, args ...string) *command {
	t.Helper()
	c := n.start(t, args...)
	c.wait(t)
	return c
}

// must runs kekctl on a node and requires that it succeeds.
func (n *node) must(t testing.TB, args ...string) *command {
	t.Helper()
	c := n.try(t, args...)
	if c.code != 0 {
		t.Fatalf("want exit code 0: %v", c)
	}
	return c
}

// json runs kekctl on a node, requires that it succeeds and decodes what it prints.
func (n *node) json(t testing.TB, out any, args ...string) {
	t.Helper()
	c := n.must(t, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(c.stdout.String()), out); err != nil {
		t.Fatalf("%v in the output of %v", err, c)
	}
}

// terminal opens a pseudo-terminal: what is written to the first end the program reads
// from the second, which is for its standard input.
func terminal(t *testing.T) (keyboard, input *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatalf("open a terminal: %v", err)
	}
	t.Cleanup(func() { _ = keyboard.Close() })
	fd := int(keyboard.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatalf("unlock the terminal: %v", err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatalf("find the terminal: %v", err)
	}
	input, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatalf("open the terminal: %v", err)
	}
	t.Cleanup(func() { _ = input.Close() })
	return keyboard, input
}

// holdTurn takes the locks by which one kekctl at a time changes the token from a node,
// as another kekctl does that is about to, until free is called.
func (n *node) holdTurn(t *testing.T) (free func()) {
	t.Helper()
	var held []*os.File
	var once sync.Once
	free = func() {
		once.Do(func() {
			for _, f := range held {
				_ = f.Close()
			}
		})
	}
	t.Cleanup(free)
	for _, path := range []string{filepath.Join(n.kekd.AuditDir(), "kekctl.lock"), filepath.Join(n.kekd.StateDir(), "admin.lock")} {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatalf("open a lock of kekctl: %v", err)
		}
		held = append(held, f)
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			t.Fatalf("take a lock of kekctl: %v", err)
		}
	}
	return free
}
