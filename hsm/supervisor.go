package hsm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"kekd/hsm/wire"
	"kekd/internal/kek"
	"kekd/internal/tracing"
)

const (
	// firstPause and lastPause bound the wait between two starts of a worker. The
	// last one is how long the HSM may be back unnoticed, so that it is less than a
	// second with the jitter. A start that fails costs some milliseconds.
	firstPause = 100 * time.Millisecond
	lastPause  = 700 * time.Millisecond
	// steadyLife is how long a worker must live for its end not to count as one
	// of a series.
	steadyLife = 30 * time.Second
)

// supervisor owns the worker process: it starts one when a call needs it and
// none runs, and paces the starts.
type supervisor struct {
	cfg    Config
	latch  *pinLatch
	proven func() provenKey

	// stopped ends a start that is under way.
	stopped context.Context
	stop    context.CancelFunc

	mu sync.Mutex
	// cur is the worker that serves, nil when none does. Guarded by mu.
	cur *process
	// starting is the start under way, nil when there is none. Guarded by mu.
	starting *start
	// failures counts the starts that failed and the workers that died young, one
	// after the other. Guarded by mu.
	failures int
	// notBefore is when the next start may be tried, and lastErr why the last one
	// failed. Guarded by mu.
	notBefore time.Time
	lastErr   error
	closed    bool // guarded by mu

	// ended is why the last worker was given up or did not come up, as a class. Guarded
	// by mu.
	ended string

	// serial is that of the last token that was logged in to. Only the start under
	// way uses it.
	serial string
}

// start is one attempt to bring up a worker.
type start struct {
	done chan struct{}
	// ctx ends with the supervisor, and span is the one that ctx carries.
	ctx  context.Context //nolint:containedctx // a start is a task of its own
	span tracing.Span
	p    *process // read after done is closed
	err  error    // read after done is closed
}

func newSupervisor(cfg Config, proven func() provenKey) *supervisor {
	ctx, cancel := context.WithCancel(context.Background())
	return &supervisor{cfg: cfg, latch: newPINLatch(cfg.Latch, cfg.Logger, cfg.Observer), proven: proven, stopped: ctx, stop: cancel}
}

// current returns the worker that serves, nil when none does.
func (s *supervisor) current() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cur != nil && s.cur.alive() {
		return s.cur
	}
	return nil
}

// get returns the worker, starting one if need be. While a pause between starts
// lasts it fails at once with the reason of the last failure.
func (s *supervisor) get(ctx context.Context) (*process, error) {
	s.mu.Lock()
	switch {
	case s.closed:
		s.mu.Unlock()
		return nil, fmt.Errorf("%w: kekd stops", kek.ErrUnavailable)
	case s.cur != nil && s.cur.alive():
		defer s.mu.Unlock()
		return s.cur, nil
	case s.cur != nil: // died since its last call
		s.retire(ctx, s.cur, errWorkerGone)
	}
	if s.starting == nil {
		if wait := time.Until(s.notBefore); wait > 0 {
			defer s.mu.Unlock()
			return nil, &pausedError{last: s.lastErr, wait: wait}
		}
		st := &start{done: make(chan struct{})}
		st.ctx, st.span = s.cfg.Tracer.Root(s.stopped, ctx, tracing.WorkerStart, tracing.Reason.String(s.ended))
		s.starting = st
		go s.run(st)
	}
	st := s.starting
	s.mu.Unlock()
	_, span := s.cfg.Tracer.Child(ctx, tracing.WorkerAwait)
	span.Link(st.span.Context())
	select {
	case <-st.done:
		span.End(resultOf(st.err))
		return st.p, st.err
	case <-ctx.Done():
		err := gaveUp(ctx, "wait for the HSM worker to start")
		span.End(resultOf(err))
		return nil, err
	}
}

// pausedError is a call that was not made, because the last worker failed a moment
// ago.
type pausedError struct {
	last error
	wait time.Duration
}

// Error implements error.
func (e *pausedError) Error() string {
	return fmt.Sprintf("%v (next try in %s)", e.last, e.wait.Round(time.Millisecond))
}

// Unwrap yields why the last worker failed.
func (e *pausedError) Unwrap() error { return e.last }

// NotAsked tells the key cache that this is no news of the HSM.
func (e *pausedError) NotAsked() bool { return true }

// run brings up a worker for everybody who waits for st.
func (s *supervisor) run(st *start) {
	defer close(st.done)
	st.p, st.err = s.bringUp(st.ctx)
	defer func() { endSpan(st.span, resultOf(st.err), st.err) }()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starting = nil
	if st.err == nil && s.closed {
		st.p.kill(errors.New("kekd stops"))
		st.p, st.err = nil, fmt.Errorf("%w: kekd stops", kek.ErrUnavailable)
	}
	if st.err != nil {
		s.lastErr = st.err
		s.ended = resultOf(st.err)
		s.failures++
		s.cfg.Observer.HSMWorkerStartFailed(resultOf(st.err))
		s.pause()
		return
	}
	s.cur = st.p
}

// pause sets when the next start may be tried: twice as long after each failure
// in a row, give or take a fifth. The first failure costs no wait at all, since
// a single crash should cost one restart and nothing else.
func (s *supervisor) pause() {
	wait := time.Duration(0)
	if s.failures > 1 {
		wait = min(firstPause<<min(s.failures-2, 10), lastPause)
		wait += time.Duration((rand.Float64()*0.4 - 0.2) * float64(wait)) //nolint:gosec // G404: jitter
	}
	s.notBefore = time.Now().Add(wait)
}

// replace ends a worker that failed under the call of ctx; the next call starts
// another.
func (s *supervisor) replace(ctx context.Context, p *process, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cur == p {
		s.retire(ctx, p, why)
	}
}

// retire gives up the current worker, which the call of ctx has found dead or at
// fault. The caller holds mu.
func (s *supervisor) retire(ctx context.Context, p *process, why error) {
	p.kill(why)
	s.cur = nil
	if time.Since(p.started) > steadyLife {
		s.failures = 0
	}
	s.failures++
	s.lastErr = unavailable(why)
	s.pause()
	reason := "died"
	if e, ok := errors.AsType[*wire.Error](why); ok {
		reason = e.Class.String()
	}
	s.ended = reason
	s.cfg.Observer.HSMWorkerRestart(reason)
	p.mu.Lock()
	cause := p.cause
	p.mu.Unlock()
	s.cfg.Logger.Warn("hsm worker replaced", tracing.Fields(ctx, zap.Error(why), zap.NamedError("cause", cause),
		zap.Duration("lived", time.Since(p.started).Round(time.Millisecond)), zap.Int("in_a_row", s.failures))...)
}

// unavailable makes sure that callers see an error of the right class.
func unavailable(err error) error {
	if errors.Is(err, kek.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", kek.ErrUnavailable, err)
}

// startTimeout bounds load, login and proof together. Network HSMs take seconds.
const startTimeout = 60 * time.Second

// bringUp starts a worker and takes it through load, login and proof.
func (s *supervisor) bringUp(ctx context.Context) (*process, error) {
	begun := time.Now()
	if _, err := os.Stat(s.cfg.Module); err != nil {
		return nil, &wire.Error{
			Class: wire.ClassSetup, Text: fmt.Sprintf("load the PKCS#11 module: %v", err),
			Hint: "hsm.module must name the vendor's PKCS#11 library",
		}
	}
	pin, err := s.cfg.PIN.Read()
	if err != nil {
		return nil, fmt.Errorf("%w: read the PIN: %w", kek.ErrUnavailable, err)
	}
	defer pin.Wipe()
	p, err := startProcess(s.cfg, pinFinder(pin))
	if err != nil {
		return nil, unavailable(err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	err = s.prepare(ctx, p, pin)
	pin.Wipe() // now, and not when a worker that failed has ended
	if err != nil {
		if errors.Is(err, errWorkerGone) {
			<-p.dead // so that the cause is known
			p.mu.Lock()
			err = fmt.Errorf("%w: %w", errWorkerGone, p.cause)
			p.mu.Unlock()
		}
		p.stop()
		return nil, err
	}
	if s.serial != "" && s.serial != p.token.Serial {
		s.cfg.Logger.Error("another token answers to hsm.token now",
			tracing.Fields(ctx, zap.String("serial_before", s.serial), zap.String("serial", p.token.Serial))...)
	}
	s.serial = p.token.Serial
	s.cfg.Logger.Info("hsm worker ready", tracing.Fields(ctx,
		zap.Int("pid", p.cmd.Process.Pid), zap.String("library", p.token.Library), zap.String("token", p.token.Label),
		zap.String("serial", p.token.Serial), zap.Uint("slot", p.token.Slot), zap.Int("sessions", p.token.Sessions),
		zap.Duration("elapsed", time.Since(begun).Round(time.Millisecond)))...)
	return p, nil
}

func (s *supervisor) prepare(ctx context.Context, p *process, pin []byte) error {
	load := wire.LoadRequest{
		Module: s.cfg.Module, InitArgs: s.cfg.InitArgs, Token: s.cfg.Token, Ring: s.cfg.Ring, Sessions: s.cfg.Sessions,
	}
	var token wire.TokenInfo
	if _, err := p.call(ctx, wire.OpLoad, load, nil, &token); err != nil {
		return err
	}
	if token.LoginRequired {
		if err := s.latch.check(token, pin, s.cfg.AllowFinalPINTry, s.cfg.PIN.String()); err != nil {
			return err
		}
	}
	secret := pin
	if token.ProtectedPath {
		secret = nil
	}
	var login wire.LoginReply
	asked := time.Now()
	_, err := p.call(ctx, wire.OpLogin, wire.LoginRequest{Required: token.LoginRequired}, secret, &login)
	s.cfg.Observer.HSMOperation(wire.OpLogin.String(), resultOf(err), time.Since(asked), tracing.TraceID(ctx))
	if err != nil {
		if errors.Is(err, kek.ErrPIN) {
			return s.latch.set(token, pin, s.cfg.PIN.String(), err)
		}
		return err
	}
	s.latch.accept(token, pin)
	token.Sessions = login.Sessions
	p.token = token
	p.slots = make(chan struct{}, login.Sessions)
	return s.proveAgain(ctx, p)
}

// proveAgain repeats the last proof on a new worker, which also gives it its
// canary. A key that is gone or refused meanwhile is not this worker's fault:
// the ring watcher finds out and acts on it.
func (s *supervisor) proveAgain(ctx context.Context, p *process) error {
	last := s.proven()
	if last.id == "" {
		return nil
	}
	var reply wire.ProveReply
	_, err := p.call(ctx, wire.OpProve, wire.ProveRequest{ID: []byte(last.id), Mechanism: last.mech.String()}, nil, &reply)
	if err != nil && faulty(err) {
		return err
	}
	if err != nil {
		s.cfg.Logger.Warn("hsm key not proven again on the new worker",
			tracing.Fields(ctx, zap.Stringer("cka_id", last.id), zap.Error(err))...)
	}
	return nil
}

// close ends the worker and refuses further calls.
func (s *supervisor) close() {
	s.mu.Lock()
	s.closed = true
	p, st := s.cur, s.starting
	s.cur = nil
	s.mu.Unlock()
	s.stop()
	if st != nil {
		<-st.done
	}
	if p != nil {
		p.stop()
	}
}
