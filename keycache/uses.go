package keycache

import (
	"fmt"
	"sync"

	"kekd/internal/kek"
)

const (
	// MaxDirectUses is where direct mode stops using a KEK under AES-GCM:
	// random nonces may collide beyond (NIST SP 800-38D, section 8.3). The count
	// is this node's; with several nodes under one KEK rotate that much earlier.
	MaxDirectUses = 1 << 32
	// DirectUsesWarning is where an operator should be told to rotate.
	DirectUsesWarning = 1 << 28

	// usesBlock is how many uses are reserved in the Counter at once. A crash
	// counts up to that many too many, never too few.
	usesBlock = 4096
)

// useCounter hands out uses of a KEK from blocks that it reserves in a Counter.
// It is safe for concurrent use.
type useCounter struct {
	counter Counter

	mu    sync.Mutex // held while a block is reserved: others wait, or would overtake
	id    kek.ID
	total uint64 // counted so far, the whole block included
	left  uint64 // of the block
}

// take counts one use. It returns kek.ErrRefused when no more are allowed and
// kek.ErrUnavailable when they cannot be counted. Only AES-GCM counts: the
// other mechanisms have no nonce that could repeat.
func (u *useCounter) take(id kek.ID, m kek.Mechanism) error {
	switch m {
	case kek.GCMCallerIV, kek.GCMWrittenIV, kek.GCMAppendedIV:
	default:
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.id != id {
		u.id, u.total, u.left = id, 0, 0
	}
	if u.left == 0 {
		if u.total >= MaxDirectUses {
			return usedUp(id)
		}
		total, err := u.counter.Add(id, usesBlock)
		if err != nil {
			return fmt.Errorf("count the uses of key %s: %w: %w", id, err, kek.ErrUnavailable)
		}
		u.total, u.left = total, usesBlock
	}
	if u.total-u.left >= MaxDirectUses {
		return usedUp(id)
	}
	u.left--
	return nil
}

// used returns how many uses of the present key were counted.
func (u *useCounter) used() uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.total - u.left
}

func usedUp(id kek.ID) error {
	return fmt.Errorf("key %s was used %d times under AES-GCM in direct mode, the most that is safe; rotate it: %w",
		id, uint64(MaxDirectUses), kek.ErrRefused)
}
