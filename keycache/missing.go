package keycache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"kekd/internal/kek"
	"kekd/internal/tracing"
)

const (
	// lookTimeout is how long an Open waits for a look at the ring. It is less than
	// the 3 s that kube-apiserver waits by default.
	lookTimeout = 2 * time.Second
	// maxLooking is how many Opens wait for one at once. Whoever can write to etcd
	// can make up any number of keys.
	maxLooking = 64
)

// findKey is permitted, but for a key that the ring lacks it has the ring looked at
// once more: another node may have rotated a moment ago and sealed under a key
// that this one has not seen yet. What came of it is remembered for failureMemory,
// in which the ring is read anyway. Where the ring could not be read, nobody knows
// whether the token has the key, and the error is that of the look.
func (s *Sealer) findKey(ctx context.Context, id kek.ID) error {
	err := s.permitted(id)
	if s.cfg.Look == nil || !errors.Is(err, kek.ErrUnknownKey) {
		return err
	}
	d := keyDigest(id)
	if known := s.missing.recall(d, s.cfg.Clock()); known != nil {
		return known
	}
	select {
	case s.looking <- struct{}{}:
		defer func() { <-s.looking }()
	default:
		return fmt.Errorf("look for key %s: %w", id, kek.ErrBusy)
	}
	limited, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	limited, span := s.cfg.Tracer.Child(limited, tracing.RingAwait)
	looked := s.cfg.Look(limited)
	span.End(kek.Class(looked))
	if err = s.permitted(id); !errors.Is(err, kek.ErrUnknownKey) {
		return err
	}
	switch {
	case ctx.Err() != nil:
		return waitError(ctx) // it was the caller who gave up, not the look
	case limited.Err() != nil:
		err = fmt.Errorf("look for key %s: the ring was not read within %s: %w", id, lookTimeout, kek.ErrUnavailable)
	case looked != nil:
		err = fmt.Errorf("look for key %s: %w", id, looked)
	}
	s.missing.keep(d, err, s.cfg.Clock())
	return err
}

// keyDigest names the question whether the token has a key.
func keyDigest(id kek.ID) digest {
	return sha256.Sum256(append([]byte{digestKey}, id...))
}
