package rotation

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kekd/e2e/internal/harness"
)

// outOfUse is longer than it takes until every node and kube-apiserver has left a key
// behind for certain.
const outOfUse = "3m"

// witnessFlags name everyone who could use a key.
func (c *cluster) witnessFlags() []string { return join(c.nodeFlags, c.kubeFlags, c.etcdFlags) }

// testGuards: a key is not taken out of use while an object needs it; restore brings
// a scheduled key back, and purge ends it.
func testGuards(t *testing.T, c *cluster) {
	const objects = 20
	n := c.nodes[0]
	l := newLoad(t, c, objects)
	old := c.requireKey(t, "primary")
	_, all := l.snapshot()
	kept := all[slices.IndexFunc(all, func(o *object) bool { return o.resource == secrets })]
	value, _, err := c.stored(t.Context(), kept.resource, kept.name)
	if err != nil {
		t.Fatal(err)
	}
	c.kekctl(t, 0, "key", "rotate", "--yes", "--activate-in", "2s")
	fresh := c.requireKey(t, "pending")
	awaitKeyID(t, n.kekd, fresh.KeyID, 20*time.Second)

	disable := []string{"key", "disable", old.ID, "--yes"}
	destroy := []string{"key", "destroy", old.ID, "--yes", "--after"}
	purge := []string{"key", "purge", old.ID, "--yes"}
	for _, command := range [][]string{disable, join(destroy, []string{"30d"})} {
		c.requireGuarded(t, old, command...)
		k := c.kekctl(t, 1, append(command, "--etcd-endpoints", "http://127.0.0.1:1")...)
		if text := k.Stderr(t); !strings.Contains(text, "etcd http://127.0.0.1:1: unknown: could not be asked") {
			t.Errorf("kekctl %q without etcd says\n%s", command, text)
		}
	}
	c.requireState(t, old.ID, "retired")
	c.requireInUse(t)

	// It waits for what kube-apiserver has not noticed yet.
	c.kekctl(t, 0, join([]string{"rewrap", "--yes", "--method", "update", "--rate", fastRate}, c.kubeFlags, c.etcdFlags)...)
	c.requireAllUnder(t, fresh.KeyID)
	// It waits until no node and no kube-apiserver can be behind.
	c.kekctl(t, 0, join(destroy, []string{"30d", "--wait", outOfUse}, c.witnessFlags())...)
	c.requireState(t, old.ID, "scheduled-for-destruction")

	// An object from a backup, and an apiserver that has not opened its seed yet.
	c.put(t, kept, value)
	awaitState(t, n.kekd, old.KeyID, "scheduled-for-destruction")
	n.restartAPIServer(t)
	c.requireUnreadable(t, kept, "the KEK is disabled, scheduled for destruction or gone", old.KeyID)
	c.kekctl(t, 0, "key", "restore", old.ID, "--yes")
	c.requireState(t, old.ID, "retired")
	took := harness.Eventually(t, 20*time.Second, "the restored key opens it", func(ctx context.Context) error {
		return l.clients[0].check(ctx, kept)
	})
	t.Logf("the object reads back %v after the restore", took.Round(time.Millisecond))

	// The object counts for all that takes the key away.
	for _, command := range [][]string{disable, join(destroy, []string{"30d"})} {
		c.requireGuarded(t, old, command...)
	}
	c.put(t, kept, nil)
	c.kekctl(t, 0, join(destroy, []string{"30d", "--wait", outOfUse}, c.witnessFlags())...)
	k := c.kekctl(t, 1, join(purge, c.witnessFlags())...)
	if text := k.Stderr(t); !strings.Contains(text, "must not be purged before") {
		t.Errorf("kekctl %q before the date says\n%s", purge, text)
	}
	c.kekctl(t, 0, "key", "restore", old.ID, "--yes")
	k = c.kekctl(t, 1, join(destroy, []string{"0d"}, c.witnessFlags())...)
	if text := k.Stderr(t); !strings.Contains(text, "--after: must be at least 1d (keyRing.policy.minDestroyDelay), got 0d") {
		t.Errorf("kekctl %q with 0d says\n%s", destroy, text)
	}
	c.kekctl(t, 0, join(destroy, []string{"0d", "--force", old.ID}, c.witnessFlags())...)
	c.put(t, kept, value)
	c.requireGuarded(t, old, purge...)
	c.requireState(t, old.ID, "scheduled-for-destruction")
	c.put(t, kept, nil)
	c.kekctl(t, 0, join(purge, []string{"--wait", outOfUse}, c.witnessFlags())...)
	c.requireState(t, old.ID, "gone")

	c.put(t, kept, value)
	awaitState(t, n.kekd, old.KeyID, "gone")
	n.restartAPIServer(t)
	c.requireUnreadable(t, kept, "the KEK is not on the token", old.KeyID)
	c.put(t, kept, nil)
	n.apiserver.WaitStatus(t, "/readyz", http.StatusOK, kmsHealthyWithin)
}

// requireInUse requires that kekctl counts the objects of each key as they stand in etcd.
func (c *cluster) requireInUse(t *testing.T) {
	t.Helper()
	var listing struct {
		Keys []struct {
			KeyID   string
			Objects *int
		}
	}
	c.kekctlJSON(t, &listing, join([]string{"key", "list", "--in-use"}, c.etcdFlags)...)
	standing := c.standing(t, secrets, configmaps)
	for _, k := range listing.Keys {
		if k.Objects == nil || *k.Objects != standing[k.KeyID] {
			t.Errorf("kekctl counts %v objects under %s, want %d", k.Objects, k.KeyID, standing[k.KeyID])
		}
	}
}

// requireGuarded requires that kekctl refuses a command because of what stands
// under the key, and counts it right.
func (c *cluster) requireGuarded(t *testing.T, k key, command ...string) {
	t.Helper()
	run := c.kekctl(t, 1, join(command, c.witnessFlags())...)
	text := run.Stderr(t)
	total := 0
	for _, resource := range []string{secrets, configmaps} {
		n := c.standing(t, resource)[k.KeyID]
		total += n
		if want := fmt.Sprintf("%d of %s", n, resource); n > 0 && !strings.Contains(text, want) {
			t.Errorf("kekctl %q does not say %q:\n%s", command, want, text)
		}
	}
	if want := fmt.Sprintf("%d objects", total); total == 0 || !strings.Contains(text, want) {
		t.Errorf("kekctl %q does not say %q:\n%s", command, want, text)
	}
}

// put sets the bytes of an object in etcd; nil removes it.
func (c *cluster) put(t *testing.T, o *object, value []byte) {
	t.Helper()
	name := storedKey(o.resource, o.name)
	var err error
	if value == nil {
		_, err = c.etcd.Delete(t.Context(), name)
	} else {
		_, err = c.etcd.Put(t.Context(), name, string(value))
	}
	if err != nil {
		t.Fatalf("write %s into etcd: %v", name, err)
	}
}

// restartAPIServer makes the apiserver forget the seeds that it has opened. It may
// hold objects that it cannot read, and then is not ready.
func (n *node) restartAPIServer(t *testing.T) {
	t.Helper()
	n.apiserver.Kill(t)
	n.apiserver.Start(t)
}

// requireUnreadable requires that a read fails for the reason and that the error
// names the key.
func (c *cluster) requireUnreadable(t *testing.T, o *object, reason, keyID string) {
	t.Helper()
	harness.Eventually(t, time.Minute, "the read fails for its reason", func(ctx context.Context) error {
		_, err := c.nodes[0].kube.CoreV1().Secrets(metav1.NamespaceDefault).Get(ctx, o.name, metav1.GetOptions{})
		if err == nil {
			return fmt.Errorf("the secret reads back: %w", harness.ErrHopeless)
		}
		if text := err.Error(); !strings.Contains(text, reason) || !strings.Contains(text, keyID) {
			return fmt.Errorf("it is %w, want %q and %s", err, reason, keyID)
		}
		t.Logf("the read fails: %v", err)
		return nil
	})
}
