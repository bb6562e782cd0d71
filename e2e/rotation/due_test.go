package rotation

import (
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// testIfDue: what a timer runs every day does nothing before the primary is as old
// as the policy says, and the whole rotation then.
func testIfDue(t *testing.T, c *cluster) {
	n := c.nodes[0]
	l := newLoad(t, c, fewObjects)
	rotate := join([]string{"rotate", "--if-due", "--yes", "--activate-in", "2s", "--method", "update", "--rate", fastRate},
		c.nodeFlags, c.kubeFlags, c.etcdFlags)
	violations := map[string]string{"rule": "max-age"}

	n.configure(t, harness.KekdOptions{MaxAge: 2160 * time.Hour}, 0)
	old := c.requireKey(t, "primary")
	k := c.kekctl(t, 0, rotate...)
	if text := k.Stderr(t); !strings.Contains(text, "of 90 days") {
		t.Errorf("kekctl rotate --if-due says\n%s\nwant how old the primary is", text)
	}
	if now := c.requireKey(t, "primary"); now != old {
		t.Fatalf("the primary is %s, want the key %s, which is not due", now.ID, old.ID)
	}
	if v := n.kekd.Metrics(t).Sum("kekd_key_policy_violations", violations); v != 0 {
		t.Errorf("kekd counts %v violations, want 0", v)
	}

	n.configure(t, harness.KekdOptions{MaxAge: time.Second}, 0)
	if v := n.kekd.Metrics(t).Sum("kekd_key_policy_violations", violations); v != 1 {
		t.Errorf("kekd counts %v violations, want 1", v)
	}
	c.kekctl(t, 1, "doctor")
	c.kekctl(t, 0, rotate...)
	fresh := c.requireKey(t, "primary")
	if fresh == old {
		t.Fatal("the primary is due and was not rotated")
	}
	c.requireAllUnder(t, fresh.KeyID)
	l.requireReadable(t)
}
