package keycache

import (
	"container/list"
	"sync"
	"sync/atomic"
	"time"

	"kekd/internal/kek"
	"kekd/internal/secret"
)

// seeds is the bounded cache of unwrapped seeds, least recently used out first.
// A seed is wiped when it leaves. The methods are safe for concurrent use, and
// none waits for the HSM.
//
// An entry that get returned may be released at any time by somebody else. Its
// View then shows nothing, and the caller starts over; it can never show wiped
// or foreign bytes, and Release waits for the Views that run.
type seeds struct {
	arena    *secret.Arena
	capacity int
	evicted  func(reason string)

	mu      sync.Mutex // held before the locks of arena and slots
	entries map[digest]*list.Element
	order   *list.List // of *seedEntry, most recently used first
}

// seedEntry is a seed in the cache.
type seedEntry struct {
	*secret.Slot
	key digest
	id  kek.ID
	// since is when it came from the HSM, and opened whether anything was opened by
	// it, which proves it: see doubt.
	since  time.Time
	opened atomic.Bool
}

// vouch notes that the seed has opened something.
func (e *seedEntry) vouch() {
	if !e.opened.Load() { // a store at each request would pass the cache line around
		e.opened.Store(true)
	}
}

func newSeeds(arena *secret.Arena, capacity int, evicted func(reason string)) *seeds {
	return &seeds{
		arena: arena, capacity: capacity, evicted: evicted,
		entries: make(map[digest]*list.Element), order: list.New(),
	}
}

// get returns the entry of a seed, or nil.
func (c *seeds) get(key digest) *seedEntry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok {
		return nil
	}
	c.order.MoveToFront(e)
	return entryOf(e)
}

// add copies a seed into the cache. It asks allowed under its lock: since
// drop takes the same lock after the ring has changed, the seed of a key that
// has just been revoked either does not get in or is thrown out.
func (c *seeds) add(key digest, id kek.ID, seed secret.Bytes, now time.Time, allowed func(kek.ID) error) (*seedEntry, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := allowed(id); err != nil {
		return nil, err
	}
	c.makeRoom()
	slot, err := c.arena.Store(seed)
	if err != nil {
		return nil, err
	}
	entry := &seedEntry{Slot: slot, key: key, id: id, since: now}
	c.insert(entry)
	return entry, nil
}

// adopt takes over the slot of a seed that was proven before it was used.
func (c *seeds) adopt(key digest, id kek.ID, slot *secret.Slot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.makeRoom()
	entry := &seedEntry{Slot: slot, key: key, id: id}
	entry.vouch()
	c.insert(entry)
}

// doubt throws a seed out that has never opened anything, if it came at least
// failureMemory ago, and reports whether it did. An HSM may once have unwrapped
// it to wrong bytes, and without this every object under that seed would stay
// closed until kekd starts again. The age is for the other case, which is the
// likely one: a damaged object is opened again and again, and shall not cost an
// HSM operation each time.
func (c *seeds) doubt(entry *seedEntry, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[entry.key]
	if !ok || entryOf(e) != entry || entry.opened.Load() || now.Sub(entry.since) < failureMemory {
		return false
	}
	c.remove(e, EvictedDoubted)
	return true
}

// drop wipes the seeds of all keys that gone names.
func (c *seeds) drop(reason string, gone func(kek.ID) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var next *list.Element
	for e := c.order.Front(); e != nil; e = next {
		next = e.Next()
		if gone(entryOf(e).id) {
			c.remove(e, reason)
		}
	}
}

func (c *seeds) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.order.Len()
}

func (c *seeds) makeRoom() {
	for c.order.Len() >= c.capacity {
		c.remove(c.order.Back(), EvictedForRoom)
	}
}

func (c *seeds) insert(entry *seedEntry) {
	if e, ok := c.entries[entry.key]; ok {
		c.order.Remove(e)
		entryOf(e).Release()
	}
	c.entries[entry.key] = c.order.PushFront(entry)
}

func (c *seeds) remove(e *list.Element, reason string) {
	entry := entryOf(e)
	c.order.Remove(e)
	delete(c.entries, entry.key)
	entry.Release()
	c.evicted(reason)
}

func entryOf(e *list.Element) *seedEntry { return e.Value.(*seedEntry) }
