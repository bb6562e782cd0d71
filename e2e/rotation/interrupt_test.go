package rotation

import (
	"context"
	"errors"
	"fmt"
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
		if !strings.Contains(k.Stderr(t), "4 activation") {
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
