package keycache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"kekd/internal/kek"
)

// gate stands before the HSM: it bounds how many calls are under way, holds the
// breaker, and gives each call a deadline of its own. It is safe for concurrent
// use and holds no lock during a call.
type gate struct {
	max     int
	timeout time.Duration
	clock   func() time.Time
	changed func(open bool) // the breaker has opened or closed; called under mu

	// closing ends when the gate closes, and with it every call under way.
	closing context.Context
	cancel  context.CancelFunc

	mu      sync.Mutex // guards what follows
	running int
	closed  bool
	idle    sync.Cond // signalled when running falls to zero
	breaker breaker
}

func newGate(maxCalls int, timeout time.Duration, clock func() time.Time, changed func(open bool)) *gate {
	g := &gate{max: maxCalls, timeout: timeout, clock: clock, changed: changed}
	g.idle.L = &g.mu
	g.closing, g.cancel = context.WithCancel(context.Background())
	return g
}

// call runs op with ctx's values but not its cancellation: whether somebody
// still waits for the answer is not op's business. It returns kek.ErrBusy when
// too many calls are under way, kek.ErrUnavailable when the breaker is open, the
// gate is closed or op did not answer in time, else what op returns.
func (g *gate) call(ctx context.Context, op func(context.Context) error) error {
	trial, err := g.enter()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.timeout)
	defer cancel()
	defer context.AfterFunc(g.closing, cancel)()
	err = op(ctx)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		// Not the caller's deadline, and not to be mistaken for it: the chain ends here.
		err = fmt.Errorf("%s (after at most %s): %w", err.Error(), g.timeout, kek.ErrUnavailable)
	}
	g.leave(judge(err), trial)
	return err
}

// proven tells the breaker that the HSM has answered somebody else.
func (g *gate) proven() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.record(answered, false)
}

// shut fails all further calls, cancels those under way and waits for them.
func (g *gate) shut() {
	g.cancel()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for g.running > 0 {
		g.idle.Wait()
	}
}

// state returns how many calls are under way and whether the breaker is open.
func (g *gate) state() (running int, open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.running, g.breaker.open
}

func (g *gate) enter() (trial bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false, fmt.Errorf("shutting down: %w", kek.ErrUnavailable)
	}
	if g.running >= g.max {
		return false, fmt.Errorf("%d calls are under way: %w", g.running, kek.ErrBusy)
	}
	ok, trial := g.breaker.admit(g.clock())
	if !ok {
		return false, fmt.Errorf("it did not answer a moment ago: %w", kek.ErrUnavailable)
	}
	g.running++
	return trial, nil
}

func (g *gate) leave(v verdict, trial bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.record(v, trial)
	if g.running--; g.running == 0 {
		g.idle.Broadcast()
	}
}

// record runs under the lock, so that changes are reported in their order.
func (g *gate) record(v verdict, trial bool) {
	before := g.breaker.open
	g.breaker.record(v, trial, g.clock())
	if after := g.breaker.open; before != after {
		g.changed(after)
	}
}
