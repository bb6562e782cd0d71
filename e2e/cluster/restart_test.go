package cluster

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// warmLimit is the handful of HSM operations that a start may cost: the new
// seed's wrap and unwrap, and an unwrap for each older seed that is still read.
const warmLimit = 12

func testAPIServerRestart(t *testing.T, c *cluster) {
	c.mustCreateSecret(t, "before-apiserver-restart")
	before := c.hsmOperations(t)
	t.Logf("kube-apiserver stopped in %v", c.apiserver.Stop(t).Round(time.Millisecond))
	t.Logf("kube-apiserver ready after %v", c.apiserver.StartReady(t).Round(time.Millisecond))
	c.mustReadSecret(t, "before-apiserver-restart")
	c.mustCreateSecret(t, "after-apiserver-restart")
	c.mustReadSecret(t, "after-apiserver-restart")
	if calls := c.decryptCalls(t); calls == 0 {
		t.Error("the new apiserver never asked kekd to decrypt: this case shows nothing")
	}
	// kekd knows all seeds: a restart of its client costs the HSM nothing.
	c.requireHSMOperations(t, before, 0)
}

func testKekdKilled(t *testing.T, c *cluster) {
	c.mustCreateSecret(t, "before-kekd-kill")
	c.kekd.Kill(t)
	start := time.Now()
	c.kekd.StartReady(t)
	t.Logf("kekd ready %v after its start", time.Since(start).Round(time.Millisecond))
	c.mustReadSecret(t, "before-kekd-kill")
	c.mustCreateSecret(t, "after-kekd-kill")
	c.mustReadSecret(t, "after-kekd-kill")
	c.apiserver.WaitStatus(t, kmsReady, http.StatusOK, kmsHealthyWithin)
	c.requireHSMOperations(t, hsmOperations{}, warmLimit)
}

func testBothRestart(t *testing.T, c *cluster) {
	c.mustCreateSecret(t, "before-both-restart")
	c.apiserver.Kill(t)
	c.kekd.Kill(t)
	c.kekd.StartReady(t)
	t.Logf("kube-apiserver ready after %v", c.apiserver.StartReady(t).Round(time.Millisecond))
	c.mustReadSecret(t, "before-both-restart")
	c.mustCreateSecret(t, "after-both-restart")
	c.mustReadSecret(t, "after-both-restart")
	if calls := c.decryptCalls(t); calls == 0 {
		t.Error("the new apiserver never asked kekd to decrypt: this case shows nothing")
	}
	c.requireHSMOperations(t, hsmOperations{}, warmLimit)
}

// testKekdStartsLast: an apiserver that starts first is not ready and cannot
// read what is encrypted; it recovers by itself once kekd is there.
func testKekdStartsLast(t *testing.T, c *cluster) {
	c.mustCreateSecret(t, "before-late-kekd")
	c.apiserver.Kill(t)
	c.kekd.Stop(t)
	c.apiserver.Start(t)
	c.apiserver.WaitStatus(t, kmsReady, http.StatusInternalServerError, kmsUnhealthyWithin)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := c.checkSecret(ctx, "before-late-kekd"); err == nil {
		t.Fatal("the apiserver read an encrypted secret without kekd: this case shows nothing")
	}

	c.kekd.Start(t)
	start := time.Now()
	kekd := c.kekd.WaitReady(t, 30*time.Second)
	c.apiserver.WaitStatus(t, kmsReady, http.StatusOK, kmsHealthyWithin)
	seen := time.Since(start)
	harness.Eventually(t, time.Minute, "the secret reads back", func(ctx context.Context) error {
		return c.checkSecret(ctx, "before-late-kekd")
	})
	c.apiserver.WaitStatus(t, "/readyz", http.StatusOK, kmsHealthyWithin)
	t.Logf("after the start of kekd: kekd ready %v, seen by the apiserver %v, apiserver ready %v",
		kekd.Round(time.Millisecond), seen.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	c.mustCreateSecret(t, "after-late-kekd")
	if value := string(c.stored(t, "secrets", "after-late-kekd")); !strings.HasPrefix(value, storedPrefix) {
		t.Errorf("the secret in etcd starts %.40q, want %q", value, storedPrefix)
	}
	c.requireHSMOperations(t, hsmOperations{}, warmLimit)
}
