package rotation

import (
	"testing"
	"testing/synctest"
	"time"

	"kekd/internal/config"
	"kekd/internal/kek"
)

// A ring out of policy is told of once, and goes on.
func TestPolicy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", 0)}}
		v, logs, _ := w.watcherWith(t, config.KeyPolicy{MaxAge: time.Hour})
		run(t, v)
		if len(w.violations()) != 0 || len(v.Snapshot().Policy) != 0 {
			t.Errorf("a new key is out of policy: %v", v.Snapshot().Policy)
		}
		pass(2 * time.Hour)
		if len(w.violations()) != 1 || len(v.Snapshot().Policy) != 1 {
			t.Errorf("violations = %v, observed %v; want the age", v.Snapshot().Policy, w.violations())
		}
		if n := logs.FilterMessage("key out of policy").Len(); n != 1 {
			t.Errorf("logged %d times, want once", n)
		}
		if c, ok := w.Current(); !ok || nameOf(c.ID) != "a" {
			t.Error("the key is not in use any more")
		}
		w.set(func() { w.keys = append(w.keys, key("b", 2*time.Hour)) })
		pass(refresh)
		if len(v.Snapshot().Policy) != 0 || logs.FilterMessage("key within policy again").Len() != 1 {
			t.Errorf("after a rotation: %v", v.Snapshot().Policy)
		}
	})
}
