package keycache

import (
	"maps"
	"sync"
	"time"

	"kekd/internal/kek"
)

// lateSeals remembers, by key, the end of the last Seal that outlived what it had
// begun with: another key, or another seed, was published meanwhile, or nothing. It
// is safe for concurrent use. A Seal of what is still published does not touch it.
type lateSeals struct {
	mu   sync.Mutex
	last map[kek.ID]time.Time
}

func (l *lateSeals) note(id kek.ID, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		l.last = make(map[kek.ID]time.Time)
	}
	l.last[id] = now
}

// Late returns when keys encrypted last that had been replaced by then, as far as
// that happened. A key that is published again may be among them.
func (s *Sealer) Late() map[kek.ID]time.Time {
	s.late.mu.Lock()
	defer s.late.mu.Unlock()
	return maps.Clone(s.late.last)
}
