package outages

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"kekd/e2e/internal/harness"
)

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
	n := started(t, harness.NewToken(t), harness.KekdOptions{Audit: "continue"}, func(k *harness.Kekd) { k.AuditDisk(t) })
	n.Command(t, "audit", "key", "create", "--yes")
	auditFails(t, n.Kekd, "sign", 0)
	free := n.FillAudit(t)
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
	n := started(t, harness.NewToken(t), harness.KekdOptions{Audit: "block"}, func(k *harness.Kekd) { k.AuditDisk(t) })
	n.Command(t, "audit", "key", "create", "--yes")
	free := n.FillAudit(t)
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

// A node may boot with a disk that takes nothing: kekd starts all the same.
func TestStartOnAReadOnlyAuditDisk(t *testing.T) {
	t.Parallel()
	var remount func(flags uintptr)
	n := started(t, harness.NewToken(t), harness.KekdOptions{Audit: "continue"}, func(k *harness.Kekd) {
		k.Command(t, "audit", "key", "create", "--yes")
		k.AuditDisk(t)
		remount = func(flags uintptr) {
			t.Helper()
			if err := unix.Mount("", k.AuditDir(), "", unix.MS_REMOUNT|flags, ""); err != nil {
				t.Fatalf("mount the audit disk another way: %v", err)
			}
		}
		remount(unix.MS_RDONLY)
	})
	n.expect(t, healthy...)
	auditFails(t, n.Kekd, "write", 1)
	remount(0)
	n.expect(t, healthy...)
	auditFails(t, n.Kekd, "write", 0)
	auditFails(t, n.Kekd, "sign", 0)
	n.Stop(t)
	if out := verified(t, n.Kekd); !regexp.MustCompile(`\b\d+ operations could not be written`).MatchString(out) {
		t.Errorf("the trail does not tell what it lacks:\n%s", out)
	}
	result(47, "kekd starts on a read-only audit disk, `onFailure: continue`", "nothing; as with a full one", throughout)
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
