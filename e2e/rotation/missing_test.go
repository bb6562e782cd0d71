package rotation

import (
	"strings"
	"testing"
)

// testNodeMissing: a key that a node has not seen in time is cancelled by the
// rotation that made it, before anything is encrypted under it.
func testNodeMissing(t *testing.T, c *cluster) {
	old := c.requireKey(t, "primary")
	before := len(c.ring(t))
	c.nodes[1].kekd.Stop(t)
	k := c.kekctl(t, 1, join([]string{"rotate", "--yes", "--activate-in", activateIn}, c.nodeFlags, c.kubeFlags, c.etcdFlags)...)
	text := k.Stderr(t)
	for _, want := range []string{"has proven the key", "does not see it: ", "so it was cancelled; nothing was encrypted under it"} {
		if !strings.Contains(text, want) {
			t.Errorf("kekctl rotate does not say %q:\n%s", want, text)
		}
	}
	if now := c.requireKey(t, "primary"); now != old || len(c.ring(t)) != before {
		t.Errorf("the ring is %+v, want key %s the primary and none beside the %d before", c.ring(t), old.ID, before)
	}
	awaitKeyID(t, c.nodes[0].kekd, old.KeyID, takenUpWithin)
}
