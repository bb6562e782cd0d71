package keycache

import (
	"bytes"
	"context"
	"fmt"

	"kekd/internal/kek"
	"kekd/internal/secret"
)

// sealDirect has the HSM encrypt the plaintext itself.
func (s *Sealer) sealDirect(ctx context.Context, c *current, plaintext []byte) ([]byte, error) {
	if size := len(c.prefix) + len(plaintext) + tagSize; size > maxCiphertext { // at the very least
		return nil, tooLarge(len(plaintext), size)
	}
	if err := s.uses.take(c.key.ID, c.mechanism); err != nil {
		return nil, err
	}
	copied := secret.Bytes(bytes.Clone(plaintext)) // the plaintext is the caller's, who may leave
	blob, err := s.detached(ctx, copied, func(ctx context.Context) ([]byte, error) {
		return s.wrapper.Wrap(ctx, c.key.ID, c.mechanism, copied, aad(c.prefix, c.keyID))
	})
	if err != nil {
		return nil, fmt.Errorf("wrap: %w", err)
	}
	size := len(c.prefix) + len(blob)
	if size > maxCiphertext {
		return nil, tooLarge(len(plaintext), size)
	}
	return append(append(make([]byte, 0, size), c.prefix...), blob...), nil
}

// openDirect has the HSM decrypt the value itself.
func (s *Sealer) openDirect(ctx context.Context, e *envelope, keyID string) ([]byte, error) {
	d := directDigest(e, keyID)
	id, mechanism, blob, bound := e.id, e.mechanism, bytes.Clone(e.body), aad(e.header, keyID)
	plaintext, err := s.asked(ctx, d, func(ctx context.Context) ([]byte, error) {
		return s.wrapper.Unwrap(ctx, id, mechanism, blob, bound)
	})
	if err != nil {
		return nil, fmt.Errorf("unwrap: %w", err)
	}
	return plaintext, nil
}

// deriveOnce sets key from a seed that is unwrapped for this one time: direct
// mode keeps none.
func (s *Sealer) deriveOnce(ctx context.Context, e *envelope, key *oneTimeKey) error {
	id, mechanism, wrapped := e.id, e.mechanism, bytes.Clone(e.wrapped)
	seed, err := s.asked(ctx, seedDigest(e), func(ctx context.Context) ([]byte, error) {
		seed, err := s.wrapper.Unwrap(ctx, id, mechanism, wrapped, seedAAD(s.cfg.Ring, id))
		if err == nil && len(seed) != seedSize {
			seed.Wipe()
			return nil, fmt.Errorf("a seed of %d bytes, want %d: %w", len(seed), seedSize, kek.ErrCorrupt)
		}
		return seed, err
	})
	if err != nil {
		return fmt.Errorf("unwrap the seed: %w", err)
	}
	key.derive(seed, e.salt)
	clear(seed)
	return nil
}

// asked is detached with the memory of failures before and after it.
func (s *Sealer) asked(ctx context.Context, d digest, op func(context.Context) ([]byte, error)) ([]byte, error) {
	if err := s.refused.recall(d, s.cfg.Clock()); err != nil {
		return nil, fmt.Errorf("not asked again so soon: %w", err)
	}
	return s.detached(ctx, nil, func(ctx context.Context) ([]byte, error) {
		out, err := op(ctx)
		s.refused.remember(d, err, s.cfg.Clock())
		return out, err
	})
}

// detached runs op through the gate and waits as long as ctx allows. Like a
// flight it goes on without its caller, so that a caller in a hurry neither
// looks like a dead HSM nor takes a session down; what comes out then is wiped.
// So is input, which op reads, in any case.
func (s *Sealer) detached(
	ctx context.Context, input secret.Bytes, op func(context.Context) ([]byte, error),
) ([]byte, error) {
	type result struct {
		out []byte
		err error
	}
	landed := make(chan result)
	go func() {
		var r result
		r.err = s.gate.call(ctx, func(ctx context.Context) (err error) {
			r.out, err = op(ctx)
			return err
		})
		input.Wipe()
		select {
		case landed <- r:
		case <-ctx.Done():
			clear(r.out)
		}
	}()
	select {
	case r := <-landed:
		if r.err != nil {
			clear(r.out)
			return nil, r.err
		}
		return r.out, nil
	case <-ctx.Done():
		return nil, waitError(ctx)
	}
}
