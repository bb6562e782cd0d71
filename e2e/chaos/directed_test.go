package chaos

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// directed is a case of its own in a world that it shares with others. It may leave
// anything behind that settle puts in order.
type directed struct {
	name string
	run  func(*testing.T, *world)
}

// TestDirected plays what once lost keys or was reported wrongly. Two control planes
// run side by side, since the cases wait more than they work.
func TestDirected(t *testing.T) {
	t.Parallel()
	for name, cases := range map[string][]directed{
		"use": {
			{"an API server still uses the key", testAPIServerStillUsesKey},
			{"two administrators change one key at once", testTwoAdministrators},
			{"a key is restored before its purge continues", testRestoredBeforePurge},
			{"yes is typed after the activation", testYesAfterActivation},
			{"the audit trail is locked until after the activation", testAuditLockedOverActivation},
			{"a node a few seconds ahead uses the key that is cancelled", testCancelNodeSecondsAhead},
		},
		"clocks": {
			{"failed creates", testFailedCreates},
			{"a revoked key is the primary of a node that is behind", testRevokeNodeBehind},
			{"the newest key is half made", testRevokeHalfMade},
			{"the HSM is lost after the successor was made", testRevokeHSMLost},
			{"the clock is corrected before the key is revoked", testRevokeClockCorrected},
			{"a node ahead uses the key that is cancelled", testCancelNodeAhead},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			servers := map[string]int{"use": 3, "clocks": 1}[name]
			w := newWorld(t, 3, servers)
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) {
					w.settle(t)
					begun := time.Now()
					c.run(t, w)
					w.requireAllOpen(t, w.givenUp...)
					t.Logf("took %v", time.Since(begun).Round(time.Second))
				})
			}
		})
	}
}

// settle sets the clocks right, takes the faults away and waits until no key is pending
// and every node encrypts under the same.
func (w *world) settle(t *testing.T) {
	t.Helper()
	for _, n := range w.nodes {
		n.kekd.JumpClock(t, 0)
		n.kekd.Token.Faults(t)
	}
	harness.Eventually(t, time.Minute, "every node encrypts under the same key, and none is pending", func(c ctx) error {
		ids := map[string]bool{}
		for _, n := range w.nodes {
			status, err := n.kekd.Status(c)
			if err != nil {
				return err
			}
			for _, k := range status.KeyRing.Keys {
				if k.State == "pending" {
					return fmt.Errorf("%s: %s is pending", n.name, k.KeyID)
				}
			}
			id, err := w.seal(c, n)
			if err != nil {
				return fmt.Errorf("%s: %w", n.name, err)
			}
			ids[id] = true
		}
		if len(ids) != 1 {
			return fmt.Errorf("they encrypt under %v", ids)
		}
		return nil
	})
}

// giveUp notes that an administrator gave a key up: its values may be lost.
func (w *world) giveUp(keyID string) { w.givenUp = append(w.givenUp, keyID) }

// nodeFlags name every node.
func (w *world) nodeFlags() []string {
	var flags []string
	for _, n := range w.nodes {
		flags = append(flags, "--node", n.kekd.URL)
	}
	return flags
}

// requireRefused requires that kekctl refuses with the exit code 1, that its reason names
// one of the witnesses, and that the key stays as it was.
func (w *world) requireRefused(t *testing.T, c *command, id, state string, names ...string) {
	t.Helper()
	if c.wait(t) != 1 {
		t.Errorf("want exit code 1: %v", c)
	}
	said := c.stderr.String()
	if !slices.ContainsFunc(names, func(name string) bool { return strings.Contains(said, name) }) {
		t.Errorf("kekctl %q names none of %q as its reason:\n%s", c.args, names, said)
	}
	if got := stateOnToken(t, w.token, id); got != state {
		t.Errorf("after kekctl %q, which ended with %d, the key %s is %s on the token, want %s", c.args, c.code, id, got, state)
	}
}

// witnesses are what a refusal can name: the nodes and the API servers.
func (w *world) witnesses() []string {
	var names []string
	for _, n := range w.nodes {
		names = append(names, strings.TrimPrefix(n.kekd.URL, "http://"))
		if n.apiserver != nil {
			names = append(names, strings.TrimPrefix(n.apiserver.URL, "https://"))
		}
	}
	return names
}

// testAPIServerStillUsesKey: etcd holds nothing, and all API servers still have the seed
// of the key that was just replaced.
func testAPIServerStillUsesKey(t *testing.T, w *world) {
	w.clearSecrets(t)
	n := w.nodes[0]
	old := n.primary(t)
	fresh := n.create(t, "--now")
	for _, n := range w.nodes {
		w.awaitKey(t, n, fresh.KeyID)
	}
	w.requireRefused(t, n.try(t, "key", "disable", old.ID, "--yes"), old.ID, "enabled", w.witnesses()...)
	w.putRight(t, old)
	w.requireRefused(t, n.try(t, "key", "destroy", old.ID, "--yes", "--after", "30d"), old.ID, "enabled", w.witnesses()...)
	w.putRight(t, old)

	w.relabel(t, old.ID, due())
	for _, n := range w.nodes {
		n.awaitState(t, old.KeyID, "scheduled-for-destruction")
	}
	w.requireRefused(t, n.try(t, "key", "purge", old.ID, "--yes"), old.ID, "scheduled", w.witnesses()...)
	if stateOnToken(t, w.token, old.ID) == "gone" {
		w.giveUp(old.KeyID)
	}
	for i, n := range w.nodes[:2] {
		id, err := w.writeSecret(t.Context(), n, fmt.Sprintf("early-%d", i))
		if err != nil {
			t.Errorf("write a Secret through %s: %v", n.name, err)
		}
		t.Logf("the API server of %s writes under %s; the key that was replaced is %s", n.name, id, old.KeyID)
	}
	w.putRight(t, old)
	w.requireReadable(t)
}

// putRight brings a key back into use, whatever a case has done to it.
func (w *world) putRight(t *testing.T, k key) {
	t.Helper()
	n := w.nodes[0]
	switch stateOnToken(t, w.token, k.ID) {
	case "disabled":
		n.must(t, "key", "enable", k.ID, "--yes")
	case "scheduled":
		n.must(t, "key", "restore", k.ID, "--yes")
	case "gone":
		return
	}
	for _, n := range w.nodes {
		n.awaitState(t, k.KeyID, "retired")
	}
}

// replaced makes a key that takes over at once, and returns the one before.
func (w *world) replaced(t *testing.T) key {
	t.Helper()
	old := w.nodes[0].primary(t)
	fresh := w.nodes[0].create(t, "--now")
	for _, n := range w.nodes {
		w.awaitKey(t, n, fresh.KeyID)
	}
	return old
}

// testTwoAdministrators: both have seen the key retired, and both are about to change it.
func testTwoAdministrators(t *testing.T, w *world) {
	old := w.replaced(t)
	for range 3 {
		free := []func(){w.nodes[0].holdTurn(t), w.nodes[1].holdTurn(t)}
		destroy := w.nodes[0].start(t, "key", "destroy", old.ID, "--after", "30d", "--yes", "--force", old.ID)
		disable := w.nodes[1].start(t, "key", "disable", old.ID, "--yes", "--force", old.ID)
		destroy.awaitText(t, "out of use")
		disable.awaitText(t, "isables")
		for _, f := range free {
			f()
		}
		destroy.wait(t)
		disable.wait(t)
		got := stateOnToken(t, w.token, old.ID)
		want := map[[2]bool]string{{true, false}: "scheduled", {false, true}: "disabled"}[[2]bool{destroy.code == 0, disable.code == 0}]
		if want == "" {
			t.Errorf("destroy and disable of one key at once end with %d and %d, want one success; the key is %s\n%v%v", destroy.code, disable.code, got, destroy, disable)
		} else if got != want {
			t.Errorf("the key is %s on the token, want %s\n%v%v", got, want, destroy, disable)
		}
		w.putRight(t, old)
	}
}

// testRestoredBeforePurge: a purge waits for the audit trail while another administrator
// restores the key.
func testRestoredBeforePurge(t *testing.T, w *world) {
	old := w.replaced(t)
	w.relabel(t, old.ID, due())
	for _, n := range w.nodes {
		n.awaitState(t, old.KeyID, "scheduled-for-destruction")
	}
	free := w.nodes[0].holdTurn(t)
	purge := w.nodes[0].start(t, "key", "purge", old.ID, "--yes", "--force", old.ID)
	purge.awaitText(t, "DESTROYS", "for good")
	w.nodes[1].must(t, "key", "restore", old.ID, "--yes")
	free()
	w.requireRefused(t, purge, old.ID, "enabled", old.ID)
	w.putRight(t, old)
}

// overActivation makes a key, has a cancellation of it begin in time, and lets go of it
// when these nodes encrypt under the key.
func (w *world) overActivation(t *testing.T, users []*node, begin func(fresh key) (cancel *command, letGo func())) {
	t.Helper()
	fresh := w.nodes[0].create(t, "--activate-in", "18s")
	for _, n := range w.nodes {
		n.awaitState(t, fresh.KeyID, "pending")
	}
	cancel, letGo := begin(fresh)
	for _, n := range users {
		w.awaitKey(t, n, fresh.KeyID)
	}
	letGo()
	w.requireRefused(t, cancel, fresh.ID, "enabled", fresh.ID)
}

// testYesAfterActivation: the prompt stands while the key activates.
func testYesAfterActivation(t *testing.T, w *world) {
	w.overActivation(t, w.nodes, func(fresh key) (*command, func()) {
		keyboard, input := terminal(t)
		c := w.nodes[0].startWith(t, input, "key", "cancel", fresh.ID)
		c.awaitText(t, "[y/N]")
		return c, func() {
			if _, err := keyboard.WriteString("y\n"); err != nil {
				t.Fatalf("type yes: %v", err)
			}
		}
	})
}

// testAuditLockedOverActivation: another kekctl holds the audit trail while the key
// activates.
func testAuditLockedOverActivation(t *testing.T, w *world) {
	w.overActivation(t, w.nodes, w.cancelWithoutTurn(t))
}

// cancelWithoutTurn has a cancellation wait for its turn.
func (w *world) cancelWithoutTurn(t *testing.T) func(key) (*command, func()) {
	return func(fresh key) (*command, func()) {
		free := w.nodes[0].holdTurn(t)
		c := w.nodes[0].start(t, "key", "cancel", fresh.ID, "--yes")
		c.awaitText(t, "emoves the pending key", fresh.ID)
		return c, free
	}
}

// testCancelNodeSecondsAhead: one node is five seconds ahead and uses the key before
// kekctl takes it for active.
func testCancelNodeSecondsAhead(t *testing.T, w *world) {
	ahead := w.nodes[2]
	ahead.kekd.JumpClock(t, 5*time.Second)
	w.overActivation(t, []*node{ahead}, w.cancelWithoutTurn(t))
}

// testCancelNodeAhead: one node is three minutes ahead and uses the key at once.
func testCancelNodeAhead(t *testing.T, w *world) {
	ahead := w.nodes[2]
	ahead.kekd.JumpClock(t, 3*time.Minute)
	fresh := w.nodes[0].create(t, "--activate-in", "2m")
	w.awaitKey(t, ahead, fresh.KeyID)
	for range 20 {
		w.mustSeal(t, ahead)
	}
	w.requireRefused(t, w.nodes[0].try(t, "key", "cancel", fresh.ID, "--yes"), fresh.ID, "enabled", strings.TrimPrefix(ahead.kekd.URL, "http://"))
	for _, n := range w.nodes {
		n.awaitState(t, fresh.KeyID, map[bool]string{true: "primary", false: "pending"}[n == ahead])
	}
	w.requireAllOpen(t, w.givenUp...)
	ahead.kekd.JumpClock(t, 0)
	w.requireRefused(t, w.nodes[0].try(t, "key", "cancel", fresh.ID, "--yes"), fresh.ID, "enabled", strings.TrimPrefix(ahead.kekd.URL, "http://"))
}

// testFailedCreates: whatever fails in a create, no key is left that kekctl does not
// speak of.
func testFailedCreates(t *testing.T, w *world) {
	n := w.nodes[0]
	faults := [][]string{
		{"C_GenerateKey after rv=0x5 n=1"}, {"C_GenerateKey after rv=0x30 n=1"}, {"C_GenerateKey after crash n=1"}, {"C_GenerateKey after exit n=1"},
		{"C_GenerateKey after rv=0x5 n=1", "C_DestroyObject rv=0x30 n=1"}, {"C_GenerateKey after closeall n=1"},
		{"C_GenerateKey after rv=0x5 n=1", "C_FindObjectsInit rv=0x30 n=3"}, {"C_GenerateKey rv=0x5 n=1"},
	}
	failed := 0
	for round := range 24 {
		before := list(t, w.token)
		n.kekd.Token.Faults(t, faults[round%len(faults)]...)
		c := n.try(t, "key", "create", "--yes", "--activate-in", "2h")
		n.kekd.Token.Faults(t)
		for _, k := range list(t, w.token) {
			if slices.Contains(before, k) {
				continue
			}
			if c.code != 0 && !strings.Contains(c.stderr.String(), k.ID) {
				t.Errorf("%v: kekctl does not speak of the key %s, which it has left on the token: %v", faults[round%len(faults)], k.ID, c)
			}
			onToken(t, w.token, tokenRequest{Op: "destroy", ID: k.ID})
		}
		if c.code != 0 {
			failed++
		}
	}
	if failed == 0 {
		t.Error("no create failed: this case shows nothing")
	}
}
