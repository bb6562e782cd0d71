package rotation

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"kekd/internal/kek"
)

// Whoever asks for a look gets one that began after the question; all who ask
// share it, and they get one a second at most.
func TestLook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", -time.Hour)}}
		v, _, _ := w.watcher(t)
		run(t, v)
		begun := time.Now()

		pass(3 * time.Second)
		w.set(func() { w.keys = append(w.keys, key("b", time.Hour)) })
		err := v.Look(t.Context())
		if took := time.Since(begun) - 3*time.Second; took != 0 || err != nil {
			t.Errorf("a look that was due took %s: %v", took, err)
		}
		if _, ok := v.Snapshot().Ring.Lookup(key("b", time.Hour).ID); !ok {
			t.Error("the new key is not in the ring after the look")
		}

		const callers = 100
		ended := make(chan time.Duration, callers)
		for range callers {
			go func() {
				if err := v.Look(t.Context()); err != nil {
					t.Errorf("a shared look: %v", err)
				}
				ended <- time.Since(begun)
			}()
		}
		for range callers {
			if at := <-ended; at != 4*time.Second {
				t.Fatalf("a caller was served after %s, want 4s: a second after the last look", at)
			}
		}
		synctest.Wait()
		if n := w.looked(); n != 3 {
			t.Errorf("%d looks, want the first and two that were asked for", n)
		}
		// The looks at the usual times go on, counted from the last one.
		pass(refresh)
		if n := w.looked(); n != 4 {
			t.Errorf("%d looks, want 4", n)
		}
	})
}

// A caller does not wait longer than he wants to.
func TestLookOfAHungToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", -time.Hour)}}
		v, _, _ := w.watcher(t)
		run(t, v)
		pass(2 * time.Second)
		w.set(func() { w.hang = true })
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := v.Look(ctx)
		if took := time.Since(begun); took != time.Second || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the look took %s (%v), want the caller's 1s", took, err)
		}
	})
}

// Who asked hears that the ring could not be read, and not what else is wrong.
func TestLookSaysWhetherTheRingWasRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", -time.Hour)}}
		v, _, _ := w.watcher(t)
		run(t, v)
		w.set(func() { w.keysErr = kek.ErrUnavailable })
		if err := v.Look(t.Context()); !errors.Is(err, kek.ErrUnavailable) {
			t.Errorf("a look without the token: %v, want ErrUnavailable", err)
		}
		w.set(func() { w.keysErr, w.keys = nil, []kek.Info{disabled(key("a", -time.Hour))} })
		if err := v.Look(t.Context()); err != nil {
			t.Errorf("a look at a revoked ring: %v, want none", err)
		}
	})
}

// Whoever asks for looks does not put off one that is due.
func TestLookDelaysNoActivation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(500 * time.Millisecond) // activations are whole seconds, these looks are not
		w := &world{keys: []kek.Info{key("a", -time.Hour), key("b", 20*time.Second)}}
		v, _, _ := w.watcher(t)
		run(t, v)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			for v.Look(ctx) == nil {
			}
		}()
		pass(19500 * time.Millisecond)
		if c, _ := w.Current(); nameOf(c.ID) != "b" {
			t.Errorf("key %s is in use at the activation, want b", nameOf(c.ID))
		}
	})
}

func TestLookDelaysNoRefresh(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", -time.Hour)}}
		v, _, _ := w.watcher(t)
		v.cfg.Refresh = lookSpacing / 10
		run(t, v)
		go func() { _ = v.Look(t.Context()) }()
		pass(lookSpacing)
		if n := w.looked(); n != 11 {
			t.Errorf("%d looks, want the first and ten", n)
		}
	})
}
