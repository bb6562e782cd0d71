package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// testInterrupted: Ctrl-C while kekctl waits for the activation, and in the middle of
// the re-encryption; each time the next run goes on where it was.
func testInterrupted(t *testing.T, c *cluster) {
	const objects = 60
	slow := []string{"--yes", "--method", "update", "--rate", "5"}
	rotate := join([]string{"rotate", "--activate-in", activateIn}, slow, c.nodeFlags, c.kubeFlags, c.etcdFlags)
	rewrap := join([]string{"rewrap"}, slow, c.kubeFlags, c.etcdFlags)
	l := newLoad(t, c, objects)
	old := c.requireKey(t, "primary")
	before := len(c.ring(t))

	// While it waits for the activation.
	k := c.nodes[0].kekd.Kekctl(t, rotate...)
	awaitRun(t, k, "it waits for the activation", func(context.Context) error {
		if !strings.Contains(k.Stderr(t), "6 activation") {
			return errors.New(k.Stderr(t))
		}
		return nil
	})
	interrupt(t, k)
	fresh := c.requireKey(t, "pending")

	// It takes the same key up, and is interrupted while it rewrites.
	k = c.nodes[0].kekd.Kekctl(t, rotate...)
	awaitRewrites(t, c, k, fresh, 5)
	interrupt(t, k)
	if text := k.Stderr(t); !strings.Contains(text, fresh.KeyID+" is pending already") {
		t.Errorf("the second run does not say that it takes up %s:\n%s", fresh.KeyID, text)
	}
	left := c.standing(t, secrets, configmaps)[old.KeyID]
	if left == 0 {
		t.Fatal("nothing is left to rewrite: this case shows nothing")
	}
	t.Logf("after the second run %d objects are left", left)

	// So is a rewrap of its own.
	k = c.nodes[0].kekd.Kekctl(t, rewrap...)
	awaitRewrites(t, c, k, fresh, 5)
	interrupt(t, k)
	if left = c.standing(t, secrets, configmaps)[old.KeyID]; left == 0 {
		t.Fatal("nothing is left to rewrite: this case shows nothing")
	}
	t.Logf("after the third run %d objects are left", left)
	var result rewrapped
	c.kekctlJSON(t, &result, append(rewrap, "--rate", fastRate)...)
	if result.Found != left || result.Updated != left || result.Left != 0 {
		t.Errorf("kekctl rewrap says %+v, want the %d that were left", result, left)
	}
	c.requireAllUnder(t, fresh.KeyID)

	// The rotation is still open: its last run finds nothing to do and makes no key.
	c.kekctl(t, 0, rotate...)
	if got := c.requireKey(t, "primary"); got != (key{fresh.ID, fresh.KeyID, "primary"}) {
		t.Errorf("the primary is %+v, want %s", got, fresh.KeyID)
	}
	if got := len(c.ring(t)); got != before+1 {
		t.Errorf("the ring has %d keys, want one more than the %d before", got, before)
	}
	l.requireReadable(t)
	l.requireNone(t)
}

// awaitRewrites waits until the run has brought n more objects under the key.
func awaitRewrites(t *testing.T, c *cluster, k *harness.Kekctl, fresh key, n int) {
	t.Helper()
	had := -1
	awaitRun(t, k, fmt.Sprintf("%d objects are rewritten", n), func(context.Context) error {
		under := c.standing(t, secrets, configmaps)[fresh.KeyID]
		if had < 0 {
			had = under
		}
		if under < had+n {
			return fmt.Errorf("%d objects stand under the key, %d did; %s", under, had, k.Stderr(t))
		}
		return nil
	})
}

// awaitRun waits for something that a run of kekctl does before its end.
func awaitRun(t *testing.T, k *harness.Kekctl, what string, try func(context.Context) error) {
	t.Helper()
	harness.Eventually(t, kekctlWithin, what, func(ctx context.Context) error {
		err := try(ctx)
		if err != nil && !k.Running() {
			err = fmt.Errorf("kekctl has ended: %w: %w", harness.ErrHopeless, err)
		}
		return err
	})
}

// interrupt interrupts a run, which must not succeed and must end soon.
func interrupt(t *testing.T, k *harness.Kekctl) {
	t.Helper()
	k.Interrupt(t)
	if code := k.Wait(t, 10*time.Second); code != 1 {
		t.Fatalf("kekctl ends with %d after an interruption, want 1\n%s", code, k.Stderr(t))
	}
}

// testInterruptedAtEachStep ends kekctl after the first line of each step by SIGKILL, and
// runs it again: the key that was created is the only one, and all ends under it.
func testInterruptedAtEachStep(t *testing.T, c *cluster) {
	const objects = 20
	rotate := join([]string{"rotate", "--activate-in", activateIn, "--yes", "--method", "update", "--rate", "20"}, c.nodeFlags, c.kubeFlags, c.etcdFlags)
	l := newLoad(t, c, objects)
	before := len(c.ring(t))
	for step := 1; step <= 10; step++ {
		k := c.nodes[0].kekd.Kekctl(t, rotate...)
		// Later steps come at once where an earlier run has done their work.
		awaitRun(t, k, fmt.Sprintf("step %d begins", step), func(context.Context) error {
			if text := "\n" + k.Stderr(t); !strings.Contains(text, fmt.Sprintf("\n%d ", step)) {
				return errors.New(text)
			}
			return nil
		})
		k.Kill(t)
		if n := len(c.ring(t)); n > before+1 {
			t.Fatalf("killed in step %d, the ring has %d keys, want at most one more than the %d before\n%s", step, n, before, k.Stderr(t))
		}
	}
	c.kekctl(t, 0, rotate...)
	fresh := c.requireKey(t, "primary")
	if n := len(c.ring(t)); n != before+1 {
		t.Errorf("the ring has %d keys, want one more than the %d before", n, before)
	}
	c.requireAllUnder(t, fresh.KeyID)
	l.requireReadable(t)
	l.requireNone(t)
}

// testNothingBegun: what would make a new key useless is found before there is one.
func testNothingBegun(t *testing.T, c *cluster) {
	n := c.nodes[0]
	l := newLoad(t, c, fewObjects)
	before := c.ring(t)
	rotate := join([]string{"rotate", "--activate-in", activateIn, "--yes", "--method", "update", "--rate", fastRate}, c.nodeFlags, c.etcdFlags)

	// A kube-apiserver that does not answer, and a second node for it.
	k := c.kekctl(t, 1, join(rotate, c.kubeFlags, []string{"--apiserver", "https://127.0.0.1:1", "--node", n.kekd.URL})...)
	if text := k.Stderr(t); !strings.Contains(text, "2 reach       https://127.0.0.1:1: ") || strings.Contains(text, "\n3 ") {
		t.Errorf("kekctl rotate does not end in step 2 with a kube-apiserver that is away:\n%s", text)
	}
	// A kekd that does not answer.
	k = c.kekctl(t, 1, join(rotate, c.kubeFlags, []string{"--node", "http://127.0.0.1:1"})...)
	if text := k.Stderr(t); !strings.Contains(text, "2 reach       127.0.0.1:1: ") {
		t.Errorf("kekctl rotate does not end in step 2 with a kekd that is away:\n%s", text)
	}
	if after := c.ring(t); !slices.Equal(after, before) {
		t.Errorf("the ring is %+v, want %+v: a key was created", after, before)
	}
	l.requireReadable(t)
}
