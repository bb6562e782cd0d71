package rotation

import (
	"context"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsservice "k8s.io/kms/pkg/service"

	"kekd/e2e/internal/harness"
)

// revokeRefresh is kekd's default for keyRing.refresh, and a node may take one
// second more to refuse a revoked key.
const (
	revokeRefresh = 10 * time.Second
	revokeWithin  = revokeRefresh + time.Second
	// revokeGap: a node lets go of a revoked key before it makes a seed under the next.
	revokeGap = time.Second
)

// testRevoke measures the time from kekctl revoke to the refusal on every node, and
// goes the whole way back to a cluster that needs the key no more.
func testRevoke(t *testing.T, c *cluster) {
	for _, n := range c.nodes {
		n.configure(t, harness.KekdOptions{Refresh: revokeRefresh}, 0)
	}
	l := newLoad(t, c, fewObjects)
	l.requireReadable(t) // so each apiserver has opened all seeds

	printed, refused := c.revoke(t, c.nodeFlags...)
	for i, n := range printed.Nodes {
		t.Logf("node %d refused the key after %.2f s; kekctl saw it after %.2f s", i, refused[i].Seconds(), n.Seconds)
	}
	t.Logf("kekctl says: revoked within %.2f s on every node", printed.Seconds)
	for i := range c.nodes {
		if refused[i] > revokeWithin || printed.Nodes[i].Seconds > revokeWithin.Seconds() {
			t.Errorf("node %d refused the key after %v, by kekctl %v s, want at most %v", i, refused[i], printed.Nodes[i].Seconds, revokeWithin)
		}
	}

	// The apiservers keep what they have opened: long enough to rewrite it.
	l.requireReadable(t)
	c.awaitWrites(t, printed.Successor)
	c.kekctl(t, 0, join([]string{"rewrap", "--yes", "--method", "update", "--rate", fastRate}, c.kubeFlags, c.etcdFlags)...)
	c.requireAllUnder(t, printed.Successor)
	for _, n := range c.nodes {
		n.restart(t)
	}
	l.requireReadable(t)

	// A node that kekctl does not reach refuses the key by its own look at the ring.
	printed, refused = c.revoke(t, c.nodeFlags[:2]...)
	t.Logf("node 1, which kekctl did not reach, refused the key after %.2f s; node 0 after %.2f s", refused[1].Seconds(), refused[0].Seconds())
	if late := refused[1] - refused[0]; late > revokeWithin {
		t.Errorf("node 1 refused the key %v after node 0, want at most %v", late, revokeWithin)
	}
}

// revocation is what kekctl revoke prints.
type revocation struct {
	Revoked, Successor string
	Nodes              []struct {
		Seconds float64
		Problem string
	}
	Seconds float64
}

// revoke revokes the primary, and returns what kekctl says and when each node
// refused to decrypt what is under the key, from the start of the command. Every
// node must encrypt under the next key by then, and Status must not fail but for the
// moment in between.
func (c *cluster) revoke(t *testing.T, nodeFlags ...string) (printed revocation, refused []time.Duration) {
	t.Helper()
	old := c.requireKey(t, "primary")
	sealed := make([]*kmsservice.EncryptResponse, len(c.nodes))
	clients := make([]kmsservice.Service, len(c.nodes))
	watches := make([]*keyIDWatch, len(c.nodes))
	for i, n := range c.nodes {
		clients[i], sealed[i] = mustSeal(t, n.kekd)
		if err := open(t.Context(), clients[i], sealed[i]); err != nil || sealed[i].KeyID != old.KeyID {
			t.Fatalf("node %d works under %s (%v), want %s", i, sealed[i].KeyID, err, old.KeyID)
		}
		watches[i] = watchKeyID(t, n.kekd)
	}
	refused = make([]time.Duration, len(c.nodes))
	var all sync.WaitGroup
	start := time.Now()
	for i := range c.nodes {
		all.Go(func() { refused[i] = untilRefused(t.Context(), clients[i], sealed[i], start) })
	}
	c.kekctlJSON(t, &printed, append([]string{"revoke", old.ID, "--yes"}, nodeFlags...)...)
	all.Wait()
	if printed.Revoked != old.KeyID || len(printed.Nodes) != len(nodeFlags)/2 {
		t.Fatalf("kekctl revoke says %+v, want %s revoked", printed, old.KeyID)
	}
	for i, n := range c.nodes {
		if refused[i] == 0 {
			t.Fatalf("node %d still decrypts what is under %s", i, old.KeyID)
		}
		awaitKeyID(t, n.kekd, printed.Successor, revokeWithin)
		watches[i].requireOneChange(t, old.KeyID, printed.Successor, revokeGap)
	}
	c.requireState(t, old.ID, "disabled")
	return printed, refused
}

// untilRefused returns how long after start kekd refuses to decrypt because of the
// key's state; 0 if it does not in time.
func untilRefused(ctx context.Context, s kmsservice.Service, sealed *kmsservice.EncryptResponse, start time.Time) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, 3*revokeWithin)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if status.Code(open(ctx, s, sealed)) == codes.FailedPrecondition {
			return time.Since(start)
		}
		select {
		case <-ctx.Done():
			return 0
		case <-tick.C:
		}
	}
}
