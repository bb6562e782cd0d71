package outages

import (
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kekd/e2e/internal/harness"
)

// fullPipe is a pipe that takes nothing more.
func fullPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	var err error
	for err == nil {
		_, err = unix.Write(fds[1], []byte(strings.Repeat("x", 4095)+"\n"))
	}
	if !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("fill a pipe: %v", err)
	}
	// Blocking, as what the kubelet and systemd give a daemon.
	for _, fd := range fds {
		if err := unix.SetNonblock(fd, false); err != nil {
			t.Fatal(err)
		}
	}
	r, w = os.NewFile(uintptr(fds[0]), "reader"), os.NewFile(uintptr(fds[1]), "writer")
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return r, w
}

// Nobody reads standard error: the kubelet or journald is stuck.
func TestLogReaderStuck(t *testing.T) {
	t.Parallel()
	n := newNode(t, harness.NewToken(t), harness.KekdOptions{})
	r, w := fullPipe(t)
	n.LogTo(w)
	n.StartReady(t)
	n.warmUp(t)
	for range 100 { // each of which is logged
		n.expect(t, healthy...)
	}
	n.KillWorker(t) // which is logged too
	n.await(t, soon, healthy...)
	took := n.Stop(t)
	t.Logf("stopped in %v", took)

	// Once the reader goes on, all that was logged meanwhile is there.
	n.Start(t)
	n.kms = n.KMS(t)
	n.awaitState(t, "ready", "")
	var log strings.Builder
	var reading sync.WaitGroup
	_ = w.Close() // the daemon alone has it now
	reading.Go(func() { _, _ = io.Copy(&log, r) })
	n.back(t)
	n.Stop(t)
	reading.Wait()
	for _, want := range []string{`"kekd started"`, `"health changed"`, `"kekd stops"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %s", want)
		}
	}
	result(50, "Nobody reads kekd's log (a full pipe)", "nothing; 1 MiB of lines waits, what is more is counted in `kekd_log_lines_lost_total`", throughout)
}

// The reader of standard error is gone, or has a full disk.
func TestLogCannotBeWritten(t *testing.T) {
	t.Parallel()
	n := newNode(t, harness.NewToken(t), harness.KekdOptions{})
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = full.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	defer func() { _ = w.Close() }()
	for what, file := range map[string]*os.File{"full disk": full, "broken pipe": w} {
		n.LogTo(file)
		n.StartReady(t)
		n.kms = n.KMS(t)
		n.warmUp(t)
		before := n.Metrics(t).Sum("process_cpu_seconds_total", nil)
		time.Sleep(2 * time.Second) // for a loop of complaints to show
		m := n.Metrics(t)
		if m.Sum("kekd_log_lines_lost_total", nil) == 0 {
			t.Errorf("%s: no line is counted as lost", what)
		}
		if used := m.Sum("process_cpu_seconds_total", nil) - before; used > 1.5 {
			t.Errorf("%s: kekd used %v s of processor in 2 s", what, used)
		}
		n.back(t)
		n.Stop(t)
	}
	result(51, "kekd's log goes to a full disk or a reader that is gone", "nothing; the lines are counted in `kekd_log_lines_lost_total`", throughout)
}
