package rotation

import (
	"slices"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

const (
	// manyObjects is what stands in etcd before a rotation.
	manyObjects = 400
	// activateIn leaves kekctl some seconds in which it could still cancel the key.
	activateIn = "12s"
	// fastRate has kekctl rewrite objects as fast as a small machine can.
	fastRate = "500"
)

// rewrapped is what kekctl says of a re-encryption.
type rewrapped struct {
	Found, Updated, Left int
	Migrated             []string
}

// testWholeJourney: one command rotates while others write and read, and fails
// nobody.
func testWholeJourney(t *testing.T, c *cluster) {
	l := newLoad(t, c, manyObjects)
	old := c.requireKey(t, "primary")
	l.start(t)
	watch := watchKeyID(t, c.nodes[0].kekd)

	var result struct {
		KeyID     string
		Rewrap    rewrapped
		Retirable []struct{ ID string }
	}
	start := time.Now()
	c.kekctlJSON(t, &result, join([]string{"rotate", "--yes", "--activate-in", activateIn, "--method", "update", "--rate", fastRate},
		c.nodeFlags, c.kubeFlags, c.etcdFlags)...)
	t.Logf("kekctl rotate took %v: %+v", time.Since(start).Round(time.Millisecond), result)
	if result.Rewrap.Updated < manyObjects/2 || result.Rewrap.Left != 0 {
		t.Errorf("kekctl rotate says %+v, want at least %d updated and none left", result.Rewrap, manyObjects/2)
	}
	if len(result.Retirable) != 1 || result.Retirable[0].ID != old.ID {
		t.Errorf("kekctl rotate calls %+v retirable, want key %s", result.Retirable, old.ID)
	}
	fresh := c.requireKey(t, "primary")
	if fresh.KeyID != result.KeyID {
		t.Errorf("kekctl rotate says that %s is the primary, it is %s", result.KeyID, fresh.KeyID)
	}
	requireEnded(t, c, l, watch, old, fresh)
}

// testMigration: the steps one by one; the cluster migrates by itself.
func testMigration(t *testing.T, c *cluster) {
	harness.StartControllerManager(t, c.nodes[0].apiserver)
	l := newLoad(t, c, manyObjects)
	old := c.requireKey(t, "primary")
	l.start(t)
	watch := watchKeyID(t, c.nodes[0].kekd)

	c.kekctl(t, 0, "key", "rotate", "--yes", "--activate-in", activateIn)
	fresh := c.requireKey(t, "pending")
	// What is not activated is not taken up, and nothing is rewritten for it.
	c.requireAllUnder(t, old.KeyID)
	awaitKeyID(t, c.nodes[0].kekd, fresh.KeyID, 30*time.Second)
	c.awaitWrites(t, fresh.KeyID)
	var result rewrapped
	start := time.Now()
	c.kekctlJSON(t, &result, join([]string{"rewrap", "--yes", "--method", "migration"}, c.kubeFlags, c.etcdFlags)...)
	t.Logf("kekctl rewrap took %v: %+v", time.Since(start).Round(time.Millisecond), result)
	slices.Sort(result.Migrated)
	// One object of each resource is written through the apiserver beforehand, to see
	// what it writes.
	if !slices.Equal(result.Migrated, []string{configmaps, secrets}) || result.Updated != 2 || result.Left != 0 {
		t.Errorf("kekctl rewrap says %+v, want both resources migrated, one object of each updated and none left", result)
	}
	requireEnded(t, c, l, watch, old, fresh)
}

// requireEnded destroys the old key while the load goes on, and requires that nobody
// has noticed anything, also when nothing is left in any memory.
func requireEnded(t *testing.T, c *cluster, l *load, watch *keyIDWatch, old, fresh key) {
	t.Helper()
	c.requireAllUnder(t, fresh.KeyID)
	c.kekctl(t, 0, join([]string{"key", "disable", old.ID, "--yes", "--wait", outOfUse}, c.witnessFlags())...)
	c.requireState(t, old.ID, "disabled")
	c.kekctl(t, 0, join([]string{"key", "destroy", old.ID, "--after", "0d", "--force", old.ID, "--yes"}, c.witnessFlags())...)
	c.requireState(t, old.ID, "scheduled-for-destruction")
	c.kekctl(t, 0, join([]string{"key", "purge", old.ID, "--yes"}, c.witnessFlags())...)
	c.requireState(t, old.ID, "gone")

	l.stop()
	l.requireNone(t)
	watch.requireOneChange(t, old.KeyID, fresh.KeyID, 0)
	l.requireReadable(t)
	c.nodes[0].restart(t)
	l.requireReadable(t)
	c.requireAllUnder(t, fresh.KeyID)
}
