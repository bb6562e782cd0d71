package harness

import (
	"os"
	"syscall"
	"testing"
	"time"
)

// Kekctl is one run of kekctl.
type Kekctl struct{ service *service }

// Kekctl starts kekctl with the daemon's configuration, as an administrator on its
// node does, and does not wait for its end.
func (k *Kekd) Kekctl(tb testing.TB, args ...string) *Kekctl {
	tb.Helper()
	c := &Kekctl{newService(tb, "kekctl", KekctlBinary(tb), append([]string{"--config", k.config}, args...), nil)}
	c.service.stdout = logFile(tb, "kekctl-stdout")
	c.service.start(tb)
	return c
}

// Wait waits until it ends by itself and returns the exit code.
func (c *Kekctl) Wait(tb testing.TB, within time.Duration) int {
	tb.Helper()
	c.service.awaitExit(tb, within)
	return c.service.run.state.ExitCode()
}

// Running tells whether it has not ended.
func (c *Kekctl) Running() bool { return c.service.running() }

// Interrupt does what Ctrl-C does.
func (c *Kekctl) Interrupt(tb testing.TB) {
	tb.Helper()
	c.service.signal(tb, syscall.SIGINT)
}

// Kill ends it by SIGKILL, if it has not ended.
func (c *Kekctl) Kill(tb testing.TB) {
	tb.Helper()
	if c.service.running() {
		c.service.kill(tb)
	}
}

// Stdout is what it has printed so far: its data.
func (c *Kekctl) Stdout(tb testing.TB) string { return readFile(tb, c.service.stdout) }

// Stderr is what it has said so far: notes and errors.
func (c *Kekctl) Stderr(tb testing.TB) string { return readFile(tb, c.service.log) }

func readFile(tb testing.TB, path string) string {
	tb.Helper()
	b, err := os.ReadFile(path) //nolint:gosec // G304: a file that the harness made
	if err != nil {
		tb.Fatalf("read the output of kekctl: %v", err)
	}
	return string(b)
}
