package newkey

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"kekd/internal/kek"
)

// Token is the token as a new key needs it.
type Token interface {
	// Name names the token in a sentence.
	Name(ctx context.Context) (string, error)
	// View reads the ring.
	View(ctx context.Context) (View, error)
	// Try tests a key by using it.
	Try(ctx context.Context, id kek.ID) (kek.Mechanism, error)
}

// Seen is a token together with the keys that nodes were seen to publish: a new key must
// activate after these too.
type Seen struct {
	Token
	Published []kek.ID
}

// View implements Token.
func (t Seen) View(ctx context.Context) (View, error) {
	v, err := t.Token.View(ctx)
	v.Published = append(v.Published, t.Published...)
	return v, err
}

// Made is a new key.
type Made struct {
	// Key is the key as the token has it; its state is Primary or Pending.
	Key       kek.Info
	Mechanism kek.Mechanism
}

// Maker makes a key. All fields but Begun are required.
type Maker struct {
	Token Token
	Plan  Plan
	// What says in a few words what will be done, such as "Creates an AES-256 key".
	What string
	// Confirm shows the plan and asks. It may take as long as the administrator does.
	Confirm func(plan string) error
	// Begun hears the id before the key is made.
	Begun func(id kek.ID) error
	// Create makes the key with this CKA_ID and tests it. Its error says what it has left.
	Create func(ctx context.Context, id kek.ID) (kek.Info, kek.Mechanism, error)
	// Timeout bounds each wait for the HSM.
	Timeout time.Duration
	// Lead is how long before its activation a pending key must be on the token: the
	// nodes need that time to see it. 0 for a key that takes over at once.
	Lead  time.Duration
	Clock func() time.Time
}

// Make plans the key, asks, and makes it. The plan is made anew after the answer,
// which may have taken long.
func (m Maker) Make(ctx context.Context) (Made, error) {
	name, view, at, err := m.plan(ctx)
	if err != nil {
		return Made{}, err
	}
	delay := "at once"
	if left := at.Sub(m.Clock()); left > time.Second {
		delay = fmt.Sprintf("in %s", left.Round(time.Second))
	}
	err = m.Confirm(fmt.Sprintf("%s on %s, ring %q, beside %d other(s); it becomes the primary at %s, %s.",
		m.What, name, view.Label, len(view.Keys), at.UTC().Format(time.RFC3339), delay))
	if err != nil {
		return Made{}, err
	}
	if _, _, at, err = m.plan(ctx); err != nil {
		return Made{}, err
	}
	id, err := kek.NewID(at, rand.Reader)
	if err != nil {
		return Made{}, err
	}
	if m.Begun != nil {
		if err := m.Begun(id); err != nil {
			return Made{}, err
		}
	}
	return m.create(ctx, id, at)
}

// plan reads the ring and decides when the key activates.
func (m Maker) plan(ctx context.Context) (name string, view View, at time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.Timeout)
	defer cancel()
	if name, err = m.Token.Name(ctx); err != nil {
		return "", View{}, time.Time{}, err
	}
	if view, err = m.Token.View(ctx); err != nil {
		return "", View{}, time.Time{}, err
	}
	for _, class := range []error{kek.ErrNoKey, kek.ErrRevoked, kek.ErrRefused, kek.ErrAmbiguous, nil} {
		if errors.Is(view.Err, class) {
			at, err = m.Plan(view, m.Clock())
			return name, view, at, err
		}
	}
	return "", View{}, time.Time{}, view.Err
}

// create makes the key, in time for the nodes to see it before it activates.
func (m Maker) create(ctx context.Context, id kek.ID, at time.Time) (Made, error) {
	now := m.Clock()
	limit := m.Timeout
	if left := at.Sub(now) - m.Lead; m.Lead > 0 && left > 0 {
		limit = min(limit, left)
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	key, mechanism, err := m.Create(limited, id)
	if err != nil {
		return Made{}, err // which says what is left on the token
	}
	key.State = kek.Primary
	if at.After(m.Clock()) {
		key.State = kek.Pending
	}
	return Made{key, mechanism}, nil
}
