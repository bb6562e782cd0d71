package keycache

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"kekd/internal/kek"
	"kekd/internal/secret"
)

func TestNewRefusesConfigurations(t *testing.T) {
	for _, tc := range []struct {
		name   string
		cfg    Config
		change func(*Config)
		want   []string
	}{
		{"all at once", Config{}, func(*Config) {}, []string{"Ring:", "Mode:"}},
		{"ring label", seededConfig(), func(c *Config) { c.Ring = "a\x00b" }, []string{"Ring:"}},
		{"seeds", Config{Ring: "r", Mode: Seeded}, func(*Config) {}, []string{"MaxAge:", "MaxUses:", "CacheSize:"}},
		{"no counter", directConfig(), func(c *Config) { c.DirectUses = nil }, []string{"DirectUses:"}},
		{"negative", seededConfig(), func(c *Config) { c.UnwrapTimeout, c.MaxWaiting = -1, -1 }, []string{"UnwrapTimeout:", "MaxWaiting:"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.change(&tc.cfg)
			_, err := New(tc.cfg, &fakeHSM{})
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not name %s", err, want)
				}
			}
		})
	}
}

func TestUsePublishes(t *testing.T) {
	clock := newClock()
	for name, cfg := range map[string]Config{"seeded": seededConfig(), "direct": directConfig()} {
		t.Run(name, func(t *testing.T) {
			cfg.Clock = clock.Now
			hsm := &fakeHSM{}
			s := newSealer(t, cfg, hsm)
			s.SetRing(ringOf(keyA, keyB))
			if got, ok := s.Current(); ok {
				t.Errorf("before Use: Current() = %+v", got)
			}
			if _, err := s.Seal(t.Context(), []byte("p")); !errors.Is(err, kek.ErrUnavailable) {
				t.Errorf("before Use: Seal: %v, want ErrUnavailable", err)
			}
			if err := s.Use(t.Context(), keyA, kek.KWP); err != nil {
				t.Fatal(err)
			}
			want := Current{KeyID: keyA.KeyID(), ID: keyA.ID, Mechanism: kek.KWP, Mode: cfg.Mode}
			if cfg.Mode == Seeded {
				want.SeedCreated = clock.Now()
			}
			got, ok := s.Current()
			if diff := cmp.Diff(want, got); !ok || diff != "" {
				t.Errorf("Current() (-want +got), %v:\n%s", ok, diff)
			}
			if hsm.wraps != 1 || hsm.unwraps != 1 {
				t.Errorf("%d wraps and %d unwraps, want 1 and 1", hsm.wraps, hsm.unwraps)
			}
			if n := hsm.notWiped(); n != 0 {
				t.Errorf("%d secrets were not wiped", n)
			}
		})
	}
}

func TestRotationKeepsTheOldSeedWarm(t *testing.T) {
	hsm := &fakeHSM{}
	s := readySealer(t, seededConfig(), hsm)
	before := seal(t, s, "before")
	use(t, s, keyA) // renewal
	renewed := seal(t, s, "renewed")
	use(t, s, keyB) // rotation
	after := seal(t, s, "after")
	if before.KeyID != keyA.KeyID() || renewed.KeyID != keyA.KeyID() || after.KeyID != keyB.KeyID() {
		t.Errorf("key_ids %q, %q, %q", before.KeyID, renewed.KeyID, after.KeyID)
	}
	if digestOf(t, before) == digestOf(t, renewed) {
		t.Error("the renewed seed is the old one")
	}
	hsm.failWith(kek.ErrUnavailable)
	opens(t, s, before, "before")
	opens(t, s, renewed, "renewed")
	opens(t, s, after, "after")
}

func TestUseRefuses(t *testing.T) {
	foreign := keyB
	foreign.Ring = "other"
	noID, longID := keyB, keyB
	noID.ID, longID.ID = "", kek.ID(strings.Repeat("i", kek.MaxIDSize+1))
	flip := func(b secret.Bytes) secret.Bytes { b[0] ^= 1; return b }
	for _, tc := range []struct {
		name string
		key  kek.Info
		mech kek.Mechanism
		ring *kek.Ring
		hsm  func(*fakeHSM)
		want error // nil: any
	}{
		{name: "key of another ring", key: foreign, mech: kek.KWP},
		{name: "no id", key: noID, mech: kek.KWP},
		{name: "long id", key: longID, mech: kek.KWP},
		{name: "unknown mechanism", key: keyB, mech: 77},
		{name: "key not on the ring", key: keyB, mech: kek.KWP, ring: ringOf(keyA), want: kek.ErrUnknownKey},
		{name: "key disabled", key: keyB, mech: kek.KWP, ring: ringOf(keyA, in(keyB, kek.Disabled)), want: kek.ErrRevoked},
		{name: "HSM away", key: keyB, mech: kek.KWP, want: kek.ErrUnavailable, hsm: func(f *fakeHSM) {
			f.before = func(context.Context, string) error { return kek.ErrUnavailable }
		}},
		{name: "wraps, does not unwrap", key: keyB, mech: kek.KWP, want: kek.ErrRefused, hsm: func(f *fakeHSM) {
			f.before = func(_ context.Context, op string) error {
				if op == "unwrap" {
					return kek.ErrRefused
				}
				return nil
			}
		}},
		{name: "refuses its own wrap", key: keyB, mech: kek.KWP, want: kek.ErrUnavailable, hsm: func(f *fakeHSM) {
			f.wrapped = func(b []byte) []byte { b[20] ^= 1; return b }
		}},
		{name: "unwraps something else", key: keyB, mech: kek.KWP, want: kek.ErrUnavailable, hsm: func(f *fakeHSM) { f.unwrapped = flip }},
		{name: "unwraps nothing", key: keyB, mech: kek.KWP, want: kek.ErrUnavailable, hsm: func(f *fakeHSM) {
			f.unwrapped = func(b secret.Bytes) secret.Bytes { b.Wipe(); return nil }
		}},
	} {
		for mode, cfg := range map[string]Config{"seeded": seededConfig(), "direct": directConfig()} {
			t.Run(tc.name+", "+mode, func(t *testing.T) {
				hsm := &fakeHSM{}
				s := readySealer(t, cfg, hsm)
				before, _ := s.Current()
				if tc.ring != nil {
					s.SetRing(tc.ring)
				}
				if tc.hsm != nil {
					hsm.set(tc.hsm)
				}
				err := s.Use(t.Context(), tc.key, tc.mech)
				if err == nil || (tc.want != nil && !errors.Is(err, tc.want)) {
					t.Errorf("Use() = %v, want %v", err, tc.want)
				}
				if errors.Is(err, kek.ErrCorrupt) {
					t.Errorf("Use() = %v blames the data", err)
				}
				after, ok := s.Current()
				if diff := cmp.Diff(before, after); !ok || diff != "" {
					t.Errorf("what was published changed (-before +after):\n%s", diff)
				}
				hsm.set(func(f *fakeHSM) { f.before, f.wrapped, f.unwrapped = nil, nil, nil })
				opens(t, s, seal(t, s, "still"), "still")
				if n := hsm.notWiped(); cfg.Mode == Seeded && n != 0 {
					t.Errorf("%d secrets were not wiped", n)
				}
			})
		}
	}
}

// Not so short and not so long that Open would refuse it.
func TestUseRefusesWrapsOfStrangeSize(t *testing.T) {
	for _, size := range []int{minWrapped - 1, maxWrapped + 1} {
		hsm := &resizingHSM{size: size}
		s := newSealer(t, seededConfig(), hsm)
		s.SetRing(ringOf(keyA))
		if err := s.Use(t.Context(), keyA, kek.KWP); !errors.Is(err, kek.ErrRefused) {
			t.Errorf("wrap of %d bytes: %v, want ErrRefused", size, err)
		}
	}
}

// resizingHSM wraps in clear, to any size.
type resizingHSM struct{ size int }

func (h *resizingHSM) Wrap(_ context.Context, _ kek.ID, _ kek.Mechanism, p secret.Bytes, _ []byte) ([]byte, error) {
	return append(make([]byte, 0, h.size), p...)[:h.size], nil
}

func (h *resizingHSM) Unwrap(_ context.Context, _ kek.ID, _ kek.Mechanism, blob, _ []byte) (secret.Bytes, error) {
	return append(secret.Bytes(nil), blob[:seedSize]...), nil
}

func TestUseNeedsTheRing(t *testing.T) {
	hsm := &fakeHSM{}
	s := newSealer(t, seededConfig(), hsm)
	if err := s.Use(t.Context(), keyA, kek.KWP); !errors.Is(err, kek.ErrUnavailable) {
		t.Errorf("Use before SetRing: %v, want ErrUnavailable", err)
	}
	if hsm.ops() != 0 {
		t.Error("the HSM was asked")
	}
}

func TestSeedEndsByAgeAndUses(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spend func(t *testing.T, s *Sealer, clock *fakeClock, percent int)
	}{
		{"age", func(_ *testing.T, _ *Sealer, clock *fakeClock, percent int) {
			clock.add(time.Duration(percent) * time.Minute)
		}},
		{"uses", func(t *testing.T, s *Sealer, _ *fakeClock, percent int) {
			for range percent {
				seal(t, s, "p")
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			clock := newClock()
			cfg := seededConfig()
			cfg.Clock, cfg.MaxAge, cfg.MaxUses = clock.Now, 100*time.Minute, 100
			s := readySealer(t, cfg, &fakeHSM{})
			last := seal(t, s, "last")
			due := func(want bool) {
				t.Helper()
				if got := s.RenewalDue(); got != want {
					t.Errorf("RenewalDue() = %v, want %v", got, want)
				}
			}
			tc.spend(t, s, clock, 78)
			due(false)
			tc.spend(t, s, clock, 2)
			due(true)
			if c, _ := s.Current(); c.Expired {
				t.Error("expired at 80%")
			}
			tc.spend(t, s, clock, 19)
			if tc.name == "age" {
				seal(t, s, "at 99%")
				tc.spend(t, s, clock, 1)
			}
			for range 3 {
				if _, err := s.Seal(t.Context(), []byte("p")); !errors.Is(err, kek.ErrUnavailable) {
					t.Errorf("Seal after the end: %v, want ErrUnavailable", err)
				}
			}
			c, ok := s.Current()
			if !ok || !c.Expired || c.SeedUses > 100 {
				t.Errorf("after the end: Current() = %+v, %v", c, ok)
			}
			due(true)
			opens(t, s, last, "last") // opening has no end
			use(t, s, keyA)
			due(false)
			seal(t, s, "fresh")
		})
	}
}

func TestUnpublish(t *testing.T) {
	for name, cfg := range map[string]Config{"seeded": seededConfig(), "direct": directConfig()} {
		t.Run(name, func(t *testing.T) {
			s := newSealer(t, cfg, &fakeHSM{})
			s.SetRing(ringOf(keyA, keyB))
			s.Unpublish()
			if _, err := s.Seal(t.Context(), []byte("p")); !errors.Is(err, kek.ErrUnavailable) {
				t.Errorf("before the first Use: %v, want ErrUnavailable", err)
			}
			use(t, s, keyA)
			used := s.current.Load().slot
			s.Unpublish()
			s.Unpublish()
			if _, err := s.Seal(t.Context(), []byte("p")); !errors.Is(err, kek.ErrRevoked) {
				t.Errorf("Seal: %v, want ErrRevoked", err)
			}
			if c, ok := s.Current(); ok || s.RenewalDue() {
				t.Errorf("Current() = %+v, RenewalDue() = %v", c, s.RenewalDue())
			}
			if cfg.Mode == Seeded && shows(used) {
				t.Error("the seed is still in memory")
			}
			use(t, s, keyB)
			opens(t, s, seal(t, s, "p"), "p")
		})
	}
}

// A key that the ring switches off is not sealed with for a moment longer.
func TestRingTakesThePublishedKeyBack(t *testing.T) {
	for name, ring := range map[string]*kek.Ring{
		"disabled":  ringOf(keyB, in(keyA, kek.Disabled)),
		"scheduled": ringOf(keyB, in(keyA, kek.Scheduled)),
		"gone":      ringOf(keyB),
	} {
		t.Run(name, func(t *testing.T) {
			s := readySealer(t, seededConfig(), &fakeHSM{})
			used := s.current.Load().slot
			s.SetRing(ringOf(keyB, in(keyA, kek.Retired))) // still decrypts: stays
			seal(t, s, "p")
			s.SetRing(ring)
			if _, err := s.Seal(t.Context(), []byte("p")); !errors.Is(err, kek.ErrRevoked) {
				t.Errorf("Seal: %v, want ErrRevoked", err)
			}
			if shows(used) {
				t.Error("the seed is still in memory")
			}
		})
	}
}

// What happened while the HSM was busy proving a seed decides at the end.
func TestUseOvertaken(t *testing.T) {
	for _, tc := range []struct {
		name  string
		event func(*Sealer)
		want  error
		seals error // what Seal says then
	}{
		{"by nothing", func(*Sealer) {}, nil, nil},
		{"by Unpublish", (*Sealer).Unpublish, kek.ErrRevoked, kek.ErrRevoked},
		{"by its key disabled", func(s *Sealer) { s.SetRing(ringOf(in(keyB, kek.Disabled), keyA)) }, kek.ErrRevoked, nil},
		{"by its key gone", func(s *Sealer) { s.SetRing(ringOf(keyA)) }, kek.ErrUnknownKey, nil},
		{"by the other key disabled", func(s *Sealer) { s.SetRing(ringOf(keyB, in(keyA, kek.Disabled))) }, nil, nil},
		{"by Close", func(s *Sealer) { _ = s.Close() }, kek.ErrUnavailable, kek.ErrUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hsm := &fakeHSM{}
				s := readySealer(t, seededConfig(), hsm)
				release := hsm.hold("wrap")
				answer := make(chan error)
				go func() { answer <- s.Use(context.Background(), keyB, kek.GCMCallerIV) }()
				synctest.Wait()
				opens(t, s, seal(t, s, "meanwhile"), "meanwhile") // nobody waits for the HSM
				tc.event(s)
				release()
				if err := <-answer; !errors.Is(err, tc.want) {
					t.Errorf("Use() = %v, want %v", err, tc.want)
				}
				if _, err := s.Seal(t.Context(), []byte("p")); !errors.Is(err, tc.seals) {
					t.Errorf("Seal() = %v, want %v", err, tc.seals)
				}
				if got := hsm.notWiped(); got != 0 {
					t.Errorf("%d secrets were not wiped", got)
				}
				kept := s.Stats().Seeds
				if _, ok := s.Current(); ok {
					kept++
				}
				if got := s.arena.InUse(); got != kept {
					t.Errorf("%d slots in use, want %d: a seed that was not published is kept", got, kept)
				}
			})
		})
	}
}

func TestSecondUseWaitsOrGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hsm := &fakeHSM{}
		s := readySealer(t, seededConfig(), hsm)
		release := hsm.hold("wrap")
		first, second := make(chan error), make(chan error)
		go func() { first <- s.Use(context.Background(), keyA, kek.GCMCallerIV) }()
		synctest.Wait()
		ctx, giveUp := context.WithCancel(context.Background())
		go func() { second <- s.Use(ctx, keyB, kek.GCMCallerIV) }()
		synctest.Wait()
		giveUp()
		if err := <-second; !errors.Is(err, context.Canceled) {
			t.Errorf("the second: %v, want Canceled", err)
		}
		release()
		if err := <-first; err != nil {
			t.Errorf("the first: %v", err)
		}
		use(t, s, keyB)
	})
}

func shows(slot *secret.Slot) bool { return slot != nil && slot.View(func(secret.Bytes) {}) }
