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
)

// kube-apiserver retries a failing LIST with a hundred Decrypts a second.
func TestRefusalIsRemembered(t *testing.T) {
	modes := map[string]Config{"seeded": seededConfig(), "direct": directConfig()}
	for _, class := range []error{kek.ErrCorrupt, kek.ErrRefused, kek.ErrRevoked, kek.ErrUnknownKey} {
		for name, cfg := range modes {
			t.Run(fmt.Sprintf("%v, %s", class, name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hsm, watch := &fakeHSM{}, &tally{}
					cfg.Observer = watch
					s := readySealer(t, cfg, hsm)
					bad, good := seal(t, s, "bad"), seal(t, s, "good")
					if cfg.Mode == Seeded {
						bad = strangers(t, 1, keyA)[0]
					}
					asked := hsm.ops()
					hsm.failWith(class)
					for range 999 { // 9.99 s
						refuses(t, s, bad, class)
						time.Sleep(10 * time.Millisecond)
					}
					if got := hsm.ops() - asked; got != 1 {
						t.Errorf("the HSM was asked %d times in 10 s, want 1", got)
					}
					if s.Stats().BreakerOpen {
						t.Error("an answer opened the breaker")
					}
					if got := s.Stats().Remembered; got != 1 {
						t.Errorf("%d refusals remembered, want 1", got)
					}
					if got := watch.get("cache remembered"); cfg.Mode == Seeded && got != 998 {
						t.Errorf("observed %d times, want 998", got)
					}
					hsm.failWith(nil)
					opens(t, s, good, "good")
					time.Sleep(10 * time.Millisecond)
					if _, err := s.Open(t.Context(), bad); err != nil {
						t.Errorf("after 10 s: %v", err)
					}
				})
			})
		}
	}
}

// What kekctl verify damages is not a miss. What it opens is one, whatever it says.
func TestVerifyIsCountedApart(t *testing.T) {
	for name, c := range map[string]struct {
		class error // the HSM's
		want  []string
	}{
		"damaged":     {kek.ErrCorrupt, []string{"cache verify", "cache verify"}},
		"sound":       {nil, []string{"cache miss", "cache hit"}},
		"unavailable": {kek.ErrUnavailable, []string{"cache miss", "cache miss"}},
	} {
		t.Run(name, func(t *testing.T) {
			hsm, watch := &fakeHSM{}, &tally{}
			cfg := seededConfig()
			cfg.Observer = watch
			s := readySealer(t, cfg, hsm)
			cold := strangers(t, 1, keyA)[0]
			hsm.failWith(c.class)
			marked := &kek.Request{Context: t.Context(), Verify: true}
			want := map[string]int{}
			for i := range 2 {
				if _, err := s.Open(marked, cold); !errors.Is(err, c.class) {
					t.Errorf("Open: %v, want %v", err, c.class)
				}
				want[c.want[i]]++
			}
			for _, what := range []string{"cache hit", "cache miss", "cache remembered", "cache verify"} {
				if got := watch.get(what); got != want[what] {
					t.Errorf("%s: %d times, want %d", what, got, want[what])
				}
			}
		})
	}
}

func TestMemoryOfRefusalsIsBounded(t *testing.T) {
	f, now := newFailures(), time.Now()
	for n := range 3 * maxFailures {
		f.remember(digest{byte(n), byte(n >> 8)}, kek.ErrCorrupt, now)
	}
	if got := f.len(now); got != maxFailures {
		t.Errorf("%d entries, want %d", got, maxFailures)
	}
	last := 3*maxFailures - 1
	if f.recall(digest{byte(last), byte(last >> 8)}, now) == nil {
		t.Error("the newest was forgotten")
	}
	if f.recall(digest{}, now) != nil {
		t.Error("the oldest was kept")
	}
	if got := f.len(now.Add(failureMemory)); got != 0 || len(f.entries) != 0 {
		t.Errorf("%d entries after %s, want 0", got, failureMemory)
	}
}

func TestRefusalAgainIsRememberedAnew(t *testing.T) {
	f, now := newFailures(), time.Now()
	f.remember(digest{1}, kek.ErrCorrupt, now)
	f.remember(digest{2}, kek.ErrCorrupt, now)
	f.remember(digest{1}, kek.ErrRevoked, now.Add(failureMemory/2))
	now = now.Add(failureMemory)
	if err := f.recall(digest{1}, now); !errors.Is(err, kek.ErrRevoked) {
		t.Errorf("recalled %v, want ErrRevoked", err)
	}
	if err := f.recall(digest{2}, now); err != nil {
		t.Errorf("recalled %v after its time", err)
	}
}

func TestBreaker(t *testing.T) {
	broken := map[string]error{
		"unavailable": fmt.Errorf("worker died: %w", kek.ErrUnavailable),
		"PIN":         kek.ErrPIN,
		"no class":    errors.New("surprise"),
		"timeout":     context.DeadlineExceeded,
	}
	for name, failure := range broken {
		for mode, cfg := range map[string]Config{"seeded": seededConfig(), "direct": directConfig()} {
			t.Run(name+", "+mode, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { breakerStory(t, cfg, failure) })
			})
		}
	}
}

func breakerStory(t *testing.T, cfg Config, failure error) {
	hsm, watch := &fakeHSM{}, &tally{}
	cfg.Observer = watch
	s := readySealer(t, cfg, hsm)
	cold := strangers(t, 20, keyA)
	want := failure
	if errors.Is(failure, context.DeadlineExceeded) {
		want = kek.ErrUnavailable
	}
	asked := hsm.ops()
	since := func() int { n := hsm.ops() - asked; asked += n; return n }

	hsm.failWith(failure)
	refuses(t, s, cold[0], want)
	for _, v := range cold[1:] {
		refuses(t, s, v, kek.ErrUnavailable)
	}
	if got := since(); got != 1 {
		t.Errorf("%d operations before the breaker opened, want 1", got)
	}
	if cfg.Mode == Seeded {
		opens(t, s, seal(t, s, "own"), "own") // warm ones go on
	} else if _, err := s.Seal(t.Context(), []byte("own")); !errors.Is(err, kek.ErrUnavailable) {
		t.Errorf("direct Seal with the breaker open: %v, want ErrUnavailable", err)
	}

	// After the pause a single trial, which fails.
	time.Sleep(breakerPause)
	var callers sync.WaitGroup
	for _, v := range cold {
		callers.Go(func() { _, _ = s.Open(t.Context(), v) })
	}
	callers.Wait()
	if got := since(); got != 1 {
		t.Errorf("%d operations as a trial, want 1", got)
	}

	// The next trial takes its time; meanwhile nobody else gets through.
	hsm.failWith(nil)
	release := hsm.hold("unwrap")
	time.Sleep(breakerPause)
	trial := make(chan error)
	go func() {
		_, err := s.Open(t.Context(), cold[0])
		trial <- err
	}()
	synctest.Wait()
	for _, v := range cold[1:] {
		refuses(t, s, v, kek.ErrUnavailable)
	}
	if got := since(); got != 1 {
		t.Errorf("%d operations during the trial, want 1", got)
	}
	release()
	if err := <-trial; err != nil {
		t.Errorf("the trial: %v", err)
	}
	for n, v := range cold {
		opens(t, s, v, fmt.Sprint("value ", n))
	}
	if opened, closed := watch.get("breaker open true"), watch.get("breaker open false"); opened != 1 || closed != 1 {
		t.Errorf("observed %d openings and %d closings, want 1 and 1", opened, closed)
	}
}

// A no is an answer: damaged data must not make the HSM look broken, and a
// trial that meets some proves that the HSM is back.
func TestRefusalClosesTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hsm := &fakeHSM{}
		s := readySealer(t, seededConfig(), hsm)
		cold := strangers(t, 2, keyA)
		hsm.failWith(kek.ErrUnavailable)
		refuses(t, s, cold[0], kek.ErrUnavailable)
		hsm.failWith(nil)
		damaged := kek.Sealed{KeyID: cold[0].KeyID, Ciphertext: slices.Clone(cold[0].Ciphertext)}
		damaged.Ciphertext[4+17+3+2] ^= 1
		time.Sleep(breakerPause)
		refuses(t, s, damaged, kek.ErrCorrupt)
		opens(t, s, cold[1], "value 1")
	})
}

// Busy says nothing about the HSM: a trial that meets it is not the last one.
func TestBusyTrialIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hsm := &fakeHSM{}
		s := readySealer(t, seededConfig(), hsm)
		cold := strangers(t, 1, keyA)[0]
		hsm.failWith(kek.ErrUnavailable)
		refuses(t, s, cold, kek.ErrUnavailable)
		time.Sleep(breakerPause)
		hsm.failWith(kek.ErrBusy)
		refuses(t, s, cold, kek.ErrBusy)
		hsm.failWith(nil)
		opens(t, s, cold, "value 0")
	})
}

// notAskedError is what a Wrapper returns that waits before it asks again.
type notAskedError struct{}

func (notAskedError) Error() string  { return "fake: next try in a moment" }
func (notAskedError) Unwrap() error  { return kek.ErrUnavailable }
func (notAskedError) NotAsked() bool { return true }

// Nor does an error that the Wrapper found without the HSM: neither does it open the
// breaker, nor does it cost a pause when the Wrapper asks again.
func TestNotAskedTrialIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hsm := &fakeHSM{}
		s := readySealer(t, seededConfig(), hsm)
		cold := strangers(t, 2, keyA)
		hsm.failWith(notAskedError{})
		refuses(t, s, cold[0], kek.ErrUnavailable)
		hsm.failWith(nil)
		opens(t, s, cold[0], "value 0") // the breaker was not opened

		hsm.failWith(kek.ErrUnavailable)
		refuses(t, s, cold[1], kek.ErrUnavailable)
		time.Sleep(breakerPause)
		hsm.failWith(fmt.Errorf("unwrap: %w", notAskedError{}))
		for range 3 {
			refuses(t, s, cold[1], kek.ErrUnavailable)
		}
		hsm.failWith(nil)
		opens(t, s, cold[1], "value 1")
	})
}

// The way back from an outage is a Use, which does not wait for the breaker.
func TestUseClosesTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hsm := &fakeHSM{}
		s := readySealer(t, seededConfig(), hsm)
		cold := strangers(t, 1, keyA)[0]
		hsm.failWith(kek.ErrUnavailable)
		refuses(t, s, cold, kek.ErrUnavailable)
		hsm.failWith(nil)
		use(t, s, keyA)
		opens(t, s, cold, "value 0")
	})
}

// A seed of the wrong size is damage that the HSM did not notice.
func TestSeedOfWrongSizeIsCorrupt(t *testing.T) {
	for name, cfg := range map[string]Config{"seeded": seededConfig(), "direct": directConfig()} {
		t.Run(name, func(t *testing.T) {
			hsm := &fakeHSM{}
			s := newSealer(t, cfg, hsm)
			s.SetRing(ringOf(keyA))
			blob, err := hsm.Wrap(t.Context(), keyA.ID, kek.GCMCallerIV, make([]byte, 31), seedAAD(ringLabel, keyA.ID))
			if err != nil {
				t.Fatal(err)
			}
			b := newPrefix(schemeSeeded, kek.GCMCallerIV, keyA.ID, keyA.CheckValue, blob)
			b = append(b, make([]byte, saltSize+minSeededBody)...)
			asked := hsm.ops()
			for range 3 {
				refuses(t, s, kek.Sealed{KeyID: keyA.KeyID(), Ciphertext: b}, kek.ErrCorrupt)
			}
			if got := hsm.ops() - asked; got != 1 {
				t.Errorf("the HSM was asked %d times, want 1", got)
			}
		})
	}
}
