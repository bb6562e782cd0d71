package keycache

import (
	"context"
	"crypto/sha256"
	"errors"
	"time"

	"kekd/internal/kek"
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
// that this one has not seen yet. A key that was not found then is not looked for
// again for failureMemory, in which the ring is read anyway.
func (s *Sealer) findKey(ctx context.Context, id kek.ID) error {
	err := s.permitted(id)
	if s.cfg.Look == nil || !errors.Is(err, kek.ErrUnknownKey) {
		return err
	}
	d := keyDigest(id)
	if s.missing.recall(d, s.cfg.Clock()) != nil {
		return err
	}
	select {
	case s.looking <- struct{}{}:
		defer func() { <-s.looking }()
	default:
		return err
	}
	limited, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	s.cfg.Look(limited)
	err = s.permitted(id)
	if err != nil && ctx.Err() == nil { // else it was the caller who gave up, not the look
		s.missing.remember(d, err, s.cfg.Clock())
	}
	return err
}

// keyDigest names the question whether the token has a key.
func keyDigest(id kek.ID) digest {
	return sha256.Sum256(append([]byte{digestKey}, id...))
}
