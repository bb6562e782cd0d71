package keycache

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kekd/internal/kek"
)

// A Seal that ends after its key was replaced is remembered with its end; one of the
// key in use is not, and costs nothing.
func TestLateSeal(t *testing.T) {
	t.Run("direct", func(t *testing.T) {
		clock, hsm := newClock(), &fakeHSM{}
		cfg := directConfig()
		cfg.Clock = clock.Now
		s := readySealer(t, cfg, hsm)
		seal(t, s, "p")
		if late := s.Late(); len(late) != 0 {
			t.Errorf("late without a switch: %v", late)
		}
		held, release := make(chan struct{}), make(chan struct{})
		var once sync.Once
		hsm.set(func(f *fakeHSM) {
			f.before = func(context.Context, string) error { // the first call waits, the switch does not
				once.Do(func() {
					close(held)
					<-release
				})
				return nil
			}
		})
		done := make(chan kek.Sealed)
		go func() { done <- seal(t, s, "q") }()
		<-held
		hsm.set(func(f *fakeHSM) { f.before = nil })
		use(t, s, keyB)
		clock.add(time.Second)
		close(release)
		if sealed := <-done; sealed.KeyID != keyA.KeyID() {
			t.Fatalf("sealed under %s, want the key before", sealed.KeyID)
		}
		if diff := cmp.Diff(map[kek.ID]time.Time{keyA.ID: clock.Now()}, s.Late()); diff != "" {
			t.Errorf("late (-want +got):\n%s", diff)
		}
	})
	t.Run("seeded", func(t *testing.T) {
		clock, between := newClock(), func() {}
		cfg := seededConfig()
		cfg.Clock = func() time.Time {
			do := between
			between = func() {}
			do()
			return clock.Now()
		}
		s := readySealer(t, cfg, &fakeHSM{})
		// Seal looks at the clock after it has chosen the key.
		between = func() {
			use(t, s, keyB)
			clock.add(time.Second)
		}
		if sealed := seal(t, s, "p"); sealed.KeyID != keyA.KeyID() {
			t.Fatalf("sealed under %s, want the key before", sealed.KeyID)
		}
		want := map[kek.ID]time.Time{keyA.ID: clock.Now()}
		clock.add(time.Second)
		seal(t, s, "q")
		if diff := cmp.Diff(want, s.Late()); diff != "" {
			t.Errorf("late (-want +got):\n%s", diff)
		}
	})
}
