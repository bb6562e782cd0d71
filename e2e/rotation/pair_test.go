package rotation

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"
	kmsservice "k8s.io/kms/pkg/service"

	"kekd/e2e/internal/harness"
)

// fewObjects is what each node of two has in etcd before a rotation.
const fewObjects = 40

// testClocksApart: the node whose clock is ahead switches first, and the other opens
// at once what it writes.
func testClocksApart(t *testing.T, c *cluster) {
	const ahead = 2 * time.Second
	c.nodes[1].configure(t, harness.KekdOptions{}, ahead)
	l := newLoad(t, c, fewObjects)
	old := c.requireKey(t, "primary")
	l.start(t)
	watches := []*keyIDWatch{watchKeyID(t, c.nodes[0].kekd), watchKeyID(t, c.nodes[1].kekd)}

	run := c.nodes[0].kekd.Kekctl(t, join([]string{"rotate", "--yes", "--activate-in", activateIn, "--method", "update", "--rate", fastRate},
		c.nodeFlags, c.kubeFlags, c.etcdFlags)...)
	var sealed *kmsservice.EncryptResponse
	fast, slow := client(t, c.nodes[1].kekd), client(t, c.nodes[0].kekd)
	awaitRun(t, run, "the node whose clock is ahead switches", func(ctx context.Context) (err error) {
		sealed, err = seal(ctx, fast)
		if err == nil && sealed.KeyID == old.KeyID {
			err = errors.New("it encrypts under the old key")
		}
		return err
	})
	if err := open(t.Context(), slow, sealed); err != nil {
		t.Errorf("the other node does not open what is under the new key: %v", err)
	}
	if s, err := slow.Status(t.Context()); err != nil || s.KeyID != old.KeyID {
		t.Errorf("Status of the other node is %+v (%v), want the old key: this case shows nothing", s, err)
	}
	if code := run.Wait(t, kekctlWithin); code != 0 {
		t.Fatalf("kekctl rotate ends with %d\n%s", code, run.Stderr(t))
	}
	if text := run.Stderr(t); !strings.Contains(text, "its clock is 2s ahead") {
		t.Errorf("kekctl rotate does not say that a clock is wrong:\n%s", text)
	}
	fresh := c.requireKey(t, "primary")
	c.requireAllUnder(t, fresh.KeyID)
	l.stop()
	l.requireNone(t)
	l.requireReadable(t)
	switched := watches[0].requireOneChange(t, old.KeyID, fresh.KeyID, 0)
	lead := switched.Sub(watches[1].requireOneChange(t, old.KeyID, fresh.KeyID, 0))
	t.Logf("the node whose clock is ahead switched %v before the other", lead.Round(time.Millisecond))
	if lead < ahead-time.Second || lead > ahead+time.Second {
		t.Errorf("the nodes switched %v apart, want about %v", lead, ahead)
	}
}

// testStoppedAtActivation: a kekd that has never seen the key is stopped when it
// activates. Its apiserver goes on with the old key and cannot open what the other
// writes, until kekd is back.
func testStoppedAtActivation(t *testing.T, c *cluster) {
	c.nodes[1].kekd.Stop(t)
	l := testAbsent(t, c,
		func() {},
		func() { c.nodes[1].kekd.Start(t) })
	l.requireReadableAfresh(t, c)
}

// testCutOffAtActivation: a kekd has seen the key and cannot reach the token when it
// activates. It keeps the old key and says so.
func testCutOffAtActivation(t *testing.T, c *cluster) {
	away := c.nodes[1].kekd
	watch := watchKeyID(t, away)
	old := c.requireKey(t, "primary")
	l := testAbsent(t, c,
		func() { away.Token.TakeAway(t) },
		func() {
			status, err := away.Status(t.Context())
			if err != nil || status.RingProblem == "" {
				t.Errorf("the kekd that is cut off from the token does not say so: %+v (%v)", status, err)
			}
			t.Logf("the kekd that is cut off says: %s", status.RingProblem)
			away.Token.PutBack(t)
		})
	watch.requireOneChange(t, old.KeyID, c.requireKey(t, "primary").KeyID, 0)
	l.requireReadableAfresh(t, c)
}

// testAbsent rotates while the second node's kekd cannot take part from leave to
// comeBack, and returns the load.
func testAbsent(t *testing.T, c *cluster, leave, comeBack func()) *load {
	present, absent := c.nodes[0], c.nodes[1]
	l := newLoad(t, c, fewObjects)
	l.requireReadable(t) // so each apiserver has opened the other's seed
	old := c.requireKey(t, "primary")
	l.start(t)
	c.kekctl(t, 0, "key", "rotate", "--yes", "--activate-in", "8s")
	fresh := c.requireKey(t, "pending")
	if absent.kekd.Running() {
		awaitState(t, absent.kekd, fresh.KeyID, "pending")
	}
	leave()
	awaitKeyID(t, present.kekd, fresh.KeyID, 30*time.Second)
	present.awaitWrites(t, c, "present", fresh.KeyID)
	harness.Eventually(t, time.Minute, "reads fail where kekd is absent", func(context.Context) error {
		failures, _ := l.snapshot()
		n := 0
		for _, f := range failures {
			if f.node == 1 && f.verb == "get" && f.keyID == fresh.KeyID {
				n++
			}
		}
		if n < 3 {
			return fmt.Errorf("%d failed: this case shows nothing yet", n)
		}
		return nil
	})

	comeBack()
	start := time.Now()
	awaitKeyID(t, absent.kekd, fresh.KeyID, 30*time.Second)
	t.Logf("the absent kekd encrypts under the new key after %v", time.Since(start).Round(100*time.Millisecond))
	l.awaitCalm(t, 1)
	t.Logf("its apiserver reads everything after %v", time.Since(start).Round(100*time.Millisecond))
	absent.awaitWrites(t, c, "absent", fresh.KeyID)
	absent.apiserver.WaitStatus(t, "/readyz", http.StatusOK, kmsHealthyWithin)
	failures, _ := l.snapshot()
	before := len(failures)
	requests := l.clients[1].requests.Load()
	harness.Eventually(t, time.Minute, "the load goes on", func(context.Context) error {
		if n := l.clients[1].requests.Load() - requests; n < 200 {
			return fmt.Errorf("%d requests", n)
		}
		return nil
	})
	l.stop()
	failures, _ = l.snapshot()
	for _, f := range failures[before:] {
		t.Errorf("after the return: %v", f)
	}
	l.requireNoneThrough(t, 0)
	l.requireOnlyUnopened(t, 1, fresh.KeyID)
	l.requireReadable(t)
	for i, n := range c.nodes {
		if _, sealed := mustSeal(t, n.kekd); sealed.KeyID != fresh.KeyID {
			t.Errorf("node %d encrypts under %s, want %s", i, sealed.KeyID, fresh.KeyID)
		}
	}
	if counts := c.standing(t, secrets, configmaps); counts[old.KeyID] == 0 || counts[fresh.KeyID] == 0 {
		t.Errorf("etcd holds objects under %v, want some under each of %s and %s: this case shows little", counts, old.KeyID, fresh.KeyID)
	}
	return l
}

// requireReadableAfresh is requireReadable with nothing in anybody's memory.
func (l *load) requireReadableAfresh(t *testing.T, c *cluster) {
	t.Helper()
	for _, n := range c.nodes {
		n.restart(t)
	}
	l.requireReadable(t)
}

// awaitCalm waits until everything reads back through a node, one by one and as a
// list.
func (l *load) awaitCalm(t *testing.T, node int) {
	t.Helper()
	c := l.clients[node]
	harness.Eventually(t, kmsHealthyWithin, "everything reads back", func(ctx context.Context) error {
		_, objects := l.snapshot()
		for _, o := range objects {
			if err := c.check(ctx, o); err != nil {
				return err
			}
		}
		return c.checkList(ctx, objects)
	})
}

// requireOnlyUnopened requires that nothing failed through a node but reads of what
// stood under a key that it could not open, lists included, and says how many did.
func (l *load) requireOnlyUnopened(t *testing.T, node int, keyID string) {
	t.Helper()
	failures, _ := l.snapshot()
	counts := map[string]int{}
	for _, f := range failures {
		if f.node != node {
			continue
		}
		if counts[f.verb]++; counts[f.verb] == 1 {
			t.Logf("first failed %s: %v", f.verb, f)
		}
		if f.verb != "list" && (f.verb != "get" || f.keyID != keyID) {
			t.Errorf("failed although the node could do it: %v", f)
		}
	}
	t.Logf("node %d: %d requests, failed by verb: %v", node, l.clients[node].requests.Load(), counts)
}

// seal has a kekd encrypt what could be a seed of an apiserver.
func seal(ctx context.Context, s kmsservice.Service) (*kmsservice.EncryptResponse, error) {
	return s.Encrypt(ctx, string(uuid.NewUUID()), make([]byte, 32))
}

// mustSeal returns a client of a kekd and what it has encrypted.
func mustSeal(t *testing.T, k *harness.Kekd) (kmsservice.Service, *kmsservice.EncryptResponse) {
	t.Helper()
	s := client(t, k)
	sealed, err := seal(t.Context(), s)
	if err != nil {
		t.Fatalf("encrypt: %v", err)
	}
	return s, sealed
}

func open(ctx context.Context, s kmsservice.Service, sealed *kmsservice.EncryptResponse) error {
	_, err := s.Decrypt(ctx, string(uuid.NewUUID()), &kmsservice.DecryptRequest{
		Ciphertext: sealed.Ciphertext, KeyID: sealed.KeyID, Annotations: sealed.Annotations,
	})
	return err
}
