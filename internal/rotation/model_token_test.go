package rotation

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"slices"

	"kekd/internal/kek"
	"kekd/internal/secret"
)

// sharedToken is the one token that all nodes of the model use. Its keys are real,
// so that nothing but the right key opens a value.
type sharedToken struct {
	keys []sharedKey
	// made are the ids of all keys that there ever were.
	made map[kek.ID]bool
	// strict: a key out of use does nothing, whoever asks. Other tokens know nothing
	// of what its label says.
	strict bool
}

type sharedKey struct {
	info  kek.Info // its State is Disabled, Scheduled or not set, as the token tells it
	block cipher.Block
}

// add makes a key. No id is ever used twice.
func (s *sharedToken) add(id kek.ID) error {
	if s.made[id] {
		return fmt.Errorf("key %s is there, or was", id)
	}
	s.made[id] = true
	k := sharedKey{info: kek.Info{Ring: ringLabel, ID: id}}
	k.info.Activation, _ = id.Activation()
	s.keys = append(s.keys, k)
	return s.keys[len(s.keys)-1].fill()
}

// fill puts a new value into a key.
func (k *sharedKey) fill() error {
	value := make([]byte, 32)
	_, _ = rand.Read(value) // never fails, see its documentation
	block, err := aes.NewCipher(value)
	if err != nil {
		return err
	}
	k.block = block
	check := make([]byte, aes.BlockSize)
	block.Encrypt(check, check)
	copy(k.info.CheckValue[:], check)
	return nil
}

func (s *sharedToken) find(id kek.ID) *sharedKey {
	for i := range s.keys {
		if s.keys[i].info.ID == id {
			return &s.keys[i]
		}
	}
	return nil
}

// live reports whether a key is on the token and in use.
func (s *sharedToken) live(id kek.ID) bool {
	k := s.find(id)
	return k != nil && k.info.State == 0
}

func (s *sharedToken) destroy(id kek.ID) {
	s.keys = slices.DeleteFunc(s.keys, func(k sharedKey) bool { return k.info.ID == id })
}

// connection is one node's way to the token.
type connection struct {
	*sharedToken
	down bool
	// left is how many calls pass before one fails; below 0 if none will.
	left int
	// blind: it tells no check values.
	blind bool
}

// call fails where the token can't be reached.
func (c *connection) call() error {
	failed := c.down
	if !failed && c.left >= 0 {
		failed = c.left == 0
		c.left--
	}
	if failed {
		return fmt.Errorf("fake: unplugged: %w", kek.ErrUnavailable)
	}
	return nil
}

// sound reports whether every call passes.
func (c *connection) sound() bool { return !c.down && c.left < 0 }

func (c *connection) cipher(id kek.ID) (cipher.AEAD, error) {
	if err := c.call(); err != nil {
		return nil, err
	}
	k := c.find(id)
	if k == nil {
		return nil, fmt.Errorf("fake: key %s: %w", id, kek.ErrUnknownKey)
	}
	if c.strict && k.info.State != 0 {
		return nil, fmt.Errorf("fake: key %s: %w", id, kek.ErrRefused)
	}
	return cipher.NewGCMWithRandomNonce(k.block)
}

// Keys implements Token.
func (c *connection) Keys(context.Context) ([]kek.Info, error) {
	if err := c.call(); err != nil {
		return nil, err
	}
	infos := make([]kek.Info, 0, len(c.keys))
	for _, k := range c.keys {
		if c.blind {
			k.info.CheckValue = kek.CheckValue{}
		}
		infos = append(infos, k.info)
	}
	return infos, nil
}

// Prove implements Token.
func (c *connection) Prove(ctx context.Context, id kek.ID) (kek.Mechanism, []string, error) {
	m, err := c.Try(ctx, id)
	return m, nil, err
}

// Try implements Token.
func (c *connection) Try(_ context.Context, id kek.ID) (kek.Mechanism, error) {
	if _, err := c.cipher(id); err != nil {
		return 0, err
	}
	return kek.GCMCallerIV, nil
}

// Wrap implements keycache.Wrapper.
func (c *connection) Wrap(_ context.Context, id kek.ID, _ kek.Mechanism, plaintext secret.Bytes, aad []byte) ([]byte, error) {
	g, err := c.cipher(id)
	if err != nil {
		return nil, err
	}
	return g.Seal(nil, nil, plaintext, aad), nil
}

// Unwrap implements keycache.Wrapper.
func (c *connection) Unwrap(_ context.Context, id kek.ID, _ kek.Mechanism, blob, aad []byte) (secret.Bytes, error) {
	g, err := c.cipher(id)
	if err != nil {
		return nil, err
	}
	plaintext, err := g.Open(nil, nil, blob, aad)
	if err != nil {
		return nil, fmt.Errorf("fake: %w", kek.ErrCorrupt)
	}
	return plaintext, nil
}
