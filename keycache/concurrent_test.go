package keycache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"kekd/internal/kek"
)

// Whatever goes on around it, what Seal returns opens here and on another node.
func TestEverythingAtOnce(t *testing.T) {
	cfg := seededConfig()
	cfg.CacheSize = 3 // so that seeds leave all the time
	s := readySealer(t, cfg, &fakeHSM{})
	other := newSealer(t, seededConfig(), &fakeHSM{})
	other.SetRing(ringOf(keyA, keyB))
	ctx, stop := context.WithCancel(context.Background())
	var background, callers sync.WaitGroup
	loop := func(step func(n int)) {
		background.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				step(n)
			}
		})
	}
	loop(func(n int) {
		if err := s.Use(ctx, []kek.Info{keyA, keyB, keyA}[n%3], kek.GCMCallerIV); err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	loop(func(n int) {
		if n%2 == 0 {
			s.SetRing(ringOf(keyB, keyA))
		} else {
			s.SetRing(ringOf(in(keyA, kek.Retired), in(keyB, kek.Primary)))
		}
		s.Stats()
		s.RenewalDue()
		s.Current()
	})
	for g := range 4 {
		callers.Go(func() {
			for n := range 300 {
				want := fmt.Sprint(g, " ", n)
				sealed := seal(t, s, want)
				if sealed.KeyID != keyA.KeyID() && sealed.KeyID != keyB.KeyID() {
					t.Errorf("key_id %q", sealed.KeyID)
				}
				got, err := s.Open(ctx, sealed)
				if err != nil && !errors.Is(err, kek.ErrBusy) {
					t.Error(err)
				}
				if err == nil && string(got) != want {
					t.Errorf("opened to %q, want %q", got, want)
				}
				opens(t, other, sealed, want)
			}
		})
	}
	callers.Wait()
	stop()
	background.Wait()
}

// Sealing against taking back: either a value or a clear no, and no race
// between wiping and deriving.
func TestSealWhileTakenBack(t *testing.T) {
	s := readySealer(t, seededConfig(), &fakeHSM{})
	ctx, stop := context.WithCancel(context.Background())
	var background, callers sync.WaitGroup
	background.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			if n%2 == 0 {
				s.Unpublish()
			} else {
				s.SetRing(ringOf(keyB, in(keyA, kek.Disabled)))
				s.SetRing(ringOf(keyB, keyA))
			}
			use(t, s, keyA)
		}
	})
	for range 4 {
		callers.Go(func() {
			for range 300 {
				sealed, err := s.Seal(ctx, []byte("p"))
				if errors.Is(err, kek.ErrRevoked) {
					continue
				}
				if err != nil {
					t.Error(err)
					continue
				}
				if got, err := s.Open(ctx, sealed); err == nil && string(got) != "p" {
					t.Errorf("opened to %q", got)
				} else if err != nil && !errors.Is(err, kek.ErrRevoked) {
					t.Error(err)
				}
			}
		})
	}
	callers.Wait()
	stop()
	background.Wait()
}
