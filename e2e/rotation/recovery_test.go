package rotation

import (
	"testing"

	"kekd/e2e/internal/harness"
)

// testTokenLost is the worst case of docs/disaster-recovery.md: the token is gone,
// there is no backup, and what the running apiserver holds in memory is all that is
// left of the keys. It is enough to bring every object under a key of another token.
func testTokenLost(t *testing.T, c *cluster) {
	n := c.nodes[0]
	l := newLoad(t, c, fewObjects)
	l.requireReadable(t)
	old := c.requireKey(t, "primary")

	n.kekd.Token.TakeAway(t)
	n.kekd.Token = harness.NewToken(t)
	n.kekd.Configure(t, harness.KekdOptions{})
	c.kekctl(t, 0, "key", "create", "--yes")
	fresh := c.requireKey(t, "primary")
	n.kekd.Stop(t)
	n.kekd.StartReady(t)

	c.awaitWrites(t, fresh.KeyID)
	c.kekctl(t, 0, join([]string{"rewrap", "--yes", "--method", "update", "--rate", fastRate}, c.kubeFlags, c.etcdFlags)...)
	c.requireAllUnder(t, fresh.KeyID)
	n.restart(t)
	l.requireReadable(t)
	c.requireState(t, old.ID, "gone")
}
