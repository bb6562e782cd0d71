package plugin

import (
	"sync"
	"time"
)

// A retrying LIST of kube-apiserver sends a hundred failing Decrypts a second.
// The first lines of each kind tell everything; metrics do the counting.
const (
	throttleWindow = 10 * time.Second
	throttleLines  = 10 // lines of one kind in a window
)

// throttleKind names lines that say the same. Its values come from closed sets,
// so the number of kinds is bounded.
type throttleKind struct{ method, class string }

// throttle decides which repeated log lines are written. It is safe for
// concurrent use.
type throttle struct {
	clock func() time.Time

	mu    sync.Mutex
	kinds map[throttleKind]*throttleState // guarded by mu, and so is what it points to
}

type throttleState struct {
	since   time.Time // start of the window
	lines   int       // written in it
	dropped uint64    // left out since the last line written
}

func newThrottle(clock func() time.Time) *throttle {
	return &throttle{clock: clock, kinds: make(map[throttleKind]*throttleState)}
}

// allow reports whether a line of this kind is written now and, if so, how many
// were left out before it.
func (t *throttle) allow(kind throttleKind) (ok bool, dropped uint64) {
	now := t.clock()
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.kinds[kind]
	if s == nil {
		s = &throttleState{since: now}
		t.kinds[kind] = s
	}
	if now.Sub(s.since) >= throttleWindow {
		s.since, s.lines = now, 0
	}
	if s.lines == throttleLines {
		s.dropped++
		return false, 0
	}
	s.lines++
	dropped, s.dropped = s.dropped, 0
	return true, dropped
}
