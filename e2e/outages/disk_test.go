package outages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kekd/e2e/internal/harness"
)

// smallDisk gives a daemon's state directory a file system of its own, of 64 KiB.
func smallDisk(t *testing.T) func(*harness.Kekd) {
	return func(k *harness.Kekd) {
		t.Helper()
		if err := unix.Mount("kekd-outages", k.StateDir(), "tmpfs", 0, "size=64k,mode=0700"); err != nil {
			t.Fatalf("mount a small file system: %v; run this as root, who may", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(k.StateDir(), unix.MNT_DETACH); err != nil {
				t.Errorf("unmount the small file system: %v", err)
			}
		})
	}
}

// remount makes the small disk read-only, or writable again.
func remount(t *testing.T, k *harness.Kekd, flags uintptr) {
	t.Helper()
	if err := unix.Mount("", k.StateDir(), "", unix.MS_REMOUNT|flags, "size=64k"); err != nil {
		t.Fatalf("mount the state directory anew: %v", err)
	}
}

// fill takes all room there is, the daemon's reserve too if asked.
func fill(t *testing.T, k *harness.Kekd, reserve bool) (free func()) {
	t.Helper()
	if reserve {
		if err := os.Remove(filepath.Join(k.StateDir(), "spare")); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(k.StateDir(), "ballast")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if closed := f.Close(); !errors.Is(err, syscall.ENOSPC) || closed != nil {
		t.Fatalf("fill the disk: %v, %v", err, closed)
	}
	return func() {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// awaitKeyOtherThan waits until the node encrypts under another key, and returns it.
func (n *node) awaitKeyOtherThan(t *testing.T, key string) string {
	t.Helper()
	harness.Eventually(t, soon, "the next key takes over", func(ctx context.Context) error {
		h, err := n.health(ctx)
		if err == nil && h.Health.KeyID == key {
			err = fmt.Errorf("the key_id is still %s; %s", key, h.RingProblem)
		}
		return err
	})
	return n.keyID(t)
}

func (n *node) awaitRingProblem(t *testing.T, parts ...string) {
	t.Helper()
	harness.Eventually(t, soon, "/status says why", func(ctx context.Context) error {
		h, err := n.health(ctx)
		for _, part := range parts {
			if err == nil && !strings.Contains(h.RingProblem, part) {
				err = fmt.Errorf("ringProblem is %q, want %q in it", h.RingProblem, part)
			}
		}
		return err
	})
}

func TestDiskFullAtARotation(t *testing.T) {
	t.Parallel()
	n := started(t, harness.NewToken(t), harness.KekdOptions{}, smallDisk(t))
	other := harness.NewSibling(t, n.Token, harness.KekdOptions{})
	first := n.keyID(t)
	free := fill(t, n.Kekd, false)
	other.CreateKey(t, 2*time.Second)
	second := n.awaitKeyOtherThan(t, first) // in the reserve
	n.seal(t)

	free()
	free = fill(t, n.Kekd, true)
	other.CreateKey(t, 2*time.Second)
	n.awaitRingProblem(t, "no space left on device", "make room where stateDir is")
	// There is a problem before the activation too: the use of keys is recorded.
	harness.Eventually(t, soon, "the node tries to take up the next key", func(context.Context) error {
		if n.Metrics(t).Sum("kekd_rotations_total", map[string]string{"result": "error"}) == 0 {
			return errors.New("no rotation has failed")
		}
		return nil
	})
	if got := n.keyID(t); got != second {
		t.Errorf("the key_id is %s, which could not be written; want %s", got, second)
	}
	n.await(t, soon, healthy...)
	n.seal(t)
	n.readyz(t, 200, "^ready")
	n.logged(t, `"key ring not usable".*no space left on device; make room where stateDir is`)
	if n.Metrics(t).Sum("kekd_key_ring_problem", nil) != 1 {
		t.Error("the metrics do not tell of the problem")
	}

	free()
	begun := time.Now()
	n.awaitKeyOtherThan(t, second)
	ready := time.Since(begun)
	n.back(t)
	result(40, "Disk of the state directory full at a rotation", fmt.Sprintf("one rotation goes through, in room set aside; at the next the node stays with its key, serves, and says so in `ringProblem`, log and metrics; the new key takes over %.1f s after there is room", ready.Seconds()), throughout)
}

// In direct mode no use goes uncounted.
func TestDiskFullInDirectMode(t *testing.T) {
	t.Parallel()
	const block = 4096 // uses that are reserved at once
	n := started(t, harness.NewToken(t), harness.KekdOptions{Mode: "direct"}, smallDisk(t))
	free := fill(t, n.Kekd, true)
	var failed atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range block / 8 {
				if _, err := n.kms.Encrypt(t.Context(), []byte(plaintext)); err != nil {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() == 0 {
		t.Error("more was encrypted than was counted")
	}
	n.expect(t, "OK", "Unavailable: kekd cannot use its state directory", "OK", "OK")
	n.logged(t, `"request failed".*count 4096 uses of key .*no space left on device; make room where stateDir is`)
	if got := n.Metrics(t).Sum("kekd_direct_uses", nil); got != 2*block { // one of them before this start
		t.Errorf("%v uses are counted, want the %d that were written", got, 2*block)
	}
	free()
	ready := harness.Eventually(t, soon, "kekd encrypts again", func(ctx context.Context) error {
		return unlike(n.answers(ctx), healthy)
	})
	n.back(t)
	result(41, "Disk of the state directory full, direct mode", "up to 4096 Encrypts go on, which are counted already; then Encrypt fails with Unavailable and names the state directory, Status and Decrypt are served", after(ready))
}

func TestStateDirReadOnly(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t).WithFaults(t)
	n := started(t, token, harness.KekdOptions{}, smallDisk(t))
	key := n.keyID(t)
	remount(t, n.Kekd, unix.MS_RDONLY)
	pid := n.WorkerPID(t)
	n.KillWorker(t)
	n.WorkerPID(t, pid) // with the PIN that has worked
	n.await(t, soon, healthy...)

	// A new process does not know the PIN yet, and could not remember its refusal.
	n.Stop(t)
	logins := token.Calls(t)["C_Login"]
	n.Start(t)
	n.kms = n.KMS(t)
	const reason = "Unavailable: kekd is starting: kekd cannot use its state directory; its log has the reason"
	n.await(t, soon, reason, reason, "Unavailable: .*", "Unavailable: .*")
	n.readyz(t, 503, "^starting: kekd cannot use its state directory")
	n.logged(t, `the PIN is not tried while its refusal could not be remembered.*read-only file system; mount stateDir writable`)
	quiet(t, token, logins)
	remount(t, n.Kekd, 0)
	ready := n.awaitState(t, "ready", "")
	if got := n.keyID(t); got != key {
		t.Errorf("the key_id is %s, before %s", got, key)
	}
	n.back(t)
	result(42, "State directory read-only", "nothing while kekd runs, new workers included; a kekd that starts tries no PIN whose refusal it could not remember, and names the state directory", after(ready))
}

func TestStateDirVanishes(t *testing.T) {
	t.Parallel()
	n := started(t, harness.NewToken(t), harness.KekdOptions{})
	key := n.keyID(t)
	if err := os.RemoveAll(n.StateDir()); err != nil {
		t.Fatal(err)
	}
	n.awaitRingProblem(t, "the state directory is gone: restore "+n.StateDir())
	pid := n.WorkerPID(t)
	n.KillWorker(t)
	n.WorkerPID(t, pid)
	n.await(t, soon, healthy...)
	n.seal(t)
	n.logged(t, `"key ring not usable".*the state directory is gone`)
	if err := os.Mkdir(n.StateDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, soon, "what was published is written again", func(context.Context) error {
		_, err := os.Stat(filepath.Join(n.StateDir(), "published.json"))
		return err
	})
	n.back(t)
	n.restart(t)
	n.awaitState(t, "ready", "")
	if got := n.keyID(t); got != key {
		t.Errorf("the key_id is %s, before %s", got, key)
	}
	n.back(t)
	result(43, "State directory removed, and made again empty", "nothing; `ringProblem`, log and metrics name the directory, and what was published is written again when it is back", throughout)
}

// Two daemons would count the uses of a key wrong.
func TestTwoDaemonsOnOneStateDir(t *testing.T) {
	t.Parallel()
	n := started(t, harness.NewToken(t), harness.KekdOptions{})
	second := harness.NewSibling(t, n.Token, harness.KekdOptions{})
	if err := os.Remove(second.StateDir()); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(n.StateDir(), second.StateDir()); err != nil {
		t.Fatal(err)
	}
	second.Start(t)
	if state := second.AwaitExit(t, soon); state.ExitCode() != 1 {
		t.Errorf("the second ended with %v, want exit code 1", state)
	}
	(&node{Kekd: second}).logged(t, `kekd: error: stateDir: another kekd uses .*; stop it first, or give each kekd a state directory of its own`)
	n.back(t)
	n.Stop(t)
	second.StartReady(t) // the first has let go of it
	result(54, "Two daemons on one state directory", "nothing; the second ends with exit code 1 and names `stateDir`", throughout)
}
