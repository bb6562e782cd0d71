package keycache

import (
	"container/list"
	"sync"

	"kekd/internal/kek"
	"kekd/internal/secret"
)

// seeds is the bounded cache of unwrapped seeds, least recently used out first.
// A seed is wiped when it leaves. The methods are safe for concurrent use, and
// none waits for the HSM.
//
// A slot that get returned may be released at any time by somebody else. Its
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

type seedEntry struct {
	key  digest
	id   kek.ID
	slot *secret.Slot
}

func newSeeds(arena *secret.Arena, capacity int, evicted func(reason string)) *seeds {
	return &seeds{
		arena: arena, capacity: capacity, evicted: evicted,
		entries: make(map[digest]*list.Element), order: list.New(),
	}
}

// get returns the slot of a seed, or nil.
func (c *seeds) get(key digest) *secret.Slot {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok {
		return nil
	}
	c.order.MoveToFront(e)
	return entryOf(e).slot
}

// add copies a seed into the cache. It asks allowed under its lock: since
// drop takes the same lock after the ring has changed, the seed of a key that
// has just been revoked either does not get in or is thrown out.
func (c *seeds) add(key digest, id kek.ID, seed secret.Bytes, allowed func(kek.ID) error) (*secret.Slot, error) {
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
	c.insert(key, id, slot)
	return slot, nil
}

// adopt takes over a slot that is in the arena already.
func (c *seeds) adopt(key digest, id kek.ID, slot *secret.Slot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.makeRoom()
	c.insert(key, id, slot)
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

func (c *seeds) insert(key digest, id kek.ID, slot *secret.Slot) {
	if e, ok := c.entries[key]; ok {
		c.order.Remove(e)
		entryOf(e).slot.Release()
	}
	c.entries[key] = c.order.PushFront(&seedEntry{key: key, id: id, slot: slot})
}

func (c *seeds) remove(e *list.Element, reason string) {
	entry := entryOf(e)
	c.order.Remove(e)
	delete(c.entries, entry.key)
	entry.slot.Release()
	c.evicted(reason)
}

func entryOf(e *list.Element) *seedEntry { return e.Value.(*seedEntry) }
