package harness

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// LogTo makes a file the daemon's standard error from the next start on, in place of
// its log; nil undoes it.
func (k *Kekd) LogTo(file *os.File) { k.service.stderr = file }

// StateDir is the daemon's state directory.
func (k *Kekd) StateDir() string { return filepath.Join(k.Dir(), "state") }

// ConfigFile is the daemon's configuration file.
func (k *Kekd) ConfigFile() string { return k.config }

// JumpClock sets the daemon's wall clock ahead of the machine's, by whole seconds,
// while the daemon runs or before. Before the first start it also sees to it that the
// daemon is one whose clock can jump.
func (k *Kekd) JumpClock(tb testing.TB, ahead time.Duration) {
	tb.Helper()
	if k.confine != nil {
		tb.Fatal("a confined kekd has the machine's clock")
	}
	file := filepath.Join(k.Dir(), "clock")
	writeFile(tb, file+".new", ahead.String())
	if err := os.Rename(file+".new", file); err != nil {
		tb.Fatalf("set the clock of kekd: %v", err)
	}
	if !k.Running() {
		k.service.path, k.service.env = clockBinary(tb), []string{"KEKD_E2E_CLOCK_FILE=" + file}
	}
}
