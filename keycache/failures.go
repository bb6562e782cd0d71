package keycache

import (
	"container/list"
	"errors"
	"sync"
	"time"

	"kekd/internal/kek"
)

const (
	// failureMemory is how long a refusal is remembered: long enough that a
	// retry loop does not reach the HSM, short enough that nobody has to wait
	// after repairing something.
	failureMemory = 10 * time.Second
	// maxFailures bounds the memory, in entries; the oldest go first.
	maxFailures = 1024
)

// failures remembers for a moment what the HSM has refused for good, so that
// asking again does not reach it. It is safe for concurrent use.
type failures struct {
	mu      sync.Mutex
	entries map[digest]*list.Element
	order   *list.List // of *failure, oldest first; all live equally long, so by expiry too
}

type failure struct {
	key   digest
	err   error
	until time.Time
}

func newFailures() *failures {
	return &failures{entries: make(map[digest]*list.Element), order: list.New()}
}

// lasting reports whether asking the HSM again would get the same answer.
func lasting(err error) bool {
	return errors.Is(err, kek.ErrCorrupt) || errors.Is(err, kek.ErrUnknownKey) ||
		errors.Is(err, kek.ErrRevoked) || errors.Is(err, kek.ErrRefused)
}

// remember keeps err if it is lasting.
func (f *failures) remember(key digest, err error, now time.Time) {
	if lasting(err) {
		f.keep(key, err, now)
	}
}

// keep keeps err.
func (f *failures) keep(key digest, err error, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if e, ok := f.entries[key]; ok {
		f.remove(e)
	}
	if f.order.Len() >= maxFailures {
		f.remove(f.order.Front())
	}
	f.entries[key] = f.order.PushBack(&failure{key: key, err: err, until: now.Add(failureMemory)})
}

// recall returns the error that is remembered, or nil.
func (f *failures) recall(key digest, now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expire(now)
	e, ok := f.entries[key]
	if !ok {
		return nil
	}
	return failureOf(e).err
}

func (f *failures) len(now time.Time) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expire(now)
	return f.order.Len()
}

func (f *failures) expire(now time.Time) {
	for e := f.order.Front(); e != nil && !now.Before(failureOf(e).until); e = f.order.Front() {
		f.remove(e)
	}
}

func (f *failures) remove(e *list.Element) {
	f.order.Remove(e)
	delete(f.entries, failureOf(e).key)
}

func failureOf(e *list.Element) *failure { return e.Value.(*failure) }
