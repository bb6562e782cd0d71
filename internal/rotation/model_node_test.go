package rotation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
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
	name string
	conn *connection
	// primary is keyRing.primary.
	primary kek.ID
	memory  *modelMemory
	// offset is how wrong the clock is.
	offset time.Duration

	watcher *Watcher
	sealer  *keycache.Sealer
	health  *monitor.Monitor

	// told are the key_ids that Kubernetes was told, in order, and newest is the
	// newest key of these.
	told   []string
	newest kek.ID
	// usedAt are the keys that this node has used since its use is recorded, with the
	// earliest time at which /status may say that it last did: the true time by the
	// clock that was the least ahead since.
	usedAt map[kek.ID]time.Time
	// warm are the seeds that this process has in memory, and their keys.
	warm map[string]kek.ID
}

// modelMemory is a state directory on a disk that is full at times.
type modelMemory struct {
	*state.Dir
	full bool
}

func (m *modelMemory) Save(name string, v any) error {
	if m.full {
		return errors.New("fake: no space left on device")
	}
	return m.Dir.Save(name, v)
}

func (m *model) addNode(name string, primary kek.ID) {
	dir, err := state.Open(filepath.Join(m.dir, name))
	if err != nil {
		m.t.Fatal(err)
	}
	n := &modelNode{
		model: m, name: name, primary: primary, memory: &modelMemory{Dir: dir}, usedAt: make(map[kek.ID]time.Time), conn: &connection{sharedToken: m.token, left: -1},
	}
	n.conn.blind = !m.swaps && rapid.Bool().Draw(m.t, "blind")
	m.nodes = append(m.nodes, n)
	n.start()
}

func (n *modelNode) errorf(format string, args ...any) {
	n.t.Helper()
	n.t.Errorf(n.name+": "+format, args...)
}

// clock is what the node takes for the time of day.
func (n *modelNode) clock() time.Time { return n.now.Add(n.offset) }

// setClock sets the clock, which puts what was used under another time.
func (n *modelNode) setClock(offset time.Duration) {
	if back := n.offset - offset; back > 0 {
		for id, at := range n.usedAt {
			n.usedAt[id] = at.Add(-back)
		}
	}
	n.offset = offset
}

// checkUse: what the node says of its use is never earlier than the truth.
func (n *modelNode) checkUse() {
	if c, ok := n.sealer.Current(); ok {
		n.usedAt[c.ID] = n.clock()
	}
	use := n.watcher.Use()
	for id, at := range n.usedAt {
		if said := use.LastUsed[id]; said.Before(at) {
			n.errorf("key %s was used at %s, and it says %s", id, at, said)
		}
	}
	if c, ok := n.sealer.Current(); ok && use.LastUsed[c.ID].Before(n.clock()) {
		n.errorf("the key in use was last used at %s, want now", use.LastUsed[c.ID])
	}
}

// elapsed is the clock of what only measures durations, for which time.Now has a
// monotonic clock that nobody sets.
func (n *modelNode) elapsed() time.Time { return n.now }

func (n *modelNode) start() {
	const long = 100_000 * time.Hour // an outage within its grace
	var err error
	n.sealer, err = keycache.New(keycache.Config{
		Ring: ringLabel, Mode: keycache.Seeded, MaxAge: time.Hour, MaxUses: 1 << 20, CacheSize: 1000,
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
		Ring: ringLabel, Primary: n.primary, Refresh: refresh, Timeout: timeout, Token: n.conn, Sealer: n.sealer, Health: n.health,
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

func (n *modelNode) restart() {
	n.stop()
	n.start()
}

// reconfigure names a key of another tool as the primary, or none.
func (n *modelNode) reconfigure() {
	n.primary = rapid.SampledFrom([]kek.ID{"", "\x01", "\x02"}).Draw(n.t, "primary")
	n.restart()
	n.look()
}

// sound reports whether nothing is in the node's way.
func (n *modelNode) sound() bool { return n.conn.sound() && !n.memory.full }

// published is what the node remembers.
func (n *modelNode) published() hsm.Published {
	var p hsm.Published
	if _, err := n.memory.Load(MemoryName, &p); err != nil {
		n.t.Fatal(err)
	}
	return p
}

// refresh has the node look at the ring.
func (n *modelNode) refresh(ctx context.Context) error {
	before, _ := n.sealer.Current()
	n.watcher.Refresh(ctx)
	_, has := n.sealer.Current()
	ring := n.watcher.Snapshot().Ring
	maps.DeleteFunc(n.warm, func(_ string, id kek.ID) bool {
		k, _ := ring.Lookup(id)
		return k.State == 0 || k.State == kek.Disabled || k.State == kek.Scheduled || id == before.ID && !has // the seed in use is wiped where sealing ends
	})
	n.check()
	return n.watcher.unread
}

// look is refresh, and what must have come of it.
func (n *modelNode) look() {
	n.now = n.now.Add(tryPause)
	before, had := n.sealer.Current()
	sound := n.sound()
	_ = n.refresh(context.Background()) // the snapshot says it too
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
	want, v := n.expected()
	switch v {
	case serves:
		if !has || current.ID != want || s.Err != nil {
			n.errorf("it encrypts under %q, want %q; it says %v", current.ID, want, s.Err)
		}
		if keyID := n.token.find(want).info.KeyID(); current.KeyID != keyID && !n.conn.blind {
			n.errorf("the key_id is %s, want %s", current.KeyID, keyID)
		}
	case revoked:
		_, err := n.health.Status()
		if has || !errors.Is(s.Err, kek.ErrRevoked) || !errors.Is(err, kek.ErrRevoked) {
			n.errorf("it encrypts under %q, want nothing; it says %v, and Status %v", current.ID, s.Err, err)
		}
	case idle:
		if has || s.Err == nil {
			n.errorf("it encrypts under %q, want nothing; it says %v", current.ID, s.Err)
		}
	case unclear:
		if has != had || current.KeyID != before.KeyID || !errors.Is(s.Err, kek.ErrAmbiguous) {
			n.errorf("it went from %q to %q, want no change; it says %v", before.KeyID, current.KeyID, s.Err)
		}
		return
	}
	for _, k := range s.Ring.Keys {
		if p := s.Proofs[k.ID]; k.State == kek.Pending && p.Err != nil && p.at.Equal(n.clock()) {
			n.errorf("the pending key %s is not proven: %+v", k.ID, p)
		}
	}
}

// verdict is what a look that nothing disturbed must come to.
type verdict int

const (
	serves  verdict = iota
	revoked         // nothing encrypts, and Status says why
	idle            // nothing encrypts yet
	unclear         // what was, stays
)

// expected is the key that the node must encrypt under after a look that nothing
// disturbed: the newest key that is activated by the node's clock, or by what the
// node remembers; no older one takes its place, and of the keys of other tools none.
func (n *modelNode) expected() (kek.ID, verdict) {
	p := n.published()
	none := revoked
	if p.Last == "" {
		none = idle
	}
	key, sure := n.candidate(p.Last)
	switch {
	case !sure:
		return "", unclear
	case key == nil || key.info.State != 0:
		return "", none
	case key.info.ID == p.Last && n.swapped(key, p.CheckValue), slices.Contains(p.Before, key.info.ID):
		return "", revoked
	case isOwn(p.Last) && key.info.ID.Compare(p.Last) < 0:
		return "", revoked
	}
	return key.info.ID, serves
}

func (n *modelNode) swapped(key *sharedKey, was kek.CheckValue) bool {
	return !n.conn.blind && was != kek.CheckValue{} && was != key.info.CheckValue
}

func isOwn(id kek.ID) bool {
	_, own := id.Activation()
	return own
}

// candidate is the newest activated key, whatever its state; false where nobody
// could tell.
func (n *modelNode) candidate(last kek.ID) (newest *sharedKey, sure bool) {
	published, _ := last.Activation()
	var others, usable []*sharedKey
	for i := range n.token.keys {
		k := &n.token.keys[i]
		switch at := k.info.Activation; {
		case !isOwn(k.info.ID):
			others = append(others, k)
			if k.info.State == 0 {
				usable = append(usable, k)
			}
		case (!at.After(n.clock()) || !at.After(published)) && (newest == nil || k.info.ID.Compare(newest.info.ID) > 0):
			newest = k
		}
	}
	was, named := n.token.find(last), n.token.find(n.primary)
	renamed := !isOwn(last) && n.primary != "" && n.primary != last
	switch {
	case newest != nil:
		return newest, true
	case last != "" && !renamed && !n.token.live(last):
		return was, true
	case named != nil:
		return named, true
	case n.primary != "":
		return nil, len(n.token.keys) == 0
	case len(usable) == 1:
		return usable[0], true
	case len(usable) > 1:
		return nil, false
	case len(others) > 0:
		return others[0], true
	}
	return nil, true
}

// check is what holds at any time.
func (n *modelNode) check() {
	n.checkUse()
	keyID, err := n.health.Status()
	current, ok := n.sealer.Current()
	if usable := ok && !current.Expired; usable != (err == nil) || usable && current.KeyID != keyID {
		n.errorf("Status says %q, %v, and Encrypt would use %q", keyID, err, current.KeyID)
	}
	if !ok || len(n.told) > 0 && n.told[len(n.told)-1] == current.KeyID {
		return
	}
	if slices.Contains(n.told, current.KeyID) || isOwn(n.newest) && current.ID.Compare(n.newest) < 0 {
		n.errorf("it went back to %s after %s", current.KeyID, n.told)
	}
	n.told, n.newest = append(n.told, current.KeyID), current.ID
	if p := n.published(); current.KeyID != kek.KeyID(ringLabel, p.Last, p.CheckValue) {
		n.errorf("it uses %s, and will remember %s with %s", current.KeyID, p.Last, p.CheckValue)
	}
	key := n.token.find(current.ID).block
	if named, ok := n.names[current.KeyID]; ok && named != key {
		n.errorf("the key_id %s names two keys", current.KeyID)
	}
	n.names[current.KeyID] = key
}

func (n *modelNode) seal() {
	keyID, statusErr := n.health.Status()
	v := modelValue{plaintext: fmt.Sprint("value ", len(n.values))}
	var err error
	v.sealed, err = n.sealer.Seal(context.Background(), []byte(v.plaintext))
	if (statusErr == nil) != (err == nil) || v.sealed.KeyID != keyID {
		n.errorf("Status says %q, %v, and Encrypt %q, %v", keyID, statusErr, v.sealed.KeyID, err)
	}
	if err != nil {
		return
	}
	current, _ := n.sealer.Current()
	v.id, v.key = current.ID, n.names[keyID]
	// What stands before salt, nonce, ciphertext and tag names the seed.
	v.seed = string(v.sealed.Ciphertext[:len(v.sealed.Ciphertext)-32-12-len(v.plaintext)-16])
	n.values = append(n.values, v)
	n.warm[v.seed] = v.id
}

func (n *modelNode) open() {
	if len(n.values) == 0 {
		n.t.Skip("nothing is sealed yet")
	}
	n.openValue(n.values[len(n.values)-rapid.IntRange(1, len(n.values)).Draw(n.t, "value")])
}

func (n *modelNode) openValue(v modelValue) {
	n.now = n.now.Add(11 * time.Second) // past the breaker and the memory of failures
	ring := n.watcher.Snapshot().Ring
	known, inRing := ring.Lookup(v.id)
	usable := inRing && known.State != kek.Disabled && known.State != kek.Scheduled
	_, warm := n.warm[v.seed]
	sound := n.sound()
	key := n.token.find(v.id)
	live := key != nil && key.info.State == 0 && key.block == v.key
	plaintext, err := n.sealer.Open(context.Background(), v.sealed)
	n.check()
	switch {
	case err == nil && string(plaintext) != v.plaintext:
		n.errorf("%q was opened to %q", v.plaintext, plaintext)
	case err == nil && inRing && !usable, err == nil && !inRing && !live:
		n.errorf("opened under key %s, which is out of use", v.id)
	case err == nil && !warm && !live && n.token.strict && !n.swaps:
		n.errorf("opened under key %s, which is out of use, and its seed was not warm", v.id)
	case err != nil && warm && usable:
		n.errorf("a warm seed of key %s: %v", v.id, err)
	case err != nil && sound && ring != nil && live && (usable || !inRing):
		n.errorf("the key %s is live: %v", v.id, err)
	case err != nil && sound && ring != nil && !inRing && key == nil && !errors.Is(err, kek.ErrUnknownKey):
		n.errorf("the key %s is destroyed: %v", v.id, err)
	}
	if err == nil {
		n.warm[v.seed] = v.id
	}
}
