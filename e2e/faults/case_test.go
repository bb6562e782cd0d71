package faults

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kekd/e2e/internal/harness"
)

const (
	// outageLasts is how long a lasting fault is there.
	outageLasts = 3 * time.Second
	// callTimeout is kube-apiserver's.
	callTimeout = 3 * time.Second
	// againWithin bounds the way back to normal. It is no promise: the table tells
	// what was measured.
	againWithin = 30 * time.Second
	// The clients of a case, and of its readings, hold some more than there were
	// before it.
	spareGoroutines, spareDescriptors = 12, 6
)

// outcome is a cell of the table.
type outcome struct {
	// Saw are the answers to what was called meanwhile, by their gRPC codes.
	Saw map[string]int
	// Slowest is the longest of those calls.
	Slowest time.Duration
	// Again is the time from the end of the fault until all worked. A fault that
	// strikes once has ended when it has struck.
	Again time.Duration
}

// testCase is one fault at one moment, over a daemon and a token of its own.
type testCase struct {
	tb     *testing.T
	fault  fault
	moment moment
	token  *harness.Token // behind the module that fails
	sure   *harness.Kekd  // a sibling whose module never fails, for kekctl alone
	kekd   *harness.Kekd
	kms    *harness.KMS
	seals  []sealed
	// goroutines and descriptors are those of the daemon before any fault.
	goroutines  float64
	descriptors int

	mu sync.Mutex
	outcome
}

// sealed is a value and what it was sealed to.
type sealed struct {
	plaintext []byte
	harness.Sealed
}

// runCase plays a case and returns what was seen.
func runCase(t *testing.T, f fault, m moment) outcome {
	plain := harness.NewToken(t)
	token := plain.WithFaults(t)
	options := harness.KekdOptions{CallTimeout: time.Second, Refresh: time.Second, ProbeInterval: time.Second}
	if m.name == "in an Encrypt" {
		options.Mode = "direct" // where each Encrypt is one operation of the HSM
	}
	c := &testCase{tb: t, fault: f, moment: m, token: token}
	c.Saw = map[string]int{}
	c.sure = harness.NewKekd(t, plain, harness.KekdOptions{})
	c.kekd = harness.NewSibling(t, token, options)
	c.kms = c.kekd.KMS(t)

	// A first life, in which the values are sealed that must never be lost.
	c.kekd.StartReady(t)
	for range 3 {
		c.seals = append(c.seals, c.seal())
	}
	c.goroutines, c.descriptors = c.kekd.Metrics(t).Sum("go_goroutines", nil), c.openFiles()
	c.kekd.Stop(t)
	token.Faults(t)
	m.run(c)
	c.requireSound()
	return c.outcome
}

// seal encrypts a value of its own, without faults.
func (c *testCase) seal() sealed {
	c.tb.Helper()
	plaintext := fmt.Appendf(nil, "a data key of thirty-two bytes %d", len(c.seals))
	s, err := c.kms.Encrypt(c.tb.Context(), plaintext)
	if err != nil {
		c.tb.Fatalf("encrypt: %v", err)
	}
	return sealed{plaintext, s}
}

// strike sets the faults and waits until they are over: a lasting one for its
// time, any other until it has struck. meanwhile is done in between, again and
// again until then.
func (c *testCase) strike(meanwhile func()) {
	c.tb.Helper()
	c.token.Faults(c.tb, c.fault.lines(c.moment)...)
	defer c.token.Faults(c.tb)
	before := c.token.Calls(c.tb)
	if c.fault.kill {
		c.kekd.KillWorker(c.tb)
	}
	end := time.Now().Add(outageLasts)
	for c.fault.lasting && time.Now().Before(end) {
		meanwhile()
		pause()
	}
	if c.fault.lasting {
		after := c.token.Calls(c.tb)
		if !slices.ContainsFunc(c.fault.calls(c.moment), func(call string) bool { return after[call] > before[call] }) {
			c.tb.Errorf("none of %q was called meanwhile: the fault struck nobody", c.fault.calls(c.moment))
		}
		return
	}
	harness.Eventually(c.tb, againWithin, "the fault strikes", func(context.Context) error {
		meanwhile()
		if c.token.FaultsLeft(c.tb) {
			return fmt.Errorf("left of %q", c.fault.lines(c.moment))
		}
		return nil
	})
}

// pause keeps a loop from being a busy one.
func pause() { time.Sleep(20 * time.Millisecond) }

// call does one call of kube-apiserver's, notes what it saw, and returns its error.
func (c *testCase) call(do func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(c.tb.Context(), callTimeout)
	defer cancel()
	begun := time.Now()
	err := do(ctx)
	took := time.Since(begun)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Saw[status.Code(err).String()]++
	c.Slowest = max(c.Slowest, took)
	switch code := status.Code(err); {
	case code == codes.OK, code == codes.Unavailable, code == codes.ResourceExhausted:
	case code == codes.DeadlineExceeded:
		if took < callTimeout {
			c.tb.Errorf("a call that gave up early: %v after %s", err, took)
		}
	case !slices.Contains(c.fault.also, code):
		c.tb.Errorf("a caller saw %v, which tells it that its request is at fault", err)
	}
	return err
}

// encrypt is a call that seals a value.
func (c *testCase) encrypt() error {
	return c.call(func(ctx context.Context) error {
		plaintext := []byte("a data key that is sealed meanwhile")
		s, err := c.kms.Encrypt(ctx, plaintext)
		if err == nil {
			c.seals = append(c.seals, sealed{plaintext, s})
		}
		return err
	})
}

// open is a call that opens one of the values.
func (c *testCase) open(i int) error {
	return c.call(func(ctx context.Context) error { return c.opens(ctx, c.seals[i]) })
}

func (c *testCase) opens(ctx context.Context, s sealed) error {
	got, err := c.kms.Decrypt(ctx, s.Sealed)
	if err == nil && !bytes.Equal(got, s.plaintext) {
		c.tb.Errorf("decrypted %q, sealed was %q", got, s.plaintext)
	}
	return err
}

// again waits until it works, and notes how long that took.
func (c *testCase) again(what string, works func(ctx context.Context) error) {
	c.tb.Helper()
	c.Again = harness.Eventually(c.tb, againWithin, what, func(ctx context.Context) error {
		if err := works(ctx); err != nil {
			return err
		}
		return c.kekd.Ready(ctx)
	})
}

// warm does what needs no HSM until the returned function is called: a daemon
// that has served goes on serving, whatever the module does.
func (c *testCase) warm() (stop func()) {
	c.tb.Helper()
	if err := c.opens(c.tb.Context(), c.seals[0]); err != nil {
		c.tb.Fatalf("warm up: %v", err)
	}
	ctx, cancel := context.WithCancel(c.tb.Context())
	kms := c.kekd.KMS(c.tb)
	var callers sync.WaitGroup
	callers.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			call, cancel := context.WithTimeout(ctx, callTimeout)
			_, err := kms.Encrypt(call, []byte("warm"))
			if err == nil {
				_, err = kms.Decrypt(call, c.seals[0].Sealed)
			}
			if err == nil {
				_, err = kms.Status(call)
			}
			cancel()
			if err != nil && ctx.Err() == nil {
				c.tb.Errorf("warm call %d: %v", n, err)
				return
			}
			pause()
		}
	})
	return func() { cancel(); callers.Wait() }
}

// atStart: the module fails while kekd comes up.
func (c *testCase) atStart() {
	c.token.Faults(c.tb, c.fault.lines(c.moment)...)
	c.kekd.Start(c.tb)
	if c.fault.lasting {
		for end := time.Now().Add(outageLasts); time.Now().Before(end); pause() {
			_ = c.call(func(ctx context.Context) error { _, err := c.kms.Status(ctx); return err })
		}
		c.token.Faults(c.tb)
	}
	c.again("kekd becomes ready", func(context.Context) error { return nil })
}

// inEncrypt: the module fails in the operation of an Encrypt.
func (c *testCase) inEncrypt() {
	c.kekd.StartReady(c.tb)
	c.strike(func() { _ = c.encrypt() })
	c.again("Encrypt works", func(context.Context) error { return c.encrypt() })
}

// inDecrypt: the module fails while a seed is unwrapped that this daemon has
// never seen.
func (c *testCase) inDecrypt() {
	c.kekd.StartReady(c.tb)
	c.strike(func() { _ = c.open(0) })
	c.again("Decrypt works", func(context.Context) error { return c.open(0) })
}

// inRotation: the module fails while kekd takes up a new key.
func (c *testCase) inRotation() {
	c.kekd.StartReady(c.tb)
	stop := c.warm()
	defer stop()
	old, err := c.kms.Status(c.tb.Context())
	if err != nil {
		c.tb.Fatalf("status: %v", err)
	}
	c.sure.CreateKey(c.tb, 2*time.Second)
	c.strike(func() {})
	c.again("Encrypt uses the new key", func(ctx context.Context) error {
		s, err := c.kms.Encrypt(ctx, []byte("under which key?"))
		if err == nil && s.KeyID == old {
			err = fmt.Errorf("encrypted under %s still", old)
		}
		return err
	})
}

// inProbe: the module fails in the background, while all that callers ask for is warm.
func (c *testCase) inProbe() {
	c.kekd.StartReady(c.tb)
	stop := c.warm()
	defer stop()
	c.strike(func() {})
	c.again("kekd is ready", func(ctx context.Context) error {
		m := c.kekd.Metrics(c.tb)
		if m.Sum("kekd_health_state", map[string]string{"state": "ready"}) != 1 {
			return fmt.Errorf("states %v", m.By("kekd_health_state", "state"))
		}
		return nil
	})
}

// requireSound: nothing sealed is lost, and nothing leaks.
func (c *testCase) requireSound() {
	c.tb.Helper()
	for i, s := range c.seals {
		harness.Eventually(c.tb, againWithin, fmt.Sprintf("value %d of %d opens", i, len(c.seals)), func(ctx context.Context) error {
			return c.opens(ctx, s)
		})
	}
	harness.Eventually(c.tb, againWithin, "nothing is left of the fault", func(context.Context) error {
		m := c.kekd.Metrics(c.tb)
		workers := c.kekd.Workers()
		switch {
		case len(workers) != 1:
			return fmt.Errorf("%d worker processes, want one", len(workers))
		case m.Sum("kekd_hsm_sessions", map[string]string{"state": "in_use"}) != 0:
			return fmt.Errorf("sessions %v, want none in use", m.By("kekd_hsm_sessions", "state"))
		case m.Sum("kekd_grpc_requests_in_flight", nil) != 0 || m.Sum("kekd_hsm_requests_waiting", nil) != 0:
			return fmt.Errorf("requests are left over")
		case m.Sum("kekd_panics_total", nil) != 0:
			return fmt.Errorf("requests panicked")
		case m.Sum("go_goroutines", nil) > c.goroutines+spareGoroutines:
			return fmt.Errorf("%v goroutines, before it %v", m.Sum("go_goroutines", nil), c.goroutines)
		case c.openFiles() > c.descriptors+spareDescriptors:
			return fmt.Errorf("%d file descriptors, before it %d", c.openFiles(), c.descriptors)
		}
		return nil
	})
}

// openFiles counts the daemon's file descriptors.
func (c *testCase) openFiles() int {
	c.tb.Helper()
	files, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(c.kekd.PID()), "fd"))
	if err != nil {
		c.tb.Fatal(err)
	}
	return len(files)
}

// String is the cell as the table shows it: what callers saw other than OK, or how
// long the slowest was if that can be felt, and the time until all worked again.
func (o outcome) String() string {
	var notes []string
	for _, code := range slices.Sorted(maps.Keys(o.Saw)) {
		if code != codes.OK.String() {
			notes = append(notes, code)
		}
	}
	if len(notes) == 0 && o.Slowest > 100*time.Millisecond {
		notes = append(notes, "OK after "+rounded(o.Slowest))
	}
	if len(notes) == 0 {
		return rounded(o.Again)
	}
	return strings.Join(notes, ", ") + "; " + rounded(o.Again)
}

func rounded(d time.Duration) string {
	if d < 100*time.Millisecond {
		return "at once"
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
