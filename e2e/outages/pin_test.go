package outages

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// changePIN changes the user's PIN on the token, as an administrator does with the
// vendor's tool.
func changePIN(t *testing.T, token *harness.Token, module, from, to string) {
	t.Helper()
	tool, err := exec.LookPath("pkcs11-tool")
	if err != nil {
		t.Fatalf("%v: install opensc", err)
	}
	cmd := exec.CommandContext(t.Context(), tool, "--module", module, "--token-label", token.Label, "--login", "--pin", from, "--change-pin", "--new-pin", to)
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+token.Conf)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("change the PIN: %v\n%s", err, out)
	}
}

func writePIN(t *testing.T, token *harness.Token, pin string) {
	t.Helper()
	next := token.PINFile + ".next"
	if err := os.WriteFile(next, []byte(pin), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, token.PINFile); err != nil {
		t.Fatal(err)
	}
}

// quiet requires that a time passes without another login.
func quiet(t *testing.T, token *harness.Token, want uint64) {
	t.Helper()
	begun := time.Now()
	harness.Eventually(t, soon, "time passes", func(context.Context) error {
		if got := token.Calls(t)["C_Login"]; got != want {
			t.Fatalf("C_Login was called %d times, want %d: a refused PIN is tried once", got, want)
		}
		if time.Since(begun) < 6*time.Second {
			return fmt.Errorf("not long enough")
		}
		return nil
	})
}

func TestPINChangedOnTheToken(t *testing.T) {
	t.Parallel()
	plain := harness.NewToken(t)
	token := plain.WithFaults(t)
	n := started(t, token, harness.KekdOptions{})
	first, second := readFile(t, token.PINFile), "5eC0nd-pin"
	changePIN(t, token, plain.Module, first, second)
	logins := token.Calls(t)["C_Login"]
	n.await(t, 5*time.Second, healthy...) // the session that is logged in goes on

	n.KillWorker(t)
	const reason = "kekd is unready: the token refused the PIN; it is not tried again before it is replaced or the latch is cleared"
	n.awaitState(t, "unready", "the token refused the PIN")
	n.expect(t, "Unavailable: "+reason, "Unavailable: "+reason, "OK", "Unavailable: .*")
	n.readyz(t, 503, "^unready: the token refused the PIN")
	n.logged(t, `the token refused the PIN, which is not tried again.*CKR_PIN_INCORRECT`)
	if n.Metrics(t).Sum("kekd_hsm_pin_latched", nil) != 1 {
		t.Error("kekd_hsm_pin_latched is not 1")
	}
	quiet(t, token, logins+1)
	n.restart(t)
	n.awaitState(t, "unready", "the token refused the PIN")
	quiet(t, token, logins+1)

	writePIN(t, token, second)
	ready := n.awaitState(t, "ready", "")
	n.back(t)
	if n.Metrics(t).Sum("kekd_hsm_pin_latched", nil) != 0 {
		t.Error("kekd_hsm_pin_latched is still 1")
	}
	result(30, "PIN changed on the token while kekd runs", "nothing while the worker lives; the next worker's login is refused, once: Status and Encrypt fail and name the PIN, warm Decrypts are served; the PIN file is replaced", after(ready))

	// Changed on the token, and back: nobody knows of it but the administrator.
	changePIN(t, token, plain.Module, second, first)
	logins = token.Calls(t)["C_Login"]
	n.KillWorker(t)
	n.awaitState(t, "unready", "the token refused the PIN")
	changePIN(t, token, plain.Module, first, second)
	quiet(t, token, logins+1)
	n.Command(t, "pin", "unlatch")
	ready = n.awaitState(t, "ready", "")
	n.back(t)
	result(31, "PIN changed on the token and changed back", "as before; the PIN that was refused is not tried again by itself, `kekctl pin unlatch` ends it", after(ready))
}
