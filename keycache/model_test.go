package keycache

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kekd/internal/kek"
)

// model is what the outside knows: which keys there are, in which state, and
// what was sealed. Every value opens to what went in, or fails with the class
// that the keys and the HSM call for.
type model struct {
	t     *rapid.T
	cfg   Config
	clock *fakeClock
	hsm   *fakeHSM
	s     *Sealer

	down      bool
	keys      map[kek.ID]kek.Info
	published kek.ID // "" if nothing is
	takenBack bool
	created   time.Time
	uses      uint64
	values    []sealedValue
	warm      map[string]kek.ID // the seeds in memory, by envelope prefix, and their keys
}

type sealedValue struct {
	plaintext string
	sealed    kek.Sealed
	id        kek.ID
	prefix    string // names the seed; "" for a direct value
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{t: t, clock: newClock(), hsm: &fakeHSM{}, keys: make(map[kek.ID]kek.Info)}
		m.cfg = rapid.SampledFrom([]Config{seededConfig(), directConfig()}).Draw(t, "mode")
		m.cfg.Clock = m.clock.Now
		m.cfg.MaxAge, m.cfg.MaxUses, m.cfg.CacheSize = time.Hour, 5, 1000
		m.start()
		defer func() { _ = m.s.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"restart": func(*rapid.T) { m.restart() },
			"outage":  func(*rapid.T) { m.outage() },
			"wait":    func(t *rapid.T) { m.clock.add(time.Duration(rapid.IntRange(11, 1800).Draw(t, "s")) * time.Second) },
			"key":     m.changeKey,
			"use":     m.use,
			"seal":    func(*rapid.T) { m.seal() },
			"open":    m.open,
			"tamper":  m.tamper,
			"":        func(*rapid.T) { m.check() },
		})
	})
}

func (m *model) start() {
	s, err := New(m.cfg, m.hsm)
	if err != nil {
		m.t.Fatal(err)
	}
	m.s = s
	m.published, m.takenBack = "", false
	m.warm = make(map[string]kek.ID)
	m.tellRing()
}

func (m *model) restart() {
	if err := m.s.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.start()
}

func (m *model) outage() {
	m.down = !m.down
	if m.down {
		m.hsm.failWith(fmt.Errorf("fake: unplugged: %w", kek.ErrUnavailable))
	} else {
		m.hsm.failWith(nil)
	}
	m.clock.add(failureMemory + breakerPause) // past breaker and memory
}

func (m *model) tellRing() {
	ring := ringOf()
	for _, k := range m.keys {
		ring.Keys = append(ring.Keys, k)
	}
	m.s.SetRing(ring)
	if m.published != "" && !m.keys[m.published].State.Decrypts() {
		m.published, m.takenBack = "", true
	}
	maps.DeleteFunc(m.warm, func(_ string, id kek.ID) bool { return !m.keys[id].State.Decrypts() })
}

// changeKey creates a key, changes its state or removes it.
func (m *model) changeKey(t *rapid.T) {
	key := testKey(rapid.ByteRange(1, 3).Draw(t, "key"), 0)
	state := rapid.SampledFrom([]kek.State{0, kek.Pending, kek.Primary, kek.Primary, kek.Retired, kek.Disabled}).Draw(t, "state")
	if state == 0 {
		delete(m.keys, key.ID)
	} else {
		m.keys[key.ID] = in(key, state)
	}
	m.tellRing()
}

func (m *model) use(t *rapid.T) {
	key := testKey(rapid.ByteRange(1, 3).Draw(t, "key"), kek.Primary)
	err := m.s.Use(context.Background(), key, rapid.SampledFrom(kek.Mechanisms()).Draw(t, "mechanism"))
	m.class("Use", err, m.keyClass(key.ID, true))
	if err == nil {
		m.published, m.takenBack = key.ID, false
		m.created, m.uses = m.clock.Now(), 0
	}
}

func (m *model) seal() {
	var want error
	switch {
	case m.takenBack:
		want = kek.ErrRevoked
	case m.published == "":
		want = kek.ErrUnavailable
	case m.cfg.Mode == Direct && m.down:
		m.clock.add(breakerPause)
		want = kek.ErrUnavailable
	case m.cfg.Mode == Seeded && (m.clock.Now().Sub(m.created) >= m.cfg.MaxAge || m.uses == m.cfg.MaxUses):
		want = kek.ErrUnavailable
	}
	plaintext := fmt.Sprint("value ", len(m.values))
	sealed, err := m.s.Seal(context.Background(), []byte(plaintext))
	m.class("Seal", err, want)
	if err != nil {
		return
	}
	m.uses++
	if want := m.keys[m.published].KeyID(); sealed.KeyID != want {
		m.t.Errorf("key_id %q, want %q", sealed.KeyID, want)
	}
	v := sealedValue{plaintext: plaintext, sealed: sealed, id: m.published}
	if m.cfg.Mode == Seeded {
		v.prefix = string(sealed.Ciphertext[:len(sealed.Ciphertext)-saltSize-nonceSize-len(plaintext)-tagSize])
	}
	m.values = append(m.values, v)
	m.warmed(v)
}

// warmed notes that the seed of v is in memory now, if it is one to be kept.
func (m *model) warmed(v sealedValue) {
	if m.cfg.Mode == Seeded && v.prefix != "" {
		m.warm[v.prefix] = v.id
	}
}

func (m *model) isWarm(v sealedValue) bool { _, ok := m.warm[v.prefix]; return ok }

func (m *model) open(t *rapid.T) {
	if len(m.values) == 0 {
		return
	}
	v := rapid.SampledFrom(m.values).Draw(t, "value")
	m.clock.add(breakerPause)
	got, err := m.s.Open(context.Background(), v.sealed)
	m.class("Open", err, m.keyClass(v.id, !m.isWarm(v)))
	if err == nil && string(got) != v.plaintext {
		m.t.Errorf("opened to %q, want %q", got, v.plaintext)
	}
	if err == nil {
		m.warmed(v)
	}
}

func (m *model) tamper(t *rapid.T) {
	if len(m.values) == 0 || m.down {
		return
	}
	v := rapid.SampledFrom(m.values).Draw(t, "value")
	forged := kek.Sealed{KeyID: v.sealed.KeyID, Ciphertext: slices.Clone(v.sealed.Ciphertext)}
	bit := rapid.IntRange(0, len(forged.Ciphertext)*8-1).Draw(t, "bit")
	forged.Ciphertext[bit/8] ^= 1 << (bit % 8)
	m.clock.add(breakerPause)
	got, err := m.s.Open(context.Background(), forged)
	switch keyClass := m.keyClass(v.id, true); {
	case err == nil:
		m.t.Errorf("a tampered value opened to %q", got)
	case errors.Is(err, kek.ErrCorrupt), errors.Is(err, kek.ErrWrongKeyID):
	case keyClass != nil && errors.Is(err, keyClass):
	default:
		m.t.Errorf("a tampered value: %v", err)
	}
	if m.keyClass(v.id, true) == nil && bit/8 >= len(v.prefix) {
		m.warmed(v) // the damage lies behind the seed, which was good
	}
}

// keyClass is what a request with this key should meet.
func (m *model) keyClass(id kek.ID, asksHSM bool) error {
	key, ok := m.keys[id]
	switch {
	case !ok:
		return kek.ErrUnknownKey
	case !key.State.Decrypts():
		return kek.ErrRevoked
	case asksHSM && m.down:
		return kek.ErrUnavailable
	}
	return nil
}

func (m *model) class(what string, err, want error) {
	m.t.Helper()
	if !errors.Is(err, want) {
		m.t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// check holds after every step.
func (m *model) check() {
	c, ok := m.s.Current()
	if ok != (m.published != "") || c.ID != m.published {
		m.t.Errorf("Current() = %+v, %v; want key %q", c, ok, m.published)
	}
	if m.s.arena == nil {
		return
	}
	want := m.s.Stats().Seeds
	if ok {
		want++ // the one in use
	}
	if got := m.s.arena.InUse(); got != want {
		m.t.Errorf("%d slots in use, want %d", got, want)
	}
}
