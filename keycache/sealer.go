package keycache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/singleflight"

	"kekd/internal/kek"
	"kekd/internal/secret"
)

// Sealer seals and opens values under the keys of one ring. Make one with New,
// tell it the ring (SetRing), then the key to seal with (Use).
//
// It is safe for concurrent use. No lock is held while the HSM works.
type Sealer struct {
	cfg     Config
	wrapper Wrapper
	gate    *gate
	uses    *useCounter // nil in seeded mode
	arena   *secret.Arena
	seeds   *seeds // nil in direct mode, as arena is
	flights singleflight.Group
	// underWay has the spans of the flights under way that are recorded: a
	// trace.SpanContext by digest.
	underWay sync.Map
	refused  *failures
	// missing remembers the keys that a look at the ring did not find, apart from
	// refused so that made-up keys push nothing out of that.
	missing *failures
	// looking bounds how many Opens wait for a look.
	looking chan struct{}

	late lateSeals

	// using is a lock that a context can interrupt: it serialises Use, which
	// waits for the HSM while it holds it. Taken before mu.
	using chan struct{}

	// mu serialises what changes current, ring and withdrawals; held before the
	// locks of the cache and the arena. Readers of the two pointers need no lock.
	mu      sync.Mutex
	current atomic.Pointer[current] // nil before the first Use and after Close
	ring    atomic.Pointer[kek.Ring]
	closed  bool
	// withdrawals counts the calls of Unpublish, so that a Use that began before
	// one cannot publish after it.
	withdrawals uint64
}

// New makes a Sealer that has nothing to seal with yet. In seeded mode it
// allocates, and if asked for locks, all memory for seeds.
func New(cfg Config, w Wrapper) (*Sealer, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Sealer{
		cfg:     cfg,
		wrapper: w,
		gate:    newGate(cfg.MaxWaiting, cfg.UnwrapTimeout, cfg.Clock, cfg.Observer.Breaker),
		refused: newFailures(),
		missing: newFailures(),
		looking: make(chan struct{}, maxLooking),
		using:   make(chan struct{}, 1),
	}
	if cfg.Mode == Direct {
		s.uses = &useCounter{counter: cfg.DirectUses}
		return s, nil
	}
	// Beside the cache: the seed in use, and the one that a Use prepares.
	if s.arena, err = secret.NewArena(cfg.CacheSize+2, cfg.LockMemory); err != nil {
		return nil, fmt.Errorf("allocate the seed cache: %w", err)
	}
	s.seeds = newSeeds(s.arena, cfg.CacheSize, cfg.Observer.CacheEviction)
	return s, nil
}

// SetRing says which keys there are and so which may decrypt. Seeds of keys that
// may not, or are gone, are wiped before it returns; if the published key is
// among them, Seal fails with kek.ErrRevoked from now on.
func (s *Sealer) SetRing(r *kek.Ring) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ring.Store(r)
	if c := s.current.Load(); c != nil && !c.revoked && s.permitted(c.key.ID) != nil {
		s.withdraw()
	}
	if s.seeds != nil {
		s.seeds.drop(EvictedRevoked, func(id kek.ID) bool { return s.permitted(id) != nil })
	}
}

// permitted returns nil if the ring lets the key decrypt: otherwise
// kek.ErrUnavailable before the first SetRing, kek.ErrUnknownKey for a key that
// is not there, kek.ErrRevoked for one that is switched off.
func (s *Sealer) permitted(id kek.ID) error {
	ring := s.ring.Load()
	if ring == nil {
		return fmt.Errorf("the key ring is not known yet: %w", kek.ErrUnavailable)
	}
	key, ok := ring.Lookup(id)
	if !ok {
		return fmt.Errorf("look up key %s: %w", id, kek.ErrUnknownKey)
	}
	if !key.State.Decrypts() {
		return fmt.Errorf("look up key %s: it is %s: %w", id, key.State, kek.ErrRevoked)
	}
	return nil
}

// Unpublish takes back what Seal uses and wipes its seed: Seal fails with
// kek.ErrRevoked until the next Use that begins after this. It does nothing
// before the first Use.
func (s *Sealer) Unpublish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.withdrawals++
	s.withdraw()
}

// withdraw wipes the seed in use; the caller holds mu.
func (s *Sealer) withdraw() {
	c := s.current.Load()
	if c == nil || c.revoked {
		return
	}
	s.current.Store(&current{revoked: true})
	c.release()
}

// Stats is what the seed cache and the way to the HSM look like now.
type Stats struct {
	// Seeds is how many unwrapped seeds are kept for Open, of at most Capacity.
	Seeds, Capacity int
	// Remembered is how many refusals of the HSM are remembered.
	Remembered int
	// Waiting is how many requests are with the HSM.
	Waiting int
	// BreakerOpen: the HSM did not answer lately, so requests fail at once.
	BreakerOpen bool
	// DirectUses counts the uses of the KEK in direct mode under AES-GCM, those
	// of earlier runs included; warn from DirectUsesWarning on.
	DirectUses uint64
}

// Stats returns a snapshot.
func (s *Sealer) Stats() Stats {
	stats := Stats{Remembered: s.refused.len(s.cfg.Clock())}
	stats.Waiting, stats.BreakerOpen = s.gate.state()
	if s.seeds != nil {
		stats.Seeds, stats.Capacity = s.seeds.len(), s.cfg.CacheSize
	}
	if s.uses != nil {
		stats.DirectUses = s.uses.used()
	}
	return stats
}

// Close fails all further calls with kek.ErrUnavailable, cancels the requests
// that are with the HSM, waits for them, wipes all seeds and frees their memory.
// The Wrapper stays the caller's.
func (s *Sealer) Close() error {
	s.mu.Lock()
	s.closed = true
	if c := s.current.Swap(nil); c != nil {
		c.release()
	}
	s.mu.Unlock()
	s.gate.shut()
	if s.seeds == nil {
		return nil
	}
	s.seeds.drop(EvictedClosed, func(kek.ID) bool { return true })
	if err := s.arena.Close(); err != nil {
		return fmt.Errorf("close the seed cache: %w", err)
	}
	return nil
}

// waitError is what a caller gets who gave up waiting for the HSM.
func waitError(ctx context.Context) error {
	return fmt.Errorf("wait for the HSM: %w", ctx.Err())
}

// arenaError gives an arena's refusal a class.
func arenaError(err error) error {
	if errors.Is(err, secret.ErrArenaClosed) || errors.Is(err, secret.ErrArenaFull) {
		return fmt.Errorf("keep the seed: %w: %w", err, kek.ErrUnavailable)
	}
	return err
}
