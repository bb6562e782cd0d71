package secret

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// SlotSize is the size of every secret in an Arena, in bytes.
const SlotSize = 32

var (
	// ErrArenaFull: every slot is taken; Release one first.
	ErrArenaFull = errors.New("the secret arena is full")
	// ErrArenaClosed: Close was called.
	ErrArenaClosed = errors.New("the secret arena is closed")
)

// Arena holds a fixed number of secrets of SlotSize bytes outside the Go heap:
// in one anonymous mapping that the garbage collector neither moves nor copies,
// that core dumps leave out and that, if asked for, is never swapped. All of it
// is allocated and locked when the arena is made, so that a limit that is too
// low shows at start-up and not at the first busy moment.
//
// An Arena is safe for concurrent use.
type Arena struct {
	mu sync.Mutex // guards what follows; held before no other lock
	// mem is nil once closed. Who holds a live Slot may touch the slot's part
	// of it under the slot's own lock.
	mem  []byte
	free []int   // numbers of free slots, the last one is taken next
	live []*Slot // by number; nil where free
}

// NewArena allocates memory for the given number of secrets and, when lock is
// set, locks it into RAM. A refused lock is an error that names the limit and
// what to do.
func NewArena(slots int, lock bool) (*Arena, error) {
	if slots < 1 {
		return nil, fmt.Errorf("allocate secret memory: want at least 1 slot, got %d", slots)
	}
	page := os.Getpagesize()
	size := (slots*SlotSize + page - 1) / page * page
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("allocate %d bytes of secret memory: %w", size, err)
	}
	if err := protect(mem, lock); err != nil {
		return nil, errors.Join(err, unix.Munmap(mem))
	}
	a := &Arena{mem: mem, free: make([]int, slots), live: make([]*Slot, slots)}
	for i := range a.free {
		a.free[i] = slots - 1 - i
	}
	return a, nil
}

// protect keeps mem out of core dumps and, when lock is set, out of swap.
func protect(mem []byte, lock bool) error {
	if err := unix.Madvise(mem, unix.MADV_DONTDUMP); err != nil {
		return fmt.Errorf("keep secret memory out of core dumps: %w", err)
	}
	if !lock {
		return nil
	}
	if err := unix.Mlock(mem); err != nil {
		return fmt.Errorf("lock %d bytes of secret memory: %w; the limit RLIMIT_MEMLOCK is %s: "+
			"raise it (LimitMEMLOCK= in the systemd unit, or the capability IPC_LOCK), "+
			"or set seeds.lockMemory: false and turn swap off", len(mem), err, memlockLimit())
	}
	return nil
}

// memlockLimit spells the soft limit for an error text.
func memlockLimit() string {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
		return "unknown"
	}
	if l.Cur == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return strconv.FormatUint(l.Cur, 10) + " bytes"
}

// Store copies content, which must be SlotSize bytes, into a free slot. The
// caller keeps content and should wipe it; the slot is the caller's until it is
// released.
func (a *Arena) Store(content Bytes) (*Slot, error) {
	if len(content) != SlotSize {
		return nil, fmt.Errorf("store a secret: want %d bytes, got %d", SlotSize, len(content))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mem == nil {
		return nil, ErrArenaClosed
	}
	if len(a.free) == 0 {
		return nil, ErrArenaFull
	}
	n := a.free[len(a.free)-1]
	a.free = a.free[:len(a.free)-1]
	s := &Slot{arena: a, number: n, mem: Bytes(a.mem[n*SlotSize : (n+1)*SlotSize : (n+1)*SlotSize])}
	copy(s.mem, content)
	a.live[n] = s
	return s, nil
}

// InUse returns how many slots are taken.
func (a *Arena) InUse() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.live) - len(a.free)
}

// Close wipes every secret and gives the memory back. It waits for Views that
// are running. Slots that are still out stay valid to call and show nothing.
func (a *Arena) Close() error {
	a.mu.Lock()
	mem, live := a.mem, append([]*Slot(nil), a.live...)
	a.mem = nil
	a.mu.Unlock()
	if mem == nil {
		return nil
	}
	for _, s := range live {
		if s != nil {
			s.Release()
		}
	}
	// A Release that began before and has left the live list has wiped its part
	// already: it leaves the list last.
	if err := unix.Munmap(mem); err != nil {
		return fmt.Errorf("release secret memory: %w", err)
	}
	return nil
}

// Slot is one secret in an Arena. Its bytes are reachable only inside View, and
// a released Slot never comes alive again: the memory's next user gets another
// Slot. So whoever keeps one for too long sees nothing, rather than somebody
// else's secret.
//
// A Slot is safe for concurrent use.
type Slot struct {
	arena  *Arena
	number int

	mu  sync.RWMutex // held before arena.mu; guards mem, and the bytes behind it
	mem Bytes        // nil once released
}

// View calls f with the secret and returns true, or returns false if the slot
// was released. f must not keep or change the bytes, must not call Release on
// the same slot, and should be short: Release waits for it.
func (s *Slot) View(f func(Bytes)) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.mem == nil {
		return false
	}
	f(s.mem)
	return true
}

// Release waits for running Views, wipes the secret and gives the slot back.
// Calling it again does nothing.
func (s *Slot) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mem == nil {
		return
	}
	s.mem.Wipe()
	s.mem = nil
	s.arena.mu.Lock()
	defer s.arena.mu.Unlock()
	s.arena.live[s.number] = nil
	s.arena.free = append(s.arena.free, s.number)
}
