package outages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"kekd/e2e/internal/harness"
)

// auditDisk gives a daemon's audit trail a file system of its own, of 1 MiB.
func auditDisk(t *testing.T) func(*harness.Kekd) {
	return func(k *harness.Kekd) {
		t.Helper()
		kept := filepath.Join(t.TempDir(), "kept") // what kekctl has written there
		if err := os.CopyFS(kept, os.DirFS(k.AuditDir())); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("kekd-outages", k.AuditDir(), "tmpfs", 0, "size=1m,mode=0700"); err != nil {
			t.Fatalf("mount a small file system: %v; run this as root, who may", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(k.AuditDir(), unix.MNT_DETACH); err != nil {
				t.Errorf("unmount the small file system: %v", err)
			}
		})
		if err := os.CopyFS(k.AuditDir(), os.DirFS(kept)); err != nil {
			t.Fatal(err)
		}
	}
}

// fillAudit takes all room on the disk of the trail.
func fillAudit(t *testing.T, k *harness.Kekd) (free func()) {
	t.Helper()
	path := filepath.Join(k.AuditDir(), "ballast")
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

// verified is what kekctl audit verify prints; it must succeed.
func verified(t *testing.T, k *harness.Kekd) string {
	t.Helper()
	out, err := exec.Command(harness.KekctlBinary(t), "--config", k.ConfigFile(), "audit", "verify").CombinedOutput()
	if err != nil {
		t.Fatalf("kekctl audit verify: %v\n%s", err, out)
	}
	return string(out)
}

// auditFails waits until the metrics tell that a part of the trail fails, or not.
func auditFails(t *testing.T, k *harness.Kekd, part string, want float64) {
	t.Helper()
	harness.Eventually(t, soon, "the audit metrics change", func(context.Context) error {
		if got := k.Metrics(t).Sum("kekd_audit_failing", map[string]string{"part": part}); got != want {
			return fmt.Errorf("kekd_audit_failing for %s is %v, want %v", part, got, want)
		}
		return nil
	})
}

// With continue the requests go on, and the trail says how many records it lacks.
func TestDiskFullUnderTheAuditTrail(t *testing.T) {
	t.Parallel()
	n := started(t, harness.NewToken(t), harness.KekdOptions{Audit: "continue"}, auditDisk(t))
	n.Command(t, "audit", "key", "create", "--yes")
	auditFails(t, n.Kekd, "sign", 0)
	free := fillAudit(t, n.Kekd)
	for range 20 {
		n.expect(t, healthy...)
	}
	auditFails(t, n.Kekd, "write", 1)
	lost := n.Metrics(t).Sum("kekd_audit_records_lost_total", nil)
	free()
	n.back(t)
	auditFails(t, n.Kekd, "write", 0)
	n.Stop(t)
	m := regexp.MustCompile(`\b(\d+) operations could not be written`).FindStringSubmatch(verified(t, n.Kekd))
	if m == nil || lost == 0 {
		t.Fatalf("%v records were lost, and the trail says %v", lost, m)
	}
	result(45, "Disk of the audit trail full, `onFailure: continue`", "nothing; the records that are missing are counted, and the trail says so where they are missing", throughout)
}

// With block nothing is answered that can't go on record.
func TestDiskFullUnderTheAuditTrailThatBlocks(t *testing.T) {
	t.Parallel()
	n := started(t, harness.NewToken(t), harness.KekdOptions{Audit: "block"}, auditDisk(t))
	n.Command(t, "audit", "key", "create", "--yes")
	free := fillAudit(t, n.Kekd)
	const withheld = "Unavailable: the audit trail cannot be written"
	n.await(t, soon, "OK", withheld, withheld, withheld)
	for range 5 {
		n.expect(t, "OK", withheld, withheld, withheld)
	}
	auditFails(t, n.Kekd, "write", 1)
	free()
	n.back(t)
	n.Stop(t)
	verified(t, n.Kekd)
	result(46, "Disk of the audit trail full, `onFailure: block`", "Status is good; every Encrypt and Decrypt fails with `Unavailable: the audit trail cannot be written`", "at once")
}

// A kekd that is killed while it writes: the next one finds the trail as it is, signs
// it, and says so.
func TestKilledUnderAudit(t *testing.T) {
	t.Parallel()
	n := started(t, harness.NewToken(t), harness.KekdOptions{Audit: "block"})
	n.Command(t, "audit", "key", "create", "--yes")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_ = n.open(ctx, n.warm) // until it is killed
		}
	}()
	auditFails(t, n.Kekd, "sign", 0)
	n.Kill(t)
	cancel()
	<-done
	n.Start(t)
	n.kms = n.KMS(t)
	n.WaitReady(t, soon)
	n.Stop(t)
	if out := verified(t, n.Kekd); !strings.Contains(out, "ended without a signature, as in a crash") {
		t.Errorf("the trail does not tell of the crash:\n%s", out)
	}
}
