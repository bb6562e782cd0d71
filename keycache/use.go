package keycache

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"kekd/internal/kek"
	"kekd/internal/secret"
)

// current is everything that Seal uses, published in one piece: the key_id, the
// seed and the mechanism that belong together. Immutable but for the count.
type current struct {
	revoked bool // nothing else is set: what was published was taken back

	key       kek.Info
	keyID     string
	mechanism kek.Mechanism
	prefix    []byte // envelope up to the salt (seeded) or the body (direct)

	// Seeded mode only. The slot belongs to this until it is adopted by the
	// cache or released; who reads it may find it released and starts over.
	digest  digest
	slot    *secret.Slot
	created time.Time
	uses    atomic.Uint64 // may count past the limit; clamped where it is shown
}

// release wipes the seed, if there is one.
func (c *current) release() {
	if c.slot != nil {
		c.slot.Release()
	}
}

// made reports whether the envelope was sealed from this very seed.
func (c *current) made(e *envelope) bool {
	return c != nil && c.slot != nil && bytes.Equal(c.prefix, e.prefix)
}

// Use makes key the one to seal with, by mechanism m. In seeded mode it draws a
// new seed, has the HSM wrap and unwrap it, compares, and publishes key_id and
// seed in one step; the seed before stays in the cache for Open. With the key
// that is published already it renews the seed. In direct mode it proves a round
// trip of random bytes and publishes the key.
//
// On an error what was published stays so. Calls are served one by one. The
// caller must have told the ring (SetRing), and the key must decrypt in it:
// otherwise nobody could open what is sealed. The errors are the Wrapper's, those
// of Open about keys, and kek.ErrRevoked when the key was taken back meanwhile.
func (s *Sealer) Use(ctx context.Context, key kek.Info, m kek.Mechanism) error {
	if err := s.use(ctx, key, m); err != nil {
		return fmt.Errorf("use key %s: %w", key.ID, err)
	}
	return nil
}

func (s *Sealer) use(ctx context.Context, key kek.Info, m kek.Mechanism) error {
	switch {
	case key.Ring != s.cfg.Ring:
		return fmt.Errorf("it is of ring %q, want %q", key.Ring, s.cfg.Ring)
	case len(key.ID) == 0 || len(key.ID) > kek.MaxIDSize:
		return fmt.Errorf("its id has %d bytes, want 1 to %d", len(key.ID), kek.MaxIDSize)
	case !m.Valid():
		return fmt.Errorf("unknown mechanism %s", m)
	}
	select {
	case s.using <- struct{}{}:
		defer func() { <-s.using }()
	case <-ctx.Done():
		return waitError(ctx)
	}
	began, err := s.beginUse(key.ID)
	if err != nil {
		return err
	}
	next := &current{key: key, keyID: key.KeyID(), mechanism: m}
	if s.cfg.Mode == Direct {
		err = s.proveDirect(ctx, next)
	} else {
		err = s.proveSeed(ctx, next)
	}
	if err != nil {
		return err
	}
	s.gate.proven()
	if err := s.publish(next, began); err != nil {
		next.release()
		return err
	}
	return nil
}

// beginUse checks the key and returns the number of withdrawals so far.
func (s *Sealer) beginUse(id kek.ID) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, fmt.Errorf("shutting down: %w", kek.ErrUnavailable)
	}
	return s.withdrawals, s.permitted(id)
}

// publish puts next in the place of what is published, unless the world has
// changed since the Use began.
func (s *Sealer) publish(next *current, began uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("shutting down: %w", kek.ErrUnavailable)
	}
	if s.withdrawals != began {
		return fmt.Errorf("it was taken back while it was proven: %w", kek.ErrRevoked)
	}
	if err := s.permitted(next.key.ID); err != nil {
		return err
	}
	// Into the cache first: an Open between the two steps finds the seed in
	// either place, and in neither order would it find it in none.
	if last := s.current.Load(); last != nil && last.slot != nil {
		s.seeds.adopt(last.digest, last.key.ID, last.slot)
	}
	s.current.Store(next)
	return nil
}

// proveSeed draws and proves a seed and fills in what seeded mode needs.
func (s *Sealer) proveSeed(ctx context.Context, next *current) error {
	seed := make(secret.Bytes, seedSize)
	defer seed.Wipe()
	_, _ = rand.Read(seed) // never fails, see its documentation
	wrapped, err := s.roundTrip(ctx, next, seed, seedAAD(s.cfg.Ring, next.key.ID))
	if err != nil {
		return fmt.Errorf("prove a new seed: %w", err)
	}
	if len(wrapped) < minWrapped || len(wrapped) > maxWrapped {
		return fmt.Errorf("prove a new seed: its wrap has %d bytes, want %d to %d: %w",
			len(wrapped), minWrapped, maxWrapped, kek.ErrRefused)
	}
	next.prefix = newPrefix(schemeSeeded, next.mechanism, next.key.ID, next.key.CheckValue, wrapped)
	next.digest = seedDigest(&envelope{mechanism: next.mechanism, id: next.key.ID, wrapped: wrapped})
	next.created = s.cfg.Clock()
	if next.slot, err = s.arena.Store(seed); err != nil {
		return arenaError(err)
	}
	return nil
}

// proveDirect proves a round trip just as Seal and Open make it.
func (s *Sealer) proveDirect(ctx context.Context, next *current) error {
	next.prefix = newPrefix(schemeDirect, next.mechanism, next.key.ID, next.key.CheckValue, nil)
	if err := s.uses.take(next.key.ID, next.mechanism); err != nil {
		return err
	}
	plaintext := make(secret.Bytes, seedSize)
	defer plaintext.Wipe()
	_, _ = rand.Read(plaintext) // never fails, see its documentation
	if _, err := s.roundTrip(ctx, next, plaintext, aad(next.prefix, next.keyID)); err != nil {
		return fmt.Errorf("prove a round trip: %w", err)
	}
	return nil
}

// roundTrip wraps, unwraps and compares, and returns the wrap. It bypasses the
// gate: a Use is how the way back from an outage is found.
func (s *Sealer) roundTrip(ctx context.Context, c *current, plaintext secret.Bytes, aad []byte) ([]byte, error) {
	blob, err := s.wrapper.Wrap(ctx, c.key.ID, c.mechanism, plaintext, aad)
	if err != nil {
		return nil, fmt.Errorf("wrap: %w", err)
	}
	back, err := s.wrapper.Unwrap(ctx, c.key.ID, c.mechanism, blob, aad)
	defer back.Wipe()
	if errors.Is(err, kek.ErrCorrupt) {
		// What the HSM has just made is not corrupt; the HSM is not to be trusted.
		return nil, fmt.Errorf("the HSM refuses its own wrap: %s: %w", err.Error(), kek.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("unwrap: %w", err)
	}
	if subtle.ConstantTimeCompare(plaintext, back) != 1 {
		return nil, fmt.Errorf("the HSM unwrapped something else than it had wrapped: %w", kek.ErrUnavailable)
	}
	return blob, nil
}

// Current describes what is published. It holds nothing secret.
type Current struct {
	KeyID     string
	ID        kek.ID
	Mechanism kek.Mechanism
	Mode      Mode
	// SeedCreated, SeedUses and Expired are zero in direct mode.
	SeedCreated time.Time
	SeedUses    uint64
	// Expired: the seed is too old or used up, so Seal fails until the next Use.
	Expired bool
}

// Current returns what is published; false if nothing is, or it was taken back.
// A Seal and a Current between the same two changes have the same key_id.
func (s *Sealer) Current() (Current, bool) {
	c := s.current.Load()
	if c == nil || c.revoked {
		return Current{}, false
	}
	d := Current{KeyID: c.keyID, ID: c.key.ID, Mechanism: c.mechanism, Mode: s.cfg.Mode}
	if s.cfg.Mode == Seeded {
		d.SeedCreated = c.created
		d.SeedUses = min(c.uses.Load(), s.cfg.MaxUses)
		d.Expired = s.age(c) >= s.cfg.MaxAge || d.SeedUses == s.cfg.MaxUses
	}
	return d, true
}

// RenewalDue reports whether the seed has reached 80% of its age or uses, so
// that Use should be called with the same key: prepare early, stop hard. It is
// false in direct mode and when nothing is published.
func (s *Sealer) RenewalDue() bool {
	c := s.current.Load()
	if c == nil || c.slot == nil {
		return false
	}
	return s.age(c) >= s.cfg.MaxAge-s.cfg.MaxAge/5 || c.uses.Load() >= s.cfg.MaxUses-s.cfg.MaxUses/5
}

func (s *Sealer) age(c *current) time.Duration { return s.cfg.Clock().Sub(c.created) }
