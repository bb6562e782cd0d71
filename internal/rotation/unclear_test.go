package rotation

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"kekd/internal/kek"
)

// Which of several keys of other tools is the primary may be unclear; the rest of
// the ring is not. A key that shall end it is proven, and decrypts, before its time.
func TestUnclearPrimary(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		one, two, ours := kek.Info{Ring: ringLabel, ID: "1"}, kek.Info{Ring: ringLabel, ID: "2"}, key("c", time.Hour)
		w := &world{keys: []kek.Info{one}}
		v, _, _ := w.watcher(t)
		run(t, v)
		w.took()
		w.set(func() { w.keys = []kek.Info{one, two, ours} })
		pass(refresh)
		expect(t, w, "two candidates and a pending key", "try c")
		if c, ok := w.Current(); !ok || c.ID != one.ID {
			t.Errorf("key %s is in use, want 1", nameOf(c.ID))
		}
		if s := v.Snapshot(); !errors.Is(s.Err, kek.ErrAmbiguous) {
			t.Errorf("the snapshot says %v, want the candidates", s.Err)
		}
		w.set(func() {
			for _, k := range w.keys {
				if in, _ := w.ring.Lookup(k.ID); !in.State.Decrypts() {
					t.Errorf("key %s does not decrypt", nameOf(k.ID))
				}
			}
		})
		pass(time.Hour)
		expect(t, w, "its time came", "prove c", "save c", "use c by aes-kwp", "published c", "rotated: ok")
	})
}
