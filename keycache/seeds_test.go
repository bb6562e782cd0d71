package keycache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kekd/internal/kek"
	"kekd/internal/secret"
)

func TestWarmRequestsDoNotReachTheHSM(t *testing.T) {
	hsm, watch := &fakeHSM{}, &tally{}
	cfg := seededConfig()
	cfg.Observer = watch
	s := readySealer(t, cfg, hsm)
	foreign := strangers(t, 1, keyA)[0]
	opens(t, s, foreign, "value 0")
	asked := hsm.ops()
	hsm.failWith(kek.ErrUnavailable)
	for range 20 {
		opens(t, s, seal(t, s, "own"), "own")
		opens(t, s, foreign, "value 0")
	}
	if got := hsm.ops() - asked; got != 0 {
		t.Errorf("%d operations for 60 warm requests", got)
	}
	if hits, misses := watch.get("cache hit"), watch.get("cache miss"); hits != 40 || misses != 1 {
		t.Errorf("observed %d hits and %d misses, want 40 and 1", hits, misses)
	}
	if got := watch.get("opened " + keyA.KeyID()); got != 41 {
		t.Errorf("observed %d values opened, want 41", got)
	}
}

func TestLeastRecentlyUsedSeedIsWiped(t *testing.T) {
	hsm, watch := &fakeHSM{}, &tally{}
	cfg := seededConfig()
	cfg.CacheSize, cfg.Observer = 2, watch
	s := readySealer(t, cfg, hsm)
	values := strangers(t, 3, keyA)
	open := func(n int) { opens(t, s, values[n], fmt.Sprint("value ", n)) }
	open(0)
	open(1)
	first, second := s.seeds.get(digestOf(t, values[0])).Slot, s.seeds.get(digestOf(t, values[1])).Slot
	open(0) // now 1 is the older one
	open(2)
	if !shows(first) || shows(second) {
		t.Errorf("seed 0 kept: %v, seed 1 kept: %v; want the first alone", shows(first), shows(second))
	}
	if got := watch.get("evicted room"); got != 1 {
		t.Errorf("observed %d evictions, want 1", got)
	}
	if got := s.Stats(); got.Seeds != 2 || got.Capacity != 2 {
		t.Errorf("Stats() = %+v, want 2 of 2 seeds", got)
	}
	asked := hsm.ops()
	open(0)
	open(2)
	if got := hsm.ops() - asked; got != 0 {
		t.Errorf("%d operations for seeds that were kept", got)
	}
	open(1)
	if got := hsm.ops() - asked; got != 1 {
		t.Errorf("%d operations for the seed that had left, want 1", got)
	}
	opens(t, s, seal(t, s, "own"), "own") // the seed in use is not part of the cache
}

// The seed in use may have come into the cache by a flight already when it is
// adopted.
func TestAdoptedTwinIsReleased(t *testing.T) {
	s := readySealer(t, seededConfig(), &fakeHSM{})
	c := s.current.Load()
	twin, err := s.seeds.add(c.digest, c.key.ID, make([]byte, seedSize), time.Now(), s.permitted)
	if err != nil {
		t.Fatal(err)
	}
	own := seal(t, s, "own")
	use(t, s, keyB)
	if shows(twin.Slot) || !shows(c.slot) || s.Stats().Seeds != 1 {
		t.Errorf("twin kept: %v, adopted kept: %v, seeds: %d", shows(twin.Slot), shows(c.slot), s.Stats().Seeds)
	}
	opens(t, s, own, "own")
}

func TestRevokedSeedsAreWiped(t *testing.T) {
	for _, tc := range []struct {
		name string
		ring *kek.Ring
		want error
	}{
		{"disabled", ringOf(in(keyB, kek.Disabled), keyA), kek.ErrRevoked},
		{"gone", ringOf(keyA), kek.ErrUnknownKey},
	} {
		t.Run(tc.name, func(t *testing.T) {
			watch := &tally{}
			cfg := seededConfig()
			cfg.Observer = watch
			s := readySealer(t, cfg, &fakeHSM{})
			underA, underB := strangers(t, 1, keyA)[0], strangers(t, 1, keyB)[0]
			opens(t, s, underA, "value 0")
			opens(t, s, underB, "value 0")
			slotA, slotB := s.seeds.get(digestOf(t, underA)).Slot, s.seeds.get(digestOf(t, underB)).Slot
			s.SetRing(tc.ring)
			if shows(slotB) {
				t.Error("the seed of the revoked key is still in memory")
			}
			if !shows(slotA) {
				t.Error("the seed of another key was wiped")
			}
			refuses(t, s, underB, tc.want)
			opens(t, s, underA, "value 0")
			if got := watch.get("evicted revoked"); got != 1 {
				t.Errorf("observed %d evictions, want 1", got)
			}
		})
	}
}

// A key that is revoked while its seed is on the way must not leave the seed
// behind.
func TestKeyRevokedDuringFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hsm := &fakeHSM{}
		s := readySealer(t, seededConfig(), hsm)
		sealed := strangers(t, 1, keyB)[0]
		release := hsm.hold("unwrap")
		answer := make(chan error)
		go func() {
			_, err := s.Open(context.Background(), sealed)
			answer <- err
		}()
		synctest.Wait()
		s.SetRing(ringOf(in(keyB, kek.Disabled), keyA))
		release()
		if err := <-answer; !errors.Is(err, kek.ErrRevoked) {
			t.Errorf("Open() = %v, want ErrRevoked", err)
		}
		if got := s.Stats().Seeds; got != 0 {
			t.Errorf("%d seeds kept, want 0", got)
		}
		if got := hsm.notWiped(); got != 0 {
			t.Errorf("%d secrets were not wiped", got)
		}
	})
}

func TestOneFlightForAllCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hsm := &fakeHSM{}
		s := readySealer(t, seededConfig(), hsm)
		sealed := strangers(t, 1, keyA)[0]
		asked := hsm.ops()
		release := hsm.hold("unwrap")
		var callers sync.WaitGroup
		for range 64 {
			callers.Go(func() { opens(t, s, sealed, "value 0") })
		}
		synctest.Wait()
		release()
		callers.Wait()
		if got := hsm.ops() - asked; got != 1 {
			t.Errorf("%d operations for 64 callers, want 1", got)
		}
		if got := hsm.notWiped(); got != 0 {
			t.Errorf("%d secrets were not wiped", got)
		}
	})
}

// However small the cache is, many seeds at once are served or told to come
// back; nobody reads another's seed.
func TestTinyCacheUnderLoad(t *testing.T) {
	cfg := seededConfig()
	cfg.CacheSize = 1
	s := readySealer(t, cfg, &fakeHSM{})
	values := strangers(t, 8, keyA)
	var callers sync.WaitGroup
	for n := range 64 {
		callers.Go(func() {
			got, err := s.Open(context.Background(), values[n%8])
			if err != nil && !errors.Is(err, kek.ErrBusy) {
				t.Error(err)
			}
			if want := fmt.Sprint("value ", n%8); err == nil && string(got) != want {
				t.Errorf("opened to %q, want %q", got, want)
			}
		})
	}
	callers.Wait()
}

func TestImpatientCallerFailsAlone(t *testing.T) {
	for name, cfg := range map[string]Config{"seeded": seededConfig(), "direct": directConfig()} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hsm := &fakeHSM{}
				s := readySealer(t, cfg, hsm)
				sealed := strangers(t, 1, keyA)[0]
				release := hsm.hold("unwrap")
				ctx, leave := context.WithCancel(t.Context())
				impatient, patient := make(chan error), make(chan error)
				go func() {
					_, err := s.Open(ctx, sealed)
					impatient <- err
				}()
				synctest.Wait() // it is he who starts the flight
				go func() {
					_, err := s.Open(t.Context(), sealed)
					patient <- err
				}()
				synctest.Wait()
				leave()
				if err := <-impatient; !errors.Is(err, context.Canceled) || errors.Is(err, kek.ErrUnavailable) {
					t.Errorf("the impatient caller got %v, want Canceled", err)
				}
				release()
				if err := <-patient; err != nil {
					t.Errorf("the patient caller got %v", err)
				}
				synctest.Wait()
				if s.Stats().BreakerOpen {
					t.Error("a caller who left opened the breaker")
				}
				if got := hsm.notWiped(); got != 0 {
					t.Errorf("%d secrets were not wiped", got)
				}
			})
		})
	}
}

func TestFlightsAreBounded(t *testing.T) {
	for name, cfg := range map[string]Config{"seeded": seededConfig(), "direct": directConfig()} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hsm := &fakeHSM{}
				cfg.MaxWaiting = 2
				s := readySealer(t, cfg, hsm)
				values := strangers(t, 3, keyA)
				release := hsm.hold("unwrap")
				var callers sync.WaitGroup
				for n := range 2 {
					callers.Go(func() { opens(t, s, values[n], fmt.Sprint("value ", n)) })
				}
				synctest.Wait()
				if got := s.Stats().Waiting; got != 2 {
					t.Errorf("%d requests wait, want 2", got)
				}
				refuses(t, s, values[2], kek.ErrBusy)
				release()
				callers.Wait()
				opens(t, s, values[2], "value 2") // and it was not remembered
			})
		})
	}
}

// An HSM that never answers is our problem, not a deadline of the caller's.
func TestFlightHasItsOwnDeadline(t *testing.T) {
	for name, cfg := range map[string]Config{"seeded": seededConfig(), "direct": directConfig()} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hsm := &fakeHSM{}
				s := readySealer(t, cfg, hsm)
				sealed := strangers(t, 1, keyA)[0]
				hsm.hold("unwrap")
				began := time.Now()
				_, err := s.Open(t.Context(), sealed)
				if !errors.Is(err, kek.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Open() = %v, want ErrUnavailable alone", err)
				}
				if waited := time.Since(began); waited != defaultUnwrapTimeout {
					t.Errorf("waited %s, want %s", waited, defaultUnwrapTimeout)
				}
				if !s.Stats().BreakerOpen {
					t.Error("the breaker is closed after a timeout")
				}
			})
		})
	}
}

func TestCloseEndsFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hsm := &fakeHSM{}
		s := readySealer(t, seededConfig(), hsm)
		sealed := strangers(t, 2, keyA)
		own := seal(t, s, "own")
		opens(t, s, sealed[0], "value 0")
		kept, used := s.seeds.get(digestOf(t, sealed[0])).Slot, s.current.Load().slot
		hsm.hold("unwrap")
		answer := make(chan error)
		go func() {
			_, err := s.Open(context.Background(), sealed[1])
			answer <- err
		}()
		synctest.Wait()
		began := time.Now()
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("Close waited %s", waited)
		}
		if err := <-answer; !errors.Is(err, kek.ErrUnavailable) {
			t.Errorf("Open during Close: %v, want ErrUnavailable", err)
		}
		if shows(kept) || shows(used) {
			t.Error("a seed outlived Close")
		}
		for _, v := range []kek.Sealed{own, sealed[0]} {
			refuses(t, s, v, kek.ErrUnavailable)
		}
		if _, err := s.Seal(t.Context(), []byte("p")); !errors.Is(err, kek.ErrUnavailable) {
			t.Errorf("Seal after Close: %v, want ErrUnavailable", err)
		}
		if err := s.Use(t.Context(), keyA, kek.GCMCallerIV); !errors.Is(err, kek.ErrUnavailable) {
			t.Errorf("Use after Close: %v, want ErrUnavailable", err)
		}
		s.SetRing(ringOf(keyB))
		s.Unpublish()
		if got := hsm.notWiped(); got != 0 {
			t.Errorf("%d secrets were not wiped", got)
		}
	})
}

func digestOf(t testing.TB, sealed kek.Sealed) digest {
	t.Helper()
	e, err := parse(sealed.Ciphertext)
	if err != nil {
		t.Fatal(err)
	}
	return seedDigest(&e)
}

// An HSM that once unwraps a seed to wrong bytes, with CKR_OK, must not close
// everything under that seed until kekd starts again.
func TestSeedThatOpensNothingIsDoubted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hsm, watch := &fakeHSM{unwrapped: func(b secret.Bytes) secret.Bytes { b[0] ^= 1; return b }}, &tally{}
		cfg := seededConfig()
		cfg.Clock, cfg.Observer = time.Now, watch
		s := newSealer(t, cfg, hsm)
		s.SetRing(ringOf(keyA))
		foreign := strangers(t, 1, keyA)[0]
		fails := func() {
			t.Helper()
			if _, err := s.Open(t.Context(), foreign); !errors.Is(err, kek.ErrCorrupt) {
				t.Fatalf("opened by a wrong seed: %v, want ErrCorrupt", err)
			}
		}
		fails()
		hsm.set(func(f *fakeHSM) { f.unwrapped = nil })
		for range 100 { // as kube-apiserver tries
			fails()
		}
		if got := hsm.ops(); got != 1 {
			t.Errorf("%d operations for what is tried again at once, want 1", got)
		}
		time.Sleep(failureMemory)
		opens(t, s, foreign, "value 0")
		if got := watch.get("evicted doubted"); got != 1 {
			t.Errorf("observed %d doubted seeds, want 1", got)
		}
	})
}

// A damaged object does not throw out the seed of its sound neighbours.
func TestSeedThatHasOpenedIsNotDoubted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hsm := &fakeHSM{}
		cfg := seededConfig()
		cfg.Clock = time.Now
		s := newSealer(t, cfg, hsm)
		s.SetRing(ringOf(keyA))
		foreign := strangers(t, 1, keyA)[0]
		damaged := foreign
		damaged.Ciphertext = slices.Clone(foreign.Ciphertext)
		damaged.Ciphertext[len(damaged.Ciphertext)-1] ^= 1
		opens(t, s, foreign, "value 0")
		for range 3 {
			time.Sleep(failureMemory)
			if _, err := s.Open(t.Context(), damaged); !errors.Is(err, kek.ErrCorrupt) {
				t.Fatalf("opened what is damaged: %v", err)
			}
		}
		if got := hsm.ops(); got != 1 {
			t.Errorf("%d operations, want 1", got)
		}
	})
}
