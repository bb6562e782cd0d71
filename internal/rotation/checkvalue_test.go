package rotation

import (
	"testing"
	"testing/synctest"

	"kekd/internal/kek"
)

// A token that computes check values only at times changes a key_id once at most:
// when the check value becomes known. It is then remembered before it is published.
func TestCheckValueComesAndGoes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		known := kek.CheckValue{1, 2, 3}
		w := &world{keys: []kek.Info{key("a", 0)}}
		v, _, _ := w.watcher(t)
		run(t, v)
		expect(t, w, "unknown", "prove a", "save a", "use a by aes-kwp", "published a")

		w.set(func() { w.keys[0].CheckValue = known })
		pass(refresh)
		expect(t, w, "known", "prove a", "save a", "use a by aes-kwp", "published a")
		keyID := w.keys[0].KeyID()

		w.set(func() { w.keys[0].CheckValue = kek.CheckValue{}; w.due = true })
		pass(refresh)
		expect(t, w, "unknown again, and a fresh seed", "use a by aes-kwp", "renewed: ok")
		if c, _ := w.Current(); c.KeyID != keyID {
			t.Errorf("the key_id became %s, want %s", c.KeyID, keyID)
		}

		w.set(func() { w.current = nil }) // a new process
		v, _, _ = w.watcher(t)
		v.Refresh(t.Context())
		if c, _ := w.Current(); c.KeyID != keyID {
			t.Errorf("after a restart the key_id is %s, want %s", c.KeyID, keyID)
		}
	})
}
