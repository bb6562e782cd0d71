package outages

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

func TestTokenGoneLongerThanTheGrace(t *testing.T) {
	t.Parallel()
	n := started(t, harness.NewToken(t), harness.KekdOptions{OutageGrace: 8 * time.Second, CallTimeout: 3 * time.Second})
	key := n.keyID(t)
	n.Token.TakeAway(t)
	n.awaitState(t, "coasting", "the HSM is unavailable")
	n.await(t, 5*time.Second, "OK", "OK", "OK", "Unavailable: the HSM is unavailable or kekd is not ready")
	n.seal(t)
	n.readyz(t, 200, "^coasting: the HSM is unavailable")

	const unready = "Unavailable: kekd is unready: the HSM is unavailable"
	n.awaitState(t, "unready", "the HSM is unavailable")
	n.expect(t, unready, unready, "OK", "Unavailable: .*")
	n.readyz(t, 503, "^unready: the HSM is unavailable")
	n.logged(t, `"health changed".*"to":"coasting"`)
	n.logged(t, `"health changed".*"to":"unready"`)
	n.logged(t, `"key ring not usable".*(no token matches|C_Initialize)`)
	if m := n.Metrics(t); m.Sum("kekd_health_state", map[string]string{"state": "unready"}) != 1 || m.Sum("kekd_healthy", nil) != 0 {
		t.Error("the metrics do not say that kekd is unready")
	}

	n.Token.PutBack(t)
	ready := n.awaitState(t, "ready", "")
	n.back(t)
	if got := n.keyID(t); got != key {
		t.Errorf("the key_id is %s, before the outage %s", got, key)
	}
	result(10, "Token gone for longer than `health.outageGrace`", "within it Status, Encrypt and warm Decrypts are served and cold Decrypts fail at once; after it only warm Decrypts are served, and Unavailable names the HSM", after(ready))
}

// kekd is up before the vendor's daemon is.
func TestStartedBeforeTheVendorsDaemon(t *testing.T) {
	t.Parallel()
	const starting = "Unavailable: kekd is starting: "
	for i, c := range []struct {
		name, outage, fault, reason, log string
		away                             time.Duration
	}{
		{"initialize", "kekd started 30 s before the vendor's daemon: C_Initialize fails", "C_Initialize rv=0x30", "the HSM is unavailable", "C_Initialize.*CKR_DEVICE_ERROR", 30 * time.Second},
		{"no slot", "kekd started 30 s before the token is there", "", "the HSM is unavailable", "no token matches|C_Initialize", 30 * time.Second},
		{"hang", "kekd started 10 s before the vendor's daemon: C_GetSlotList hangs", "C_GetSlotList hang", "the HSM (is unavailable|did not answer in time)", "did not return within", 10 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			token := harness.NewToken(t).WithFaults(t)
			n := newNode(t, token, harness.KekdOptions{CallTimeout: 3 * time.Second})
			if c.fault != "" {
				token.Faults(t, c.fault)
			} else {
				token.TakeAway(t)
			}
			n.Start(t)
			begun := time.Now()
			n.awaitState(t, "starting", c.reason)
			n.await(t, soon, starting+c.reason, starting+c.reason, ".*", "Unavailable: .*")
			n.readyz(t, 503, "^starting: "+c.reason)
			n.logged(t, c.log)
			if code, _, err := n.get(t.Context(), "/livez"); code != http.StatusOK {
				t.Errorf("/livez answers %d, %v: the kubelet would restart kekd", code, err)
			}
			harness.Eventually(t, time.Minute, "the outage is over", func(context.Context) error {
				if left := c.away - time.Since(begun); left > 0 {
					return fmt.Errorf("%v to go", left)
				}
				return nil
			})
			if c.fault != "" {
				token.Faults(t)
			} else {
				token.PutBack(t)
			}
			ready := n.awaitState(t, "ready", "")
			n.warmUp(t)
			n.back(t)
			result(60+i, c.outage, "the socket answers from the start; Unavailable says that kekd is starting and that the HSM is unavailable", after(ready))
		})
	}
}

// What no waiting mends ends kekd with a message.
func TestModuleMissing(t *testing.T) {
	t.Parallel()
	token := harness.NewToken(t)
	k := harness.NewKekd(t, token, harness.KekdOptions{})
	missing := *token
	missing.Module = "/nonexistent/libvendor.so"
	k.Token = &missing
	k.Configure(t, harness.KekdOptions{})
	k.Start(t)
	if state := k.AwaitExit(t, soon); state.ExitCode() != 1 {
		t.Errorf("kekd ended with %v, want exit code 1", state)
	}
	n := node{Kekd: k}
	n.logged(t, `kekd: error: hsm.module: stat /nonexistent/libvendor.so: no such file or directory; name the vendor's PKCS#11 library`)
	result(64, "Module file missing at the start", "kekd ends with exit code 1 and names `hsm.module`", "never: no waiting mends it")
}

func TestRebootWithoutTheToken(t *testing.T) {
	t.Parallel()
	n := started(t, harness.NewToken(t), harness.KekdOptions{})
	empty := emptied(t, n.Token)
	key := n.keyID(t)
	older := backup(t, n.Token)
	n.CreateKey(t, 2*time.Second)
	harness.Eventually(t, soon, "the next key takes over", func(context.Context) error {
		if n.keyID(t) == key {
			return fmt.Errorf("it is still %s", key)
		}
		return nil
	})
	key = n.keyID(t)
	n.warm = n.seal(t)
	newest := backup(t, n.Token)
	n.Stop(t)

	n.Token.TakeAway(t)
	n.Start(t)
	n.kms = n.KMS(t)
	const starting = "Unavailable: kekd is starting: the HSM is unavailable"
	n.await(t, soon, starting, starting, "Unavailable: .*", "Unavailable: .*")
	n.readyz(t, 503, "^starting: the HSM is unavailable")
	n.logged(t, `"key ring not usable".*(no token matches|C_Initialize)`)
	n.Token.PutBack(t)
	ready := n.awaitState(t, "ready", "")
	if got := n.keyID(t); got != key {
		t.Errorf("the key_id is %s, before the reboot %s", got, key)
	}
	n.back(t)
	result(70, "Host rebooted without the token", "Unavailable says that kekd is starting and that the HSM is unavailable; the key_id is the same afterwards", after(ready))

	// It comes back as it was long ago, or as a new one: the ring must not go backwards.
	const revoked = "FailedPrecondition: kekd is revoked: the KEK is disabled, scheduled for destruction or gone"
	for _, c := range []struct {
		outage, from, log string
		cold              string
	}{
		{"Host rebooted, the token comes back with an older key only", older, `the last primary [0-9a-f]+ is gone, and [0-9a-f]+ is older`, "OK"},
		{"Host rebooted, the token comes back empty", empty, `the last primary [0-9a-f]+ is gone`, "NotFound: the KEK is not on the token .*"},
	} {
		n.Stop(t)
		restore(t, tokenFiles(t, n.Token), c.from)
		n.Start(t)
		n.kms = n.KMS(t)
		n.await(t, soon, revoked, revoked, "NotFound: the KEK is not on the token .*", c.cold)
		n.readyz(t, 503, "^revoked: ")
		n.logged(t, `"key ring not usable".*`+c.log)
		n.Token.TakeAway(t)
		restore(t, tokenFiles(t, n.Token)+".away", newest)
		n.Token.PutBack(t)
		ready := n.awaitState(t, "ready", "")
		if got := n.keyID(t); got != key {
			t.Errorf("the key_id is %s, before %s", got, key)
		}
		n.back(t)
		result(71, c.outage, "FailedPrecondition says that the KEK is gone, until the right token is back; no older key_id is served", after(ready))
	}
}

// emptied is a copy of the token without its keys.
func emptied(t *testing.T, token *harness.Token) string {
	t.Helper()
	dir := backup(t, token)
	tokens, err := os.ReadDir(dir)
	if err != nil || len(tokens) != 1 {
		t.Fatalf("the token directory holds %v, %v; want one token", tokens, err)
	}
	inside := dir + "/" + tokens[0].Name()
	files, err := os.ReadDir(inside)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() != "token.object" && f.Name() != "token.lock" && f.Name() != "generation" {
			if err := os.Remove(inside + "/" + f.Name()); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}
