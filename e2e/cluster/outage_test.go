package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// testKekdAwayForAMinute: the apiserver goes on with the seed that it has, for
// up to three minutes, and finds kekd again by itself.
func testKekdAwayForAMinute(t *testing.T, c *cluster) {
	const outage = time.Minute
	c.mustCreateSecret(t, "before-outage")
	start := time.Now()
	c.kekd.Kill(t)

	unhealthy := time.Duration(0)
	writes := 0
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for time.Since(start) < outage {
		name := fmt.Sprintf("during-outage-%02d", writes)
		c.mustCreateSecret(t, name)
		c.mustReadSecret(t, name)
		c.mustReadSecret(t, "before-outage")
		writes++
		if status, _, err := c.apiserver.Get(t.Context(), kmsReady); err != nil {
			t.Fatalf("ask the apiserver: %v", err)
		} else if status != http.StatusOK && unhealthy == 0 {
			unhealthy = time.Since(start)
		}
		<-tick.C
	}
	if unhealthy == 0 {
		t.Errorf("%s was good for the whole minute without kekd", kmsReady)
	}
	t.Logf("without kekd: %d secrets written and read, %s bad after %v", writes, kmsReady, unhealthy.Round(time.Millisecond))

	c.kekd.Start(t)
	back := time.Now()
	kekd := c.kekd.WaitReady(t, 30*time.Second)
	c.apiserver.WaitStatus(t, kmsReady, http.StatusOK, kmsHealthyWithin)
	t.Logf("after the start of kekd: kekd ready %v, Status good again at the apiserver %v",
		kekd.Round(time.Millisecond), time.Since(back).Round(time.Millisecond))
	c.mustReadSecret(t, "before-outage")
	c.mustReadSecret(t, "during-outage-00")
	c.mustCreateSecret(t, "after-outage")
	c.mustReadSecret(t, "after-outage")
	c.requireHSMOperations(t, hsmOperations{}, warmLimit)
}

// testReadyzFollows: an HSM that stays away makes kekd unready once the grace is
// over, and with it the apiserver; both recover without a restart.
func testReadyzFollows(t *testing.T, c *cluster) {
	c.configure(t, harness.KekdOptions{OutageGrace: 5 * time.Second})
	c.apiserver.WaitStatus(t, kmsReady, http.StatusOK, kmsHealthyWithin)
	c.mustCreateSecret(t, "before-unready")

	c.token.TakeAway(t)
	start := time.Now()
	reason := c.kekd.WaitUnready(t, 30*time.Second)
	unready := time.Since(start)
	c.apiserver.WaitStatus(t, kmsReady, http.StatusInternalServerError, kmsUnhealthyWithin)
	c.apiserver.WaitStatus(t, "/readyz", http.StatusInternalServerError, kmsUnhealthyWithin)
	t.Logf("after the token went: kekd unready %v (%s), the apiserver %v",
		unready.Round(time.Millisecond), reason, time.Since(start).Round(time.Millisecond))
	// Neither process is to be restarted because of the HSM.
	c.apiserver.WaitStatus(t, "/livez", http.StatusOK, 10*time.Second)
	c.mustReadSecret(t, "before-unready")

	c.token.PutBack(t)
	start = time.Now()
	kekd := c.kekd.WaitReady(t, kmsHealthyWithin)
	c.apiserver.WaitStatus(t, kmsReady, http.StatusOK, kmsHealthyWithin)
	c.apiserver.WaitStatus(t, "/readyz", http.StatusOK, kmsHealthyWithin)
	t.Logf("after the token came back: kekd ready %v, the apiserver %v",
		kekd.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	c.mustReadSecret(t, "before-unready")
	c.mustCreateSecret(t, "after-unready")
	c.mustReadSecret(t, "after-unready")
}

// testListWithoutKEK: kekd and the apiserver are both cold, and the token is
// gone. kube-apiserver then asks for the same seed a hundred times a second;
// the HSM must not feel it.
func testListWithoutKEK(t *testing.T, c *cluster) {
	const (
		secrets = 200
		list    = "/api/v1/namespaces/default/secrets"
		observe = 15 * time.Second
	)
	c.createMany(t, "cold", secrets)
	c.apiserver.Stop(t)
	// A new kekd has a new seed, and has never seen the one that the secrets are
	// under. It is healthy when the token goes: it coasts, and the apiserver can
	// start on the new seed.
	c.kekd.Kill(t)
	c.kekd.StartReady(t)
	c.token.TakeAway(t)
	harness.Eventually(t, 30*time.Second, "kekd notices that the token is gone", func(context.Context) error {
		const name = "kekd_hsm_operations_total"
		if m := c.kekd.Metrics(t); m.Sum(name, nil) == m.Sum(name, map[string]string{"result": "ok"}) {
			return errors.New("all HSM operations went well")
		}
		return nil
	})
	if err := c.kekd.Ready(t.Context()); err != nil {
		t.Fatalf("kekd does not coast: %v", err)
	}

	before := c.hsmOperations(t)
	lines := c.kekd.LogLines(t)
	start := time.Now()
	c.apiserver.Start(t)
	c.apiserver.WaitStatus(t, kmsReady, http.StatusOK, kmsHealthyWithin)
	lists := 0
	for deadline := time.Now().Add(observe); time.Now().Before(deadline); lists++ {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		status, body, err := c.apiserver.Get(ctx, list)
		cancel()
		if err != nil {
			t.Fatalf("list secrets: %v", err)
		}
		if status == http.StatusOK {
			t.Fatalf("list secrets: %d without the KEK", status)
		}
		if lists == 0 {
			t.Logf("list secrets: %d %.300s", status, body)
		}
		time.Sleep(200 * time.Millisecond) // as an impatient client would
	}
	elapsed := time.Since(start)
	calls := c.decryptCalls(t)
	after := c.hsmOperations(t)
	got := after.uses() - before.uses()
	t.Logf("%d lists in %v: %v calls of Decrypt, %v HSM operations, %v probes",
		lists, elapsed.Round(time.Second), calls, got, after.Probes-before.Probes)
	if calls < secrets {
		t.Errorf("the apiserver called Decrypt %v times, want at least %d: this case shows nothing", calls, secrets)
	}
	// The breaker lets one trial through each half second, and where no worker runs
	// the trial ends there.
	if limit := elapsed.Seconds() + warmLimit; got > limit {
		t.Errorf("%v HSM operations in %v, want at most %v", got, elapsed, limit)
	}
	if lines = c.kekd.LogLines(t) - lines; float64(lines) > calls/5 {
		t.Errorf("kekd logged %d lines of %v failed calls", lines, calls)
	} else {
		t.Logf("kekd logged %d lines", lines)
	}
	if err := c.kekd.Ready(t.Context()); err != nil {
		t.Errorf("kekd does not coast: %v", err)
	}

	c.token.PutBack(t)
	start = time.Now()
	c.apiserver.WaitStatus(t, list, http.StatusOK, kmsHealthyWithin)
	t.Logf("the list works %v after the token came back", time.Since(start).Round(time.Millisecond))
	c.requireMany(t, "cold", secrets)
	if got := c.hsmOperations(t); got.Unwraps == 0 {
		t.Errorf("the list works and kekd counted no unwrap: %+v", got)
	}
}
