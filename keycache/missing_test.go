package keycache

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kekd/internal/kek"
)

// looker is a ring that changes with a look.
type looker struct {
	mu    sync.Mutex
	looks int
	// look is what a look does.
	look func(ctx context.Context) error
}

func (l *looker) Look(ctx context.Context) error {
	l.mu.Lock()
	l.looks++
	l.mu.Unlock()
	return l.look(ctx)
}

func (l *looker) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.looks
}

// lookingSealer makes a Sealer whose ring has one key, and something sealed under
// another that it does not know.
func lookingSealer(t *testing.T, l *looker, clock *fakeClock) (*Sealer, kek.Sealed, kek.Info) {
	t.Helper()
	hsm := &fakeHSM{}
	unknown := testKey(2, kek.Primary)
	other := newSealer(t, seededConfig(), hsm)
	other.SetRing(ringOf(unknown))
	use(t, other, unknown)
	sealed := seal(t, other, "of another node")

	cfg := seededConfig()
	cfg.Look, cfg.Clock = l.Look, clock.Now
	s := newSealer(t, cfg, hsm)
	s.SetRing(ringOf(testKey(1, kek.Primary)))
	return s, sealed, unknown
}

// Another node rotated first: its key is found by a look.
func TestUnknownKeyIsLookedFor(t *testing.T) {
	t.Parallel()
	l := &looker{}
	s, sealed, unknown := lookingSealer(t, l, newClock())
	l.look = func(context.Context) error {
		s.SetRing(ringOf(testKey(1, kek.Retired), unknown))
		return nil
	}
	opens(t, s, sealed, "of another node")
	opens(t, s, sealed, "of another node")
	if n := l.count(); n != 1 {
		t.Errorf("%d looks, want 1", n)
	}
}

// A key that is not there is looked for once in a while, not for every request.
func TestMissingKeyIsRemembered(t *testing.T) {
	t.Parallel()
	l, clock := &looker{look: func(context.Context) error { return nil }}, newClock()
	s, sealed, unknown := lookingSealer(t, l, clock)
	for range 5 {
		refuses(t, s, sealed, kek.ErrUnknownKey)
	}
	if n := l.count(); n != 1 {
		t.Errorf("%d looks, want 1", n)
	}
	clock.add(failureMemory)
	refuses(t, s, sealed, kek.ErrUnknownKey)
	if n := l.count(); n != 2 {
		t.Errorf("%d looks, want another after %s", n, failureMemory)
	}
	// What is remembered does not hide a key that the ring has meanwhile.
	s.SetRing(ringOf(testKey(1, kek.Retired), unknown))
	opens(t, s, sealed, "of another node")
}

// A key that is known and out of use is no reason to look.
func TestDisabledKeyIsNotLookedFor(t *testing.T) {
	t.Parallel()
	l := &looker{look: func(context.Context) error { return nil }}
	s, sealed, unknown := lookingSealer(t, l, newClock())
	s.SetRing(ringOf(testKey(1, kek.Primary), in(unknown, kek.Disabled)))
	refuses(t, s, sealed, kek.ErrRevoked)
	if n := l.count(); n != 0 {
		t.Errorf("%d looks, want none", n)
	}
}

// A look that hangs holds up a bounded number of callers for a bounded time, and
// one who gives up earlier leaves no verdict behind.
func TestLookHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &looker{look: func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		s, sealed, _ := lookingSealer(t, l, newClock())
		hasty, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := s.Open(hasty, sealed); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a hasty caller got %v, want DeadlineExceeded", err)
		}

		begun := time.Now()
		const callers = maxLooking + 100
		took := make(chan time.Duration, callers)
		for range callers {
			go func() {
				_, err := s.Open(t.Context(), sealed)
				if !errors.Is(err, kek.ErrUnavailable) && !errors.Is(err, kek.ErrBusy) {
					t.Errorf("got %v, want ErrUnavailable or ErrBusy", err)
				}
				took <- time.Since(begun)
			}()
		}
		waited := 0
		for range callers {
			switch d := <-took; d {
			case 0:
			case lookTimeout:
				waited++
			default:
				t.Errorf("a caller waited %s, want nothing or %s", d, lookTimeout)
			}
		}
		if waited != maxLooking {
			t.Errorf("%d callers waited, want %d", waited, maxLooking)
		}
	})
}

// A look that fails says nothing about the key: the caller hears of the outage, and
// so does who asks next.
func TestLookFails(t *testing.T) {
	t.Parallel()
	l, clock := &looker{look: func(context.Context) error { return kek.ErrUnavailable }}, newClock()
	s, sealed, _ := lookingSealer(t, l, clock)
	for range 3 {
		refuses(t, s, sealed, kek.ErrUnavailable)
	}
	if n := l.count(); n != 1 {
		t.Errorf("%d looks, want 1", n)
	}
	clock.add(failureMemory)
	l.look = func(context.Context) error { return nil }
	refuses(t, s, sealed, kek.ErrUnknownKey)
}
