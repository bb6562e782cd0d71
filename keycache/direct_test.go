package keycache

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"kekd/internal/kek"
)

// Direct mode is one operation for each request, and keeps nothing.
func TestDirectModeKeepsNothing(t *testing.T) {
	hsm := &fakeHSM{}
	s := readySealer(t, directConfig(), hsm)
	asked := hsm.ops()
	for n := range 3 {
		sealed := seal(t, s, "value")
		opens(t, s, sealed, "value")
		opens(t, s, sealed, "value")
		if got := hsm.ops() - asked; got != 3*(n+1) {
			t.Errorf("%d operations for %d requests", got, 3*(n+1))
		}
	}
	seeded := strangers(t, 1, keyA)[0]
	asked = hsm.ops()
	opens(t, s, seeded, "value 0")
	opens(t, s, seeded, "value 0")
	if got := hsm.ops() - asked; got != 2 {
		t.Errorf("%d operations for 2 seeded values, want 2", got)
	}
	if s.arena != nil {
		t.Error("memory for seeds was allocated")
	}
	if got := s.Stats(); got.Seeds != 0 || got.Capacity != 0 {
		t.Errorf("Stats() = %+v, want no seeds", got)
	}
}

func TestSeededModeOpensDirectValues(t *testing.T) {
	sealed := seal(t, readySealer(t, directConfig(), &fakeHSM{}), "value")
	hsm := &fakeHSM{}
	s := newSealer(t, seededConfig(), hsm)
	s.SetRing(ringOf(keyA))
	opens(t, s, sealed, "value")
	if hsm.ops() != 1 {
		t.Errorf("%d operations, want 1", hsm.ops())
	}
}

// A caller who leaves may overwrite his plaintext at once, and what the HSM
// answers later is wiped.
func TestDirectCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hsm := &fakeHSM{}
		s := readySealer(t, directConfig(), hsm)
		sealed := seal(t, s, "value")
		for _, op := range []string{"wrap", "unwrap"} {
			release := hsm.hold(op)
			ctx, leave := context.WithCancel(t.Context())
			answer := make(chan error)
			go func() {
				plaintext := []byte("plaintext")
				var err error
				if op == "wrap" {
					_, err = s.Seal(ctx, plaintext)
				} else {
					_, err = s.Open(ctx, sealed)
				}
				clear(plaintext)
				answer <- err
			}()
			synctest.Wait()
			leave()
			if err := <-answer; !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v, want Canceled", op, err)
			}
			release()
			synctest.Wait()
			hsm.failWith(nil)
		}
		if got := hsm.notWiped(); got != 0 {
			t.Errorf("%d secrets were not wiped", got)
		}
	})
}

func TestDirectUsesAreReservedInBlocks(t *testing.T) {
	counter := &memoryCounter{}
	u := &useCounter{counter: counter}
	for n := range uint64(2*usesBlock + 1) {
		if got := u.used(); got != n {
			t.Fatalf("used() = %d, want %d", got, n)
		}
		if err := u.take(keyA.ID, kek.GCMCallerIV); err != nil {
			t.Fatal(err)
		}
	}
	if counter.adds != 3 || counter.totals[keyA.ID] != 3*usesBlock {
		t.Errorf("%d reservations, total %d; want 3 and %d", counter.adds, counter.totals[keyA.ID], 3*usesBlock)
	}
	// A crash loses the rest of the block: it counts too much, never too little.
	restarted := &useCounter{counter: counter}
	if err := restarted.take(keyA.ID, kek.GCMCallerIV); err != nil {
		t.Fatal(err)
	}
	if got := restarted.used(); got != 3*usesBlock+1 {
		t.Errorf("after a restart used() = %d, want %d", got, 3*usesBlock+1)
	}
	// Another key has a count of its own.
	if err := restarted.take(keyB.ID, kek.GCMCallerIV); err != nil {
		t.Fatal(err)
	}
	if got := restarted.used(); got != 1 {
		t.Errorf("another key: used() = %d, want 1", got)
	}
}

func TestDirectUsesEnd(t *testing.T) {
	counter := &memoryCounter{totals: map[kek.ID]uint64{keyA.ID: MaxDirectUses - usesBlock}}
	cfg := directConfig()
	cfg.DirectUses = counter
	hsm := &fakeHSM{}
	s := readySealer(t, cfg, hsm) // takes one use of the last block
	sealed := seal(t, s, "before the end")
	for range usesBlock - 2 {
		if err := s.uses.take(keyA.ID, kek.GCMCallerIV); err != nil {
			t.Fatal(err)
		}
	}
	asked := hsm.ops()
	for range 3 {
		if _, err := s.Seal(t.Context(), []byte("p")); !errors.Is(err, kek.ErrRefused) {
			t.Errorf("Seal: %v, want ErrRefused", err)
		}
	}
	if hsm.ops() != asked {
		t.Error("the HSM was asked")
	}
	if got := s.Stats().DirectUses; got != MaxDirectUses {
		t.Errorf("Stats().DirectUses = %d, want %d", got, uint64(MaxDirectUses))
	}
	if counter.adds > 2 {
		t.Errorf("%d reservations, want no more", counter.adds)
	}
	opens(t, s, sealed, "before the end")
	use(t, s, keyB) // a fresh key goes on
	seal(t, s, "p")
}

// Refused from the first on, across restarts.
func TestUsedUpKeyIsRefusedAtTheStart(t *testing.T) {
	cfg := directConfig()
	cfg.DirectUses = &memoryCounter{totals: map[kek.ID]uint64{keyA.ID: MaxDirectUses}}
	s := newSealer(t, cfg, &fakeHSM{})
	s.SetRing(ringOf(keyA))
	if err := s.Use(t.Context(), keyA, kek.GCMCallerIV); !errors.Is(err, kek.ErrRefused) {
		t.Errorf("Use: %v, want ErrRefused", err)
	}
	if err := s.Use(t.Context(), keyA, kek.KWP); err != nil {
		t.Errorf("Use with a mechanism that has no nonce: %v", err)
	}
}

func TestUsesThatCannotBeCountedAreNotMade(t *testing.T) {
	full := errors.New("disk full")
	counter := &memoryCounter{}
	cfg := directConfig()
	cfg.DirectUses = counter
	hsm := &fakeHSM{}
	s := readySealer(t, cfg, hsm)
	counter.mu.Lock()
	counter.err = full
	counter.mu.Unlock()
	for range usesBlock - 1 {
		if err := s.uses.take(keyA.ID, kek.GCMCallerIV); err != nil {
			t.Fatal(err)
		}
	}
	asked := hsm.ops()
	if _, err := s.Seal(t.Context(), []byte("p")); !errors.Is(err, kek.ErrUnavailable) || !errors.Is(err, full) {
		t.Errorf("Seal: %v, want ErrUnavailable because the disk is full", err)
	}
	if hsm.ops() != asked {
		t.Error("the HSM was asked")
	}
}
