package keycache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"kekd/internal/kek"
)

// Seal encrypts plaintext under the published key. In seeded mode it does not
// wait for anything. Errors: kek.ErrEmpty; kek.ErrTooLarge when the envelope
// would exceed 1024 bytes; kek.ErrUnavailable when nothing is published or the
// seed has expired; kek.ErrRevoked when what was published was taken back. In
// direct mode also the Wrapper's, kek.ErrBusy, kek.ErrRefused after
// MaxDirectUses, and the context's.
func (s *Sealer) Seal(ctx context.Context, plaintext []byte) (kek.Sealed, error) {
	if len(plaintext) == 0 {
		return kek.Sealed{}, fmt.Errorf("seal: %w", kek.ErrEmpty)
	}
	for {
		c := s.current.Load()
		if c == nil {
			return kek.Sealed{}, fmt.Errorf("seal: no key is published: %w", kek.ErrUnavailable)
		}
		if c.revoked {
			return kek.Sealed{}, fmt.Errorf("seal: the key was taken back: %w", kek.ErrRevoked)
		}
		seal, source := s.sealSeeded, kek.FromSeed
		if s.cfg.Mode == Direct {
			seal, source = s.sealDirect, kek.FromHSM
		}
		kek.NoteSource(ctx, source)
		ciphertext, err := seal(ctx, c, plaintext)
		if errors.Is(err, errReleased) {
			continue // what is published has just changed, or is about to
		}
		if err != nil {
			return kek.Sealed{}, fmt.Errorf("seal under key %s: %w", c.key.ID, err)
		}
		if s.current.Load() != c {
			s.late.note(c.key.ID, s.cfg.Clock())
		}
		return kek.Sealed{KeyID: c.keyID, Ciphertext: ciphertext}, nil
	}
}

// errReleased: the seed was wiped between its being looked up and used.
var errReleased = errors.New("the seed was released")

func (s *Sealer) sealSeeded(_ context.Context, c *current, plaintext []byte) ([]byte, error) {
	size := sealedSize(len(c.prefix)+saltSize, len(plaintext))
	if size > maxCiphertext {
		return nil, tooLarge(len(plaintext), size)
	}
	if s.age(c) >= s.cfg.MaxAge {
		return nil, fmt.Errorf("the seed is older than %s: %w", s.cfg.MaxAge, kek.ErrUnavailable)
	}
	if c.uses.Add(1) > s.cfg.MaxUses {
		return nil, fmt.Errorf("the seed was used %d times: %w", s.cfg.MaxUses, kek.ErrUnavailable)
	}
	header := append(make([]byte, 0, roomFor(len(c.prefix)+saltSize, len(plaintext), c.keyID)), c.prefix...)
	header = header[:len(c.prefix)+saltSize]
	salt := header[len(c.prefix):]
	_, _ = rand.Read(salt) // never fails, see its documentation
	var key oneTimeKey
	defer key.wipe()
	if !c.slot.View(key.from(salt)) {
		return nil, errReleased
	}
	return key.seal(header, plaintext, c.keyID)
}

func tooLarge(plaintext, size int) error {
	return fmt.Errorf("%d bytes of plaintext make %d bytes of ciphertext, more than the %d that kube-apiserver takes: %w",
		plaintext, size, maxCiphertext, kek.ErrTooLarge)
}
