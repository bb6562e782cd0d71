package outages

import (
	"context"
	"fmt"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

func TestClockJumps(t *testing.T) {
	t.Parallel()
	const year = 365 * 24 * time.Hour
	var first *harness.Kekd
	n := started(t, harness.NewToken(t), harness.KekdOptions{MaxAge: 90 * 24 * time.Hour}, func(k *harness.Kekd) {
		first = k
		k.JumpClock(t, 0)
	})
	key := n.keyID(t)
	// Jumps to and fro, with a key that is pending for half an hour.
	n.CreateKey(t, 30*time.Minute)
	harness.Eventually(t, soon, "the pending key is proven", func(ctx context.Context) error {
		s, err := n.Status(ctx)
		if err == nil && (len(s.KeyRing.Keys) != 2 || !s.KeyRing.Keys[1].Proven) {
			err = fmt.Errorf("the ring is %+v", s.KeyRing.Keys)
		}
		return err
	})
	jump := func(ahead time.Duration) {
		t.Helper()
		first.JumpClock(t, ahead)
		before := n.Metrics(t)
		time.Sleep(3 * time.Second) // some looks and probes under the new time
		after := n.Metrics(t)
		n.expect(t, healthy...)
		n.seal(t)
		spent := func(m harness.Metrics) float64 { return m.Sum("process_cpu_seconds_total", nil) }
		if used := spent(after) - spent(before); used > 2 {
			t.Errorf("clock %v ahead: kekd used %.1f s of processor in 3 s", ahead, used)
		}
		count := func(m harness.Metrics) float64 {
			return m.Sum("kekd_seed_renewals_total", nil) + m.Sum("kekd_rotations_total", nil)
		}
		if made := count(after) - count(before); made > 1 {
			t.Errorf("clock %v ahead: %v new seeds in 3 s", ahead, made)
		}
		if h, err := n.health(t.Context()); err != nil || h.Health.State != "ready" {
			t.Errorf("clock %v ahead: %+v, %v; want ready", ahead, h, err)
		}
	}
	jump(-time.Hour)
	if got := n.keyID(t); got != key {
		t.Errorf("an hour back: the key_id is %s, want still %s", got, key)
	}
	jump(time.Hour)
	second := n.awaitKeyOtherThan(t, key) // by the clock its time has come
	for _, ahead := range []time.Duration{0, -time.Hour, -year, year, 0} {
		jump(ahead)
		if got := n.keyID(t); got != second {
			t.Errorf("clock %v ahead: the key_id is %s, want still %s: the ring never goes backwards", ahead, got, second)
		}
	}
	n.logged(t, `"key out of policy"`) // a year ahead the key is too old
	first.JumpClock(t, -year)
	n.restart(t)
	n.awaitState(t, "ready", "")
	if got := n.keyID(t); got != second {
		t.Errorf("restarted a year back: the key_id is %s, want still %s", got, second)
	}
	n.back(t)
	result(80, "Wall clock jumps by an hour or a year, to and fro", "nothing; a pending key takes over when the clock says so and never gives way again, seeds' ages follow the monotonic clock", throughout)
}
