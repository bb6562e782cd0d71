package rotation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"time"

	"go.uber.org/zap"
	"pgregory.net/rapid"

	"kekd/hsm"
	monitor "kekd/internal/health"
	"kekd/internal/kek"
	"kekd/internal/state"
	"kekd/keycache"
)

// modelNode is one kekd: the watcher, seed cache, health and memory are the real
// ones.
type modelNode struct {
	*model
	name   string
	conn   *connection
	memory *state.Dir
	// offset is how wrong the clock is.
	offset time.Duration

	watcher *Watcher
	sealer  *keycache.Sealer
	health  *monitor.Monitor

	// told are the keys of the key_ids that Kubernetes was told, in order.
	told []kek.ID
	// warm are the seeds that this process has in memory, and their keys.
	warm map[string]kek.ID
}

func (m *model) addNode(name string) {
	memory, err := state.Open(filepath.Join(m.dir, name))
	if err != nil {
		m.t.Fatal(err)
	}
	n := &modelNode{model: m, name: name, memory: memory, conn: &connection{sharedToken: m.token, left: -1}}
	m.nodes = append(m.nodes, n)
	n.start()
}

func (n *modelNode) errorf(format string, args ...any) {
	n.t.Helper()
	n.t.Errorf(n.name+": "+format, args...)
}

// clock is what the node takes for the time of day.
func (n *modelNode) clock() time.Time { return n.now.Add(n.offset) }

// elapsed is the clock of what only measures durations, for which time.Now has a
// monotonic clock that nobody sets.
func (n *modelNode) elapsed() time.Time { return n.now }

func (n *modelNode) start() {
	const long = 1000 * time.Hour // an outage within its grace
	var err error
	n.sealer, err = keycache.New(keycache.Config{
		Ring: ringLabel, Mode: keycache.Seeded, MaxAge: 24 * time.Hour, MaxUses: 1 << 20, CacheSize: 1000,
		Clock: n.elapsed, Look: n.refresh,
	}, n.conn)
	if err != nil {
		n.t.Fatal(err)
	}
	n.health = monitor.New(monitor.Config{
		Grace: long, StaleAfter: long, Clock: n.elapsed, Logger: zap.NewNop(),
		Current: func() (string, bool) {
			c, ok := n.sealer.Current()
			return c.KeyID, ok && !c.Expired
		},
	})
	n.watcher, err = New(Config{
		Ring: ringLabel, Refresh: refresh, Timeout: timeout, Token: n.conn, Sealer: n.sealer, Health: n.health,
		Memory: n.memory, Observer: metrics{new(world)}, Clock: n.clock, Logger: zap.NewNop(), Audit: zap.NewNop(),
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.warm = make(map[string]kek.ID)
}

func (n *modelNode) stop() {
	if err := n.sealer.Close(); err != nil {
		n.errorf("stop: %v", err)
	}
}

// refresh has the node look at the ring.
func (n *modelNode) refresh(ctx context.Context) {
	before, _ := n.sealer.Current()
	n.watcher.Refresh(ctx)
	_, has := n.sealer.Current()
	ring := n.watcher.Snapshot().Ring
	maps.DeleteFunc(n.warm, func(_ string, id kek.ID) bool {
		k, _ := ring.Lookup(id)
		return !k.State.Decrypts() || id == before.ID && !has // the seed in use is wiped where sealing ends
	})
	n.check()
}

// look is refresh, and what must have come of it.
func (n *modelNode) look() {
	n.now = n.now.Add(tryPause)
	before, had := n.sealer.Current()
	sound := n.conn.sound()
	n.refresh(context.Background())
	current, has := n.sealer.Current()
	s := n.watcher.Snapshot()
	if n.conn.down {
		if s.Err == nil {
			n.errorf("it can't see the token, and does not say so")
		}
		if has != had || current.KeyID != before.KeyID {
			n.errorf("it can't see the token, and went from %q to %q", before.KeyID, current.KeyID)
		}
	}
	if !sound {
		return
	}
	want, ok := n.primary()
	if has != ok || current.ID != want {
		n.errorf("it encrypts under %q, want %q; it says %v", current.ID, want, s.Err)
	}
	if ok != (s.Err == nil) {
		n.errorf("with primary %q it says %v", want, s.Err)
	}
	for _, k := range s.Ring.Keys {
		p := s.Proofs[k.ID]
		again := n.clock().Sub(p.at).Abs() >= tryPause // the clock may have been set to just after a failure
		if k.State == kek.Pending && !p.Mechanism.Valid() && again {
			n.errorf("the pending key %s is not proven: %+v", k.ID, p)
		}
	}
}

// primary is the key that the node must encrypt under after a look that nothing
// disturbed; false if it must not encrypt. It is the newest key that is activated
// by the node's clock, or by what the node remembers; no older one takes its place.
func (n *modelNode) primary() (kek.ID, bool) {
	var published hsm.Published
	if _, err := n.memory.Load(MemoryName, &published); err != nil {
		n.t.Fatal(err)
	}
	last := published.Last
	var newest kek.ID
	for _, k := range n.token.keys {
		id := k.info.ID
		activated := !k.info.Activation.After(n.clock()) || id.Compare(last) <= 0
		if activated && (newest == "" || id.Compare(newest) > 0) {
			newest = id
		}
	}
	if newest == "" || !n.token.live(newest) || last != "" && newest.Compare(last) < 0 {
		return "", false
	}
	return newest, true
}

// check is what holds at any time.
func (n *modelNode) check() {
	keyID, err := n.health.Status()
	if err != nil {
		return
	}
	current, ok := n.sealer.Current()
	if !ok || current.KeyID != keyID {
		n.errorf("Status says %q, and Encrypt would use %q", keyID, current.KeyID)
	}
	if len(n.told) > 0 && n.told[len(n.told)-1] == current.ID {
		return
	}
	for _, id := range n.told {
		if current.ID.Compare(id) <= 0 {
			n.errorf("it went back to key %s after %s", current.ID, id)
		}
	}
	n.told = append(n.told, current.ID)
}

func (n *modelNode) seal() {
	keyID, statusErr := n.health.Status()
	v := modelValue{plaintext: fmt.Sprint("value ", len(n.values))}
	var err error
	v.sealed, err = n.sealer.Seal(context.Background(), []byte(v.plaintext))
	if statusErr == nil && (err != nil || v.sealed.KeyID != keyID) {
		n.errorf("Status says %q, and Encrypt %q, %v", keyID, v.sealed.KeyID, err)
	}
	if err != nil {
		return
	}
	current, _ := n.sealer.Current()
	v.id = current.ID
	// What stands before salt, nonce, ciphertext and tag names the seed.
	v.seed = string(v.sealed.Ciphertext[:len(v.sealed.Ciphertext)-32-12-len(v.plaintext)-16])
	n.values = append(n.values, v)
	n.warm[v.seed] = v.id
}

func (n *modelNode) open() {
	if len(n.values) == 0 {
		n.t.Skip("nothing is sealed yet")
	}
	v := n.values[rapid.IntRange(0, len(n.values)-1).Draw(n.t, "value")]
	n.now = n.now.Add(11 * time.Second) // past the breaker and the memory of failures
	ring := n.watcher.Snapshot().Ring
	known, inRing := ring.Lookup(v.id)
	usable := inRing && known.State.Decrypts()
	_, warm := n.warm[v.seed]
	sound := n.conn.sound()
	plaintext, err := n.sealer.Open(context.Background(), v.sealed)
	n.check()
	switch {
	case err == nil && string(plaintext) != v.plaintext:
		n.errorf("%q was opened to %q", v.plaintext, plaintext)
	case err == nil && inRing && !usable, err == nil && !inRing && !n.token.live(v.id):
		n.errorf("opened under key %s, which is out of use", v.id)
	case err != nil && warm && usable:
		n.errorf("a warm seed of key %s: %v", v.id, err)
	case err != nil && sound && ring != nil && n.token.live(v.id) && (usable || !inRing):
		n.errorf("the key %s is live: %v", v.id, err)
	case err != nil && sound && ring != nil && !inRing && n.token.find(v.id) == nil && !errors.Is(err, kek.ErrUnknownKey):
		n.errorf("the key %s is destroyed: %v", v.id, err)
	}
	if err == nil {
		n.warm[v.seed] = v.id
	}
}
