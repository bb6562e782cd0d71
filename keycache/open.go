package keycache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"go.opentelemetry.io/otel/trace"

	"kekd/internal/kek"
	"kekd/internal/secret"
	"kekd/internal/tracing"
)

// Open decrypts what Seal made, in either mode, on any node. The result belongs
// to the caller. Errors, in the order of the checks:
//
//   - kek.ErrCorrupt: no envelope of ours, damaged, or bound to something else
//   - kek.ErrWrongKeyID: the key_id is not the one that the header spells
//   - kek.ErrUnavailable before the first SetRing; kek.ErrUnknownKey for a key
//     that is not on the ring, and was not when it was looked for once more;
//     kek.ErrRevoked for one that may not decrypt
//   - when the HSM is needed, the Wrapper's; kek.ErrUnavailable also when it did
//     not answer within UnwrapTimeout or a moment ago; kek.ErrBusy when too many
//     wait; the context's when the caller gave up
func (s *Sealer) Open(ctx context.Context, sealed kek.Sealed) ([]byte, error) {
	e, err := parse(sealed.Ciphertext)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	if want := s.keyIDOf(&e); sealed.KeyID != want {
		return nil, fmt.Errorf("open: sealed under %q, asked with %q: %w", want, sealed.KeyID, kek.ErrWrongKeyID)
	}
	if err := s.findKey(ctx, e.id); err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	if s.cfg.Mode == Direct || e.scheme == schemeDirect {
		kek.NoteSource(ctx, kek.FromHSM)
	}
	// Not by a variable, which would put the envelope on the heap.
	var plaintext []byte
	if e.scheme == schemeDirect {
		plaintext, err = s.openDirect(ctx, &e, sealed.KeyID)
	} else {
		plaintext, err = s.openSeeded(ctx, &e, sealed.KeyID)
	}
	if err != nil {
		return nil, fmt.Errorf("open under key %s: %w", e.id, err)
	}
	s.cfg.Observer.Opened(sealed.KeyID)
	return plaintext, nil
}

// keyIDOf spells the key_id that an envelope's header names.
func (s *Sealer) keyIDOf(e *envelope) string {
	if c := s.current.Load(); c.made(e) {
		return c.keyID // what the line below would build
	}
	return kek.KeyID(s.cfg.Ring, e.id, e.check)
}

func (s *Sealer) openSeeded(ctx context.Context, e *envelope, keyID string) ([]byte, error) {
	var key oneTimeKey
	defer key.wipe()
	if s.cfg.Mode == Direct {
		if err := s.deriveOnce(ctx, e, &key); err != nil {
			return nil, err
		}
		return key.open(e, keyID)
	}
	for fetched := false; ; fetched = true {
		entry, err := s.deriveCached(ctx, e, &key)
		if err != nil {
			return nil, err
		}
		plaintext, err := key.open(e, keyID)
		switch {
		case entry == nil: // by the seed in use, which is proven
			return plaintext, err
		case err == nil:
			entry.vouch()
			return plaintext, nil
		case fetched || !s.seeds.doubt(entry, s.cfg.Clock()):
			return nil, err
		}
	}
}

// from returns what sets k from a seed and the salt, for Slot.View.
func (k *oneTimeKey) from(salt []byte) func(secret.Bytes) {
	return func(seed secret.Bytes) { k.derive(seed, salt) }
}

// deriveCached sets key from the seed in use, from the cache or from the HSM, in
// that order. It returns the seed's entry, nil for the seed in use.
func (s *Sealer) deriveCached(ctx context.Context, e *envelope, key *oneTimeKey) (_ *seedEntry, err error) {
	if c := s.current.Load(); c.made(e) && c.slot.View(key.from(e.salt)) {
		kek.NoteSource(ctx, kek.FromSeed)
		s.cfg.Observer.CacheRequest(CacheHit)
		return nil, nil
	}
	d := seedDigest(e)
	if entry := s.seeds.get(d); entry != nil && entry.View(key.from(e.salt)) {
		kek.NoteSource(ctx, kek.FromCache)
		s.cfg.Observer.CacheRequest(CacheHit)
		return entry, nil
	}
	if err := s.refused.recall(d, s.cfg.Clock()); err != nil {
		s.cfg.Observer.CacheRequest(verified(ctx, err, CacheRemembered))
		tracing.From(ctx).Event(tracing.Remembered)
		return nil, fmt.Errorf("not asked again so soon: %w", err)
	}
	kek.NoteSource(ctx, kek.FromHSM)
	if kek.Verifying(ctx) {
		defer func() { s.cfg.Observer.CacheRequest(verified(ctx, err, CacheMiss)) }()
	} else {
		s.cfg.Observer.CacheRequest(CacheMiss)
	}
	// A seed can leave the cache between its flight and us, if the cache is
	// small and very busy. Then it is fetched again, but not for ever.
	for range 3 {
		entry, err := s.fetch(ctx, e, d)
		if err != nil {
			return nil, err
		}
		if entry.View(key.from(e.salt)) {
			return entry, nil
		}
	}
	return nil, fmt.Errorf("the seed leaves the cache faster than it can be used: %w", kek.ErrBusy)
}

// verified is what counts of an Open that ended with err: result, unless kekctl verify
// had damaged the seed.
func verified(ctx context.Context, err error, result string) string {
	if kek.Verifying(ctx) && errors.Is(err, kek.ErrCorrupt) {
		return CacheVerify
	}
	return result
}

// fetch brings a seed into the cache: one flight per wrapped seed however many
// callers wait. A flight goes on when they leave.
func (s *Sealer) fetch(ctx context.Context, e *envelope, d digest) (*seedEntry, error) {
	id, mechanism := e.id, e.mechanism
	wrapped := bytes.Clone(e.wrapped) // the envelope is the caller's, who may leave
	ctx, span := s.cfg.Tracer.Child(ctx, tracing.SeedFetch)
	var own atomic.Bool
	flight := s.flights.DoChan(string(d[:]), func() (any, error) {
		own.Store(true)
		return s.fly(ctx, d, id, mechanism, wrapped)
	})
	var entry *seedEntry
	var err error
	select {
	case r := <-flight:
		// Its span is known where the flight has failed too.
		landed, _ := r.Val.(landing)
		entry, err = landed.entry, r.Err
		s.tellFlight(span, own.Load(), landed.span)
	case <-ctx.Done():
		err = waitError(ctx)
		underWay, _ := s.underWay.Load(d)
		flown, _ := underWay.(trace.SpanContext)
		s.tellFlight(span, own.Load(), flown)
	}
	span.End(kek.Class(err))
	return entry, err
}

// tellFlight notes on the span of who waited whose flight it was.
func (s *Sealer) tellFlight(span tracing.Span, own bool, flight trace.SpanContext) {
	if own {
		span.Set(tracing.Flight.String("own"))
		return
	}
	span.Set(tracing.Flight.String("shared"))
	span.Link(flight)
}

// landing is how a flight ended.
type landing struct {
	entry *seedEntry
	span  trace.SpanContext // the flight's; not valid if it was not recorded
}

// fly is a flight: it has the HSM unwrap a seed and puts it into the cache. It
// returns a landing in any case.
func (s *Sealer) fly(ctx context.Context, d digest, id kek.ID, m kek.Mechanism, wrapped []byte) (_ any, err error) {
	if entry := s.seeds.get(d); entry != nil { // a flight has just landed
		return landing{entry: entry}, nil
	}
	ctx, span := s.cfg.Tracer.Child(ctx, tracing.SeedUnwrap)
	if span.Recorded() {
		s.underWay.Store(d, span.Context())
		defer s.underWay.Delete(d)
	}
	defer func() { span.End(kek.Class(err)) }()
	seed, err := s.unwrapSeed(ctx, id, m, wrapped)
	defer seed.Wipe()
	if err != nil {
		s.refused.remember(d, err, s.cfg.Clock())
		return landing{span: span.Context()}, err
	}
	entry, err := s.seeds.add(d, id, seed, s.cfg.Clock(), s.permitted)
	if err != nil {
		return landing{span: span.Context()}, arenaError(err)
	}
	return landing{entry, span.Context()}, nil
}

// unwrapSeed asks the HSM through the gate. The caller wipes the seed.
func (s *Sealer) unwrapSeed(ctx context.Context, id kek.ID, m kek.Mechanism, wrapped []byte) (secret.Bytes, error) {
	var seed secret.Bytes
	err := s.gate.call(ctx, func(ctx context.Context) (err error) {
		seed, err = s.wrapper.Unwrap(ctx, id, m, wrapped, seedAAD(s.cfg.Ring, id))
		if err == nil && len(seed) != seedSize {
			return fmt.Errorf("a seed of %d bytes, want %d: %w", len(seed), seedSize, kek.ErrCorrupt)
		}
		return err
	})
	if err != nil {
		return seed, fmt.Errorf("unwrap the seed: %w", err)
	}
	return seed, nil
}
