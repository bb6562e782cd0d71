package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// revoke runs kekctl revoke on a node, and checks what it reports at once: with exit code
// 0 every node encrypts under another key and refuses this one; else the report names
// each node of which that is not true.
func (w *world) revoke(t *testing.T, by *node, k key) *command {
	t.Helper()
	w.giveUp(k.KeyID)
	c := by.try(t, append([]string{"revoke", k.ID, "--yes", "-o", "json"}, w.nodeFlags()...)...)
	wrong := map[*node]string{}
	for _, n := range w.nodes {
		c, cancel := context.WithTimeout(t.Context(), callTimeout)
		s, err := n.kms.Encrypt(c, []byte("after the revocation"))
		cancel()
		switch {
		case err != nil:
			wrong[n] = fmt.Sprintf("it encrypts nothing: %v", err)
		case s.KeyID == k.KeyID:
			wrong[n] = "it encrypts under the revoked key"
		}
	}
	for n, why := range wrong {
		switch host := strings.TrimPrefix(n.kekd.URL, "http://"); {
		case c.code == 0:
			t.Errorf("kekctl revoke reports success, but of %s %s\n%v", n.name, why, c)
		case !strings.Contains(c.stdout.String()+c.stderr.String(), host):
			t.Errorf("kekctl revoke does not name %s (%s) although %s\n%v", n.name, host, why, c)
		}
	}
	if !json.Valid([]byte(c.stdout.String())) {
		t.Errorf("kekctl revoke prints no JSON: %v", c)
	}
	return c
}

// testRevokeNodeBehind: the successor activates later on a node that is behind, which
// until then has no key to encrypt under.
func testRevokeNodeBehind(t *testing.T, w *world) {
	w.nodes[2].kekd.JumpClock(t, -20*time.Second)
	old := w.nodes[0].primary(t)
	begun := time.Now()
	w.revoke(t, w.nodes[0], old)
	for _, n := range w.nodes {
		harness.Eventually(t, time.Minute, n.name+" encrypts again", func(c ctx) error {
			_, err := w.seal(c, n)
			return err
		})
	}
	t.Logf("every node encrypts %v after the beginning", time.Since(begun).Round(100*time.Millisecond))
}

// testRevokeHalfMade: the newest key of the ring is one with which the token can do
// nothing, so the nodes stay on the key before, which is revoked.
func testRevokeHalfMade(t *testing.T, w *world) {
	old := w.nodes[0].primary(t)
	half := idAt(time.Now().Add(-time.Second), 7)
	onToken(t, w.token, tokenRequest{Op: "half-made", ID: half, NewLabel: ring})
	t.Cleanup(func() {
		if stateOnToken(t, w.token, half) != "gone" {
			onToken(t, w.token, tokenRequest{Op: "destroy", ID: half})
		}
	})
	for _, n := range w.nodes {
		harness.Eventually(t, soon, n.name+" has noticed the key that it cannot use", func(c ctx) error {
			status, err := n.kekd.Status(c)
			if err == nil && status.RingProblem == "" && len(status.KeyRing.Keys) == 0 {
				err = fmt.Errorf("it says nothing: %+v", status)
			}
			return err
		})
		if got := w.mustSeal(t, n); got != old.KeyID {
			t.Fatalf("%s encrypts under %s, want %s: this case shows nothing", n.name, got, old.KeyID)
		}
	}
	w.revoke(t, w.nodes[0], old)
	// Whatever it reported, the ring can be rotated out of trouble.
	onToken(t, w.token, tokenRequest{Op: "destroy", ID: half})
	w.nodes[0].must(t, "key", "rotate", "--now", "--yes")
}

// stillDecrypts is how kekctl says that the key was not revoked.
var stillDecrypts = regexp.MustCompile(`still (decrypt|use|work|open)|not disabled|nothing is disabled`)

// testRevokeHSMLost: the HSM refuses everything after the successor was made.
func testRevokeHSMLost(t *testing.T, w *world) {
	n := w.nodes[0]
	old := n.primary(t)
	n.kekd.Token.Faults(t, "C_SetAttributeValue rv=0x30")
	c := n.try(t, append([]string{"revoke", old.ID, "--yes", "-o", "json"}, w.nodeFlags()...)...)
	if c.code != 1 {
		t.Errorf("want exit code 1: %v", c)
	}
	var report struct{ Revoked, Successor string }
	if err := json.Unmarshal([]byte(c.stdout.String()), &report); err != nil || report.Successor == "" {
		t.Errorf("kekctl revoke reports no successor in JSON (%v): %v", err, c)
	}
	if !stillDecrypts.MatchString(c.stdout.String() + c.stderr.String()) {
		t.Errorf("kekctl revoke does not say that the key still decrypts: %v", c)
	}
	if got := stateOnToken(t, w.token, old.ID); got != "enabled" {
		t.Errorf("the key is %s on the token, want enabled", got)
	}
}

// testRevokeClockCorrected: a node whose clock was ahead has published a key that is
// pending by everyone's clock now.
func testRevokeClockCorrected(t *testing.T, w *world) {
	ahead := w.nodes[1]
	ahead.kekd.JumpClock(t, time.Minute)
	fresh := w.nodes[0].create(t, "--activate-in", "40s")
	w.awaitKey(t, ahead, fresh.KeyID)
	ahead.kekd.JumpClock(t, 0)
	c := w.revoke(t, ahead, fresh)
	t.Logf("kekctl revoke ended with %d", c.code)
	var report struct{ Successor string }
	_ = json.Unmarshal([]byte(c.stdout.String()), &report)
	// By then the successor is the primary everywhere, or the ring is rotated once more.
	within := time.Minute
	if report.Successor == "" {
		w.nodes[0].try(t, "key", "rotate", "--now", "--yes")
	}
	for _, n := range w.nodes {
		harness.Eventually(t, within, n.name+" encrypts under a key that is not revoked", func(c ctx) error {
			got, err := w.seal(c, n)
			if err == nil && report.Successor != "" && got != report.Successor {
				err = fmt.Errorf("it encrypts under %s, want %s", got, report.Successor)
			}
			return err
		})
	}
}
