package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"kekd/e2e/internal/harness"
)

// TestStampede: two apiservers ask for 50 cold seeds a hundred times a second each,
// as kube-apiserver 1.37 does with objects that it can't read, while the HSM is
// slow or gone. The HSM sees a bounded number of calls, Status none of it, and a
// second after the HSM is back everything opens.
func TestStampede(t *testing.T) {
	const sessions = 4
	for _, tc := range []struct {
		name   string
		faults []string
		kill   bool // the worker, again and again
		// most is how many calls of C_Decrypt the HSM may see.
		most func(lasted time.Duration) float64
		// keeps is how long it keeps calls that it has taken.
		keeps time.Duration
	}{
		{
			name: "slow", faults: []string{"C_Decrypt ms=2000"}, keeps: 2 * time.Second,
			// All sessions at work all the time, and a worker's proof.
			most: func(lasted time.Duration) float64 { return sessions * (lasted.Seconds()/2 + 2) },
		},
		// One trial of the breaker and one probe at a time, each tried twice on two workers.
		{name: "device error", faults: []string{"C_Decrypt rv=0x30", "C_Encrypt rv=0x30"}, most: trials},
		{name: "token not present", faults: tokenGone, most: trials},
		{name: "worker killed", kill: true, most: trials},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := startRig(t, harness.KekdOptions{Sessions: sessions})
			values := many(50, r.kek.seal)
			stopStatus := r.watchStatus(t, r.connect(t), 20*time.Millisecond)
			if !tc.kill {
				r.token.Faults(t, tc.faults...)
			}
			before := r.token.Calls(t)["C_Decrypt"]
			began := time.Now()
			s := r.stampede(t, values)
			for until := began.Add(20 * time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
				for _, pid := range r.readyWorkers(t) {
					if tc.kill {
						_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone already
					}
				}
			}
			lasted := time.Since(began)
			calls := r.token.Calls(t)["C_Decrypt"] - before
			opened := s.open()

			r.token.Faults(t)
			problem, fresh, c := "", r.kek.seal(), r.connect(t)
			recovered := harness.Eventually(t, 30*time.Second, "all values have opened, and one that nobody asked for", func(ctx context.Context) error {
				if err := c.opens(ctx, fresh); err != nil {
					return err
				}
				if n := s.open(); n < len(values) {
					if status, err := r.Status(ctx); err == nil {
						problem = status.RingProblem
					}
					return fmt.Errorf("%d of %d opened; of the ring kekd says %q", n, len(values), problem)
				}
				return nil
			})
			s.stop()
			status := stopStatus()
			t.Logf("%d requests, the HSM away for %s: %s; 99%% within %s", s.calls.total(), ms(lasted), &s.calls, ms(s.calls.quantile(0.99)))
			t.Logf("%d C_Decrypt, %d of %d seeds came; the HSM well again, all came within %s; Status 99%% within %s, at most %s",
				calls, opened, len(values), ms(recovered), ms(status.quantile(0.99)), ms(status.quantile(1)))
			s.calls.check(t, "Decrypt")
			if most := tc.most(lasted); float64(calls) > most {
				t.Errorf("%d calls of C_Decrypt, want at most %.0f", calls, most)
			}
			if limit := 3*time.Second + tc.keeps; recovered > limit {
				t.Errorf("recovered %s after the HSM, want less than %s", recovered, limit)
			}
		})
	}
}

// tokenGone is what a module says that has lost its token.
var tokenGone = []string{
	"C_GetTokenInfo rv=0xe0", "C_OpenSession rv=0xe0", "C_Login rv=0xe0", "C_FindObjectsInit rv=0xe0",
	"C_EncryptInit rv=0xe0", "C_DecryptInit rv=0xe0",
}

// trials bounds the calls of C_Decrypt of an HSM that does not answer: the breaker's
// trials, the probes and the watcher's looks, some each second, twice on two workers.
func trials(lasted time.Duration) float64 { return 50 + 15*lasted.Seconds() }

// stampedeRun is two apiservers that ask.
type stampedeRun struct {
	calls tally
	stop  func()

	mu     sync.Mutex
	opened map[int]bool // values, by number. Guarded by mu.
}

// stampede begins it: each of two clients asks for a value every 10 ms, whether the
// last was answered or not.
func (r *rig) stampede(t *testing.T, values []sealed) *stampedeRun {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &stampedeRun{opened: map[int]bool{}}
	var all sync.WaitGroup
	for range 2 {
		c := r.connect(t)
		all.Go(func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				i := n % len(values)
				all.Go(func() {
					asked := time.Now()
					err := c.opens(context.WithoutCancel(ctx), values[i])
					s.calls.note(asked, err, transient)
					if err == nil {
						s.mu.Lock()
						defer s.mu.Unlock()
						s.opened[i] = true
					}
				})
			}
		})
	}
	s.stop = func() { cancel(); all.Wait() }
	t.Cleanup(s.stop)
	return s
}

// open is how many of the values have opened.
func (s *stampedeRun) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.opened)
}

// TestStampedeOnOneSeed: whoever asks for a seed that is on its way waits for it.
func TestStampedeOnOneSeed(t *testing.T) {
	t.Parallel()
	r := startRig(t, harness.KekdOptions{ProbeInterval: time.Minute, Refresh: time.Minute, MaxInFlight: 1024})
	r.token.Faults(t, "C_Decrypt ms=1500")
	before := r.token.Calls(t)["C_Decrypt"]
	s := r.stampede(t, many(1, r.kek.seal))
	harness.Eventually(t, 20*time.Second, "the seed has come", func(context.Context) error {
		if s.open() == 0 {
			return errors.New("it has not")
		}
		return nil
	})
	s.stop()
	s.calls.check(t, "Decrypt")
	calls, waited := r.token.Calls(t)["C_Decrypt"]-before, s.calls.quantile(1)
	t.Logf("%d requests for one seed, the slowest took %s: %d C_Decrypt, %s", s.calls.total(), ms(waited), calls, &s.calls)
	if calls != 1 {
		t.Errorf("%d calls of C_Decrypt for one seed, want 1", calls)
	}
	if s.calls.count(codes.OK) != s.calls.total() || s.calls.total() < 20 {
		t.Errorf("%d requests: %s, want many that all succeed", s.calls.total(), &s.calls)
	}
}
