package rotation

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"kekd/internal/kek"
)

// A pending key is tried once, long before its time, and again only where that
// failed, or where it is another key. The key in use is not disturbed.
func TestPendingKeyIsTried(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		old, next := key("a", -time.Hour), key("b", time.Hour)
		w := &world{keys: []kek.Info{old}}
		v, logs, _ := w.watcher(t)
		run(t, v)
		w.took()

		broken := errors.New("no mechanism works")
		w.set(func() { w.keys, w.tryErr = []kek.Info{old, next}, broken })
		pass(refresh)
		expect(t, w, "it does not work", "try b")
		if p := v.Snapshot().Proofs[next.ID]; !errors.Is(p.Err, broken) || p.Mechanism != 0 {
			t.Errorf("the proof is %+v, want the failure", p)
		}
		if v.Snapshot().Err != nil {
			t.Errorf("the ring has a problem: %v", v.Snapshot().Err)
		}
		pass(refresh)
		expect(t, w, "it still does not", "try b")
		if n := logs.FilterMessage("pending key does not work").Len(); n != 1 {
			t.Errorf("logged %d times, want once", n)
		}

		w.set(func() { w.tryErr = nil })
		pass(refresh)
		expect(t, w, "it works", "try b")
		if p := v.Snapshot().Proofs[next.ID]; p.Err != nil || p.Mechanism != kek.KWP {
			t.Errorf("the proof is %+v, want aes-kwp", p)
		}
		if p := v.Snapshot().Proofs[old.ID]; p.Mechanism != kek.KWP {
			t.Errorf("the proof of the primary is %+v, want aes-kwp", p)
		}
		pass(3 * refresh)
		expect(t, w, "it is known to work")

		// Another key of the same id is another key.
		w.set(func() { w.keys[1].CheckValue = kek.CheckValue{1} })
		pass(refresh)
		expect(t, w, "swapped", "try b")

		w.set(func() { w.keys = w.keys[:1] })
		pass(refresh)
		w.set(func() { w.keys = []kek.Info{old, key("c", time.Hour)} })
		pass(refresh)
		expect(t, w, "cancelled, and another made", "try c")
		if _, kept := v.Snapshot().Proofs[next.ID]; kept {
			t.Error("the proof of a key that is gone is kept")
		}
	})
}

// A key that does not work is not tried as often as somebody asks for looks.
func TestFailingKeyIsNotTriedAtEveryLook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", -time.Hour), key("b", time.Hour)}, tryErr: kek.ErrUnavailable}
		v, _, _ := w.watcher(t)
		run(t, v)
		w.took()
		look := func() { // one a second
			if err := v.Look(t.Context()); err != nil {
				t.Errorf("look: %v", err)
			}
		}
		for range 4 {
			look()
		}
		expect(t, w, "soon after the failure")
		look()
		expect(t, w, "later", "try b")
	})
}

func TestStopWhileTrying(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", -time.Hour), key("b", time.Hour)}, tryErr: context.Canceled}
		v, logs, _ := w.watcher(t)
		v.Refresh(t.Context())
		if n := logs.FilterLevelExact(zap.WarnLevel).Len(); n != 0 {
			t.Errorf("warned %d times that kekd stops", n)
		}
	})
}
