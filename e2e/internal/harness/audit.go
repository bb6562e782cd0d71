package harness

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// AuditDisk gives the daemon's audit trail a file system of its own, of 1 MiB, before
// the daemon is started. It takes root.
func (k *Kekd) AuditDisk(tb testing.TB) {
	tb.Helper()
	kept := filepath.Join(tb.TempDir(), "kept") // what kekctl has written there
	if err := os.CopyFS(kept, os.DirFS(k.AuditDir())); err != nil {
		tb.Fatal(err)
	}
	if err := unix.Mount("kekd-audit", k.AuditDir(), "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		tb.Fatalf("mount a small file system: %v; run this as root, who may", err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(k.AuditDir(), unix.MNT_DETACH); err != nil {
			tb.Errorf("unmount the small file system: %v", err)
		}
	})
	if err := os.CopyFS(k.AuditDir(), os.DirFS(kept)); err != nil {
		tb.Fatal(err)
	}
}

// FillAudit takes all room on the disk of the trail, until free is called.
func (k *Kekd) FillAudit(tb testing.TB) (free func()) {
	tb.Helper()
	path := filepath.Join(k.AuditDir(), "ballast")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // G304: in a directory of the test
	if err != nil {
		tb.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if closed := f.Close(); !errors.Is(err, syscall.ENOSPC) || closed != nil {
		tb.Fatalf("fill the disk: %v, %v", err, closed)
	}
	return func() {
		tb.Helper()
		if err := os.Remove(path); err != nil {
			tb.Fatal(err)
		}
	}
}
