package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"
	kmsservice "k8s.io/kms/pkg/service"
)

// callTimeout is kube-apiserver's default for one call of the plugin.
const callTimeout = 3 * time.Second

// client is kube-apiserver's own client of the plugin, on a connection of its own.
type client struct{ kmsservice.Service }

func (r *rig) connect(tb testing.TB) client {
	tb.Helper()
	s, err := kmsv2.NewGRPCService(tb.Context(), "unix://"+r.Socket, "load", callTimeout)
	must(tb, err)
	return client{s}
}

// opens decrypts a value and compares what it holds.
func (c client) opens(ctx context.Context, v sealed) error {
	plaintext, err := c.Decrypt(ctx, string(uuid.NewUUID()), &kmsservice.DecryptRequest{Ciphertext: v.ciphertext, KeyID: v.keyID})
	if err == nil && !bytes.Equal(plaintext, v.plaintext) {
		err = errors.New("it opened to something else than was sealed")
	}
	return err
}

// seals encrypts a new value.
func (c client) seals(ctx context.Context) (sealed, error) {
	plaintext := random(32)
	resp, err := c.Encrypt(ctx, string(uuid.NewUUID()), plaintext)
	if err != nil {
		return sealed{}, err
	}
	return sealed{keyID: resp.KeyID, ciphertext: resp.Ciphertext, plaintext: plaintext}, nil
}

// transient tells whether an error says that the HSM, or kekd, has no time now: what
// a caller may meet whose seed is cold.
func transient(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded:
		return true
	}
	return false
}

// refused tells whether an error blames the request.
func refused(err error) bool { return status.Code(err) == codes.InvalidArgument }

// tally counts outcomes and keeps latencies. It is safe for concurrent use.
type tally struct {
	mu        sync.Mutex
	codes     map[string]int
	latencies []time.Duration
	bad       []error // the first few that the caller did not expect
	nbad      int
}

// note takes in a call that began at a time, and reports whether its outcome was
// one that may be.
func (y *tally) note(began time.Time, err error, may func(error) bool) bool {
	took := time.Since(began)
	ok := err == nil || may(err)
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.codes == nil {
		y.codes = map[string]int{}
	}
	y.codes[status.Code(err).String()]++
	y.latencies = append(y.latencies, took)
	if !ok {
		if y.nbad++; len(y.bad) < 5 {
			y.bad = append(y.bad, fmt.Errorf("%s after %s: %w", began.Format("15:04:05.000"), took.Round(time.Millisecond), err))
		}
	}
	return ok
}

// never is for calls that must not fail.
func never(error) bool { return false }

func (y *tally) count(code codes.Code) int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.codes[code.String()]
}

func (y *tally) total() int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return len(y.latencies)
}

// quantile is that of the latencies, q from 0 to 1.
func (y *tally) quantile(q float64) time.Duration {
	y.mu.Lock()
	defer y.mu.Unlock()
	if len(y.latencies) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(y.latencies))
	return sorted[int(q*float64(len(sorted)-1))]
}

// check fails the test for each outcome that may not be.
func (y *tally) check(tb testing.TB, who string) {
	tb.Helper()
	y.mu.Lock()
	defer y.mu.Unlock()
	if len(y.latencies) == 0 {
		tb.Errorf("%s: no calls at all", who)
	}
	if y.nbad > 0 {
		tb.Errorf("%s: %d of %d calls ended as none may, the first: %v", who, y.nbad, len(y.latencies), errors.Join(y.bad...))
	}
}

// String names the outcomes and their number.
func (y *tally) String() string {
	y.mu.Lock()
	defer y.mu.Unlock()
	return fmt.Sprint(y.codes)
}

// statusLimit is the latest that Status may answer, on a machine that does other
// things too, beside what the test's own process stands still.
const statusLimit = 500 * time.Millisecond

// watchStatus asks for Status every so often, until the returned function is called,
// which gives what came of it. A failing Status fails the test, and so does a slow
// one: kube-apiserver stops writing on those.
func (r *rig) watchStatus(tb testing.TB, c client, every time.Duration) (stop func() *tally) {
	tb.Helper()
	ctx, cancel := context.WithCancel(tb.Context())
	var y, stalls tally
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			began := time.Now()
			select {
			case <-ctx.Done():
				return
			case <-time.After(every):
			}
			stalls.note(began.Add(every), nil, never)
			began = time.Now()
			resp, err := c.Status(context.WithoutCancel(ctx))
			if err == nil && (resp.Healthz != "ok" || resp.KeyID != r.kek.keyID()) {
				err = fmt.Errorf("status is %+v", resp)
			}
			y.note(began, err, never)
		}
	}()
	return func() *tally {
		tb.Helper()
		cancel()
		<-done
		y.check(tb, "Status")
		// A call passes through several goroutines of the client.
		const hops = 5
		p99, limit := y.quantile(0.99), statusLimit+hops*stalls.quantile(0.99)
		if p99 > limit {
			tb.Errorf("the 99th percentile of Status is %s, want less than %s; the test itself was up to %s late",
				p99, limit, stalls.quantile(1))
		}
		return &y
	}
}

// workers runs n goroutines to their end.
func workers(n int, run func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { run(i) })
	}
	all.Wait()
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func ms(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
