package secret

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func filled(b byte) Bytes { return bytes.Repeat([]byte{b}, SlotSize) }

func newArena(t *testing.T, slots int) *Arena {
	t.Helper()
	a, err := NewArena(slots, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func store(t *testing.T, a *Arena, content Bytes) *Slot {
	t.Helper()
	s, err := a.Store(content)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestArenaHoldsAsManySecretsAsAsked(t *testing.T) {
	const slots = 200 // more than one page
	a := newArena(t, slots)
	held := make([]*Slot, slots)
	for i := range held {
		held[i] = store(t, a, filled(byte(i)))
	}
	if _, err := a.Store(filled(1)); !errors.Is(err, ErrArenaFull) {
		t.Errorf("one secret too many: %v, want ErrArenaFull", err)
	}
	for i, s := range held {
		if !s.View(func(b Bytes) {
			if !bytes.Equal(b, filled(byte(i))) {
				t.Errorf("slot %d was changed by its neighbours", i)
			}
		}) {
			t.Errorf("slot %d shows nothing", i)
		}
	}
	if got := a.InUse(); got != slots {
		t.Errorf("InUse() = %d, want %d", got, slots)
	}
}

func TestReleasedSlotIsWipedAndStaysDead(t *testing.T) {
	a := newArena(t, 1)
	old := store(t, a, filled(7))
	var behind Bytes // what a careless caller would keep
	old.View(func(b Bytes) { behind = b })
	old.Release()
	if !bytes.Equal(behind, filled(0)) {
		t.Error("the secret is still in memory")
	}
	next := store(t, a, filled(9)) // same memory
	old.Release()                  // must not hit the new owner
	if old.View(func(Bytes) { t.Error("a released slot showed its bytes") }) {
		t.Error("View of a released slot returned true")
	}
	if !next.View(func(b Bytes) {
		if !bytes.Equal(b, filled(9)) {
			t.Error("the new owner's secret was harmed")
		}
	}) {
		t.Error("the new owner's slot shows nothing")
	}
}

func TestSlotCannotGrowIntoItsNeighbour(t *testing.T) {
	a := newArena(t, 2)
	store(t, a, filled(1)).View(func(b Bytes) {
		if cap(b) != SlotSize {
			t.Errorf("cap = %d, want %d", cap(b), SlotSize)
		}
	})
}

func TestStoreCopies(t *testing.T) {
	a := newArena(t, 1)
	content := filled(3)
	s := store(t, a, content)
	content.Wipe()
	s.View(func(b Bytes) {
		if !bytes.Equal(b, filled(3)) {
			t.Error("the slot shares memory with what was stored")
		}
	})
}

func TestStoreRefusesOtherSizes(t *testing.T) {
	a := newArena(t, 1)
	for _, size := range []int{0, SlotSize - 1, SlotSize + 1} {
		if _, err := a.Store(make(Bytes, size)); err == nil {
			t.Errorf("%d bytes were stored", size)
		}
	}
	if got := a.InUse(); got != 0 {
		t.Errorf("InUse() = %d after refusals, want 0", got)
	}
}

func TestClosedArena(t *testing.T) {
	a, err := NewArena(2, false)
	if err != nil {
		t.Fatal(err)
	}
	s := store(t, a, filled(1))
	if err := errors.Join(a.Close(), a.Close()); err != nil {
		t.Fatal(err)
	}
	if s.View(func(Bytes) {}) {
		t.Error("a slot outlived its arena")
	}
	s.Release()
	if _, err := a.Store(filled(1)); !errors.Is(err, ErrArenaClosed) {
		t.Errorf("Store after Close: %v, want ErrArenaClosed", err)
	}
}

func TestNewArenaRefusesNoSlots(t *testing.T) {
	if _, err := NewArena(0, false); err == nil {
		t.Error("an arena without slots was made")
	}
}

// Readers must see the whole secret or nothing while others release it and
// reuse its memory.
func TestArenaConcurrently(t *testing.T) {
	const slots, rounds = 4, 500
	a, err := NewArena(slots, false)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range slots {
		wg.Go(func() {
			for r := range rounds {
				want := filled(byte(g*rounds + r))
				s, err := a.Store(want)
				if errors.Is(err, ErrArenaClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				var readers sync.WaitGroup
				for range 3 {
					readers.Go(func() {
						s.View(func(b Bytes) {
							if !bytes.Equal(b, want) {
								t.Error("a reader saw a torn or foreign secret")
							}
						})
					})
				}
				s.Release()
				readers.Wait()
				if g == 0 && r == rounds/2 {
					if err := a.Close(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestArenaMemoryIsKeptOutOfDumpsAndSwap(t *testing.T) {
	a, err := NewArena(1, true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	flags := mappingFlags(t, a.mem)
	for flag, meaning := range map[string]string{"dd": "left out of core dumps", "lo": "locked"} {
		if !strings.Contains(flags+" ", " "+flag+" ") {
			t.Errorf("the mapping is not %s: VmFlags:%s", meaning, flags)
		}
	}
}

func TestRefusedLockNamesLimitAndRemedy(t *testing.T) {
	// The capability belongs to the thread, which ends with this goroutine
	// because it is never unlocked; the limit belongs to the process.
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- errors.Join(dropLockCapability(), unix.Setrlimit(unix.RLIMIT_MEMLOCK, lowered(t)))
		_, err := NewArena(1024, true)
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	err := <-done
	if err == nil {
		t.Fatal("memory beyond RLIMIT_MEMLOCK was locked")
	}
	for _, want := range []string{"RLIMIT_MEMLOCK is 4096 bytes", "LimitMEMLOCK=", "seeds.lockMemory: false"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
}

// lowered is a soft limit of one page; the old one comes back after the test.
func lowered(t *testing.T) *unix.Rlimit {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &old); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &old); err != nil {
			t.Error(err)
		}
	})
	return &unix.Rlimit{Cur: 4096, Max: old.Max}
}

func dropLockCapability() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return err
	}
	sets[0].Effective &^= 1 << unix.CAP_IPC_LOCK
	return unix.Capset(&header, &sets[0])
}

// mappingFlags returns the kernel's flags of the mapping that holds mem.
func mappingFlags(t *testing.T, mem []byte) string {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for line := range strings.Lines(string(smaps)) {
		if low, high, ok := addresses(line); ok {
			inside = low <= addressOf(mem) && addressOf(mem) < high
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && inside {
			return strings.TrimRight(flags, "\n")
		}
	}
	t.Fatal("the mapping is not in /proc/self/smaps")
	return ""
}

func BenchmarkView(b *testing.B) {
	a, err := NewArena(1, false)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	s, err := a.Store(filled(1))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var sum byte
		for pb.Next() {
			s.View(func(secret Bytes) { sum += secret[0] })
		}
	})
}
