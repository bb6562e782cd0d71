package hsm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"kekd/hsm/wire"
	"kekd/hsm/worker"
	"kekd/internal/kek"
	"kekd/internal/secret"
	"kekd/internal/tracing"
)

// errWorkerGone is the end of the worker while a call was in flight. The call
// may have taken effect.
var errWorkerGone = fmt.Errorf("%w: the HSM worker process ended", kek.ErrUnavailable)

// selfCommand runs this binary as a worker. /proc/self/exe is this very file
// even after the path was replaced by an upgrade.
func selfCommand() *exec.Cmd {
	return exec.Command("/proc/self/exe", worker.Arg) //nolint:gosec // G204: this very file; it lives until it is killed, not as long as a request
}

// process is one worker process. It is made by startProcess, serves calls until
// it dies or is killed, and is never used again.
type process struct {
	cmd     *exec.Cmd
	conn    *wire.Conn
	file    net.Conn
	started time.Time
	log     *zap.Logger
	watch   Observer
	tracer  *tracing.Tracer
	// timeout is how long a call may take before the process is killed.
	timeout time.Duration

	// token and slots are set before the process serves calls.
	token wire.TokenInfo
	// slots bounds the calls in flight to the sessions of the worker's pool. A
	// call whose caller gave up keeps its slot, as it keeps its session.
	slots chan struct{}
	// waiting counts the calls that wait for a slot.
	waiting atomic.Int64

	next atomic.Uint64

	mu sync.Mutex
	// pending are the calls that were sent and not answered. Guarded by mu.
	pending map[uint64]*pendingCall
	// cause is why the process ended, the first reason given. Guarded by mu.
	cause error

	// dead is closed when the process is reaped and all calls are answered.
	dead chan struct{}
}

type pendingCall struct {
	answer chan wire.Frame // holds one frame, so that the reader never waits
	timer  *time.Timer
}

// startProcess starts a worker that has loaded nothing yet. holdsSecret is asked
// of each line of the worker's output before it is logged.
func startProcess(cfg Config, holdsSecret func([]byte) bool) (*process, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socketpair for the HSM worker: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "worker socket")
	ours := os.NewFile(uintptr(fds[0]), "worker socket")
	conn, err := net.FileConn(ours)
	_ = ours.Close() // FileConn works on a copy
	if err != nil {
		_ = theirs.Close()
		return nil, fmt.Errorf("use the socketpair of the HSM worker: %w", err)
	}
	cmd := cfg.Command()
	cmd.ExtraFiles = []*os.File{theirs}
	// Command may have set variables that only tests need; a real worker has
	// hsm.env and nothing of ours.
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	for k, v := range cfg.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	output, writer, err := os.Pipe()
	if err != nil {
		_, _ = theirs.Close(), conn.Close()
		return nil, fmt.Errorf("make a pipe for the HSM worker's output: %w", err)
	}
	cmd.Stdout, cmd.Stderr = writer, writer
	err = cmd.Start()
	_, _ = theirs.Close(), writer.Close()
	if err != nil {
		_, _ = output.Close(), conn.Close()
		return nil, fmt.Errorf("start the HSM worker: %w", err)
	}
	p := &process{
		cmd: cmd, conn: wire.NewConn(conn), file: conn, started: time.Now(),
		log: cfg.Logger, watch: cfg.Observer, tracer: cfg.Tracer, timeout: cfg.CallTimeout,
		slots:   make(chan struct{}, 1), // load and login are one after the other
		pending: make(map[uint64]*pendingCall), dead: make(chan struct{}),
	}
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		logOutput(output, p.log, holdsSecret)
	}()
	go func() {
		p.receive()
		// The last words, which are there by now. What the module started may hold
		// the pipe open for ever, and is not waited for.
		_ = output.SetReadDeadline(time.Now().Add(lastWords))
		<-logged
		p.fail()
	}()
	return p, nil
}

// lastWords is how long the output of a process that ended is read for.
const lastWords = 100 * time.Millisecond

// alive reports whether the process may still answer.
func (p *process) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cause == nil
}

// kill ends the process for the given reason. It does not wait. False when a
// reason was given before.
func (p *process) kill(why error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cause != nil {
		return false
	}
	p.cause = why
	// An error means that it is dead already.
	_ = p.cmd.Process.Kill()
	return true
}

// receive hands answers to their callers until the socket ends, then reaps the
// process.
func (p *process) receive() {
	var why error
	for {
		f, err := p.conn.Receive()
		if err != nil {
			why = err
			break
		}
		p.mu.Lock()
		call := p.pending[f.ID]
		delete(p.pending, f.ID)
		p.mu.Unlock()
		if call == nil {
			f.Secret.Wipe()
			why = fmt.Errorf("%w: an answer to call %d, which nobody made", wire.ErrFrame, f.ID)
			break
		}
		p.finish(call)
		call.answer <- f
	}
	unasked := p.kill(fmt.Errorf("the worker's socket ended: %w", why))
	_ = p.file.Close()
	state := p.cmd.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if unasked && errors.Is(why, io.EOF) && state != nil {
		// It went by itself, and how it did is the better reason: "exit status 2" is
		// what Go makes of a crash in C, whose signal is in the worker's output.
		p.cause = fmt.Errorf("the worker ended: %w", state)
	}
}

// fail fails all calls that an ended process has left unanswered.
func (p *process) fail() {
	p.mu.Lock()
	left := p.pending
	p.pending = nil
	p.mu.Unlock()
	for _, call := range left {
		p.finish(call)
		close(call.answer)
	}
	close(p.dead)
}

// finish frees what an answered call held.
func (p *process) finish(call *pendingCall) {
	call.timer.Stop()
	p.freeSlot()
}

func (p *process) report() { p.watch.HSMSessions(len(p.slots), cap(p.slots), int(p.waiting.Load())) }

// call sends a request and waits for its answer, for ctx, or for the end of the
// process, whichever comes first. A secret in the answer belongs to the caller.
func (p *process) call(ctx context.Context, op wire.Kind, meta any, sec secret.Bytes, reply any) (secret.Bytes, error) {
	_, waits := p.tracer.Child(ctx, tracing.SessionAwait)
	err := p.takeSlot(ctx)
	waits.End(resultOf(err))
	if err != nil {
		return nil, err
	}
	_, span := p.tracer.Child(ctx, tracing.Call, tracing.Operation.String(op.String()))
	out, err := p.exchange(ctx, op, meta, sec, reply)
	endSpan(span, resultOf(err), err)
	return out, err
}

// exchange is call for who holds a slot, which goes with the answer.
func (p *process) exchange(ctx context.Context, op wire.Kind, meta any, sec secret.Bytes, reply any) (secret.Bytes, error) {
	id := p.next.Add(1)
	call := &pendingCall{answer: make(chan wire.Frame, 1)}
	p.mu.Lock()
	if p.pending == nil || p.cause != nil {
		p.mu.Unlock()
		p.freeSlot()
		return nil, errWorkerGone
	}
	call.timer = time.AfterFunc(p.timeout, func() {
		p.log.Error("hsm call never returned, killing the worker",
			tracing.Fields(ctx, zap.Stringer("op", op), zap.Duration("after", p.timeout))...)
		p.kill(fmt.Errorf("%s did not return within %s", op, p.timeout))
	})
	p.pending[id] = call
	p.mu.Unlock()
	if err := p.conn.Send(id, op, meta, sec); err != nil {
		// The reader fails the call when it meets the same end.
		p.kill(fmt.Errorf("send %s: %w", op, err))
	}
	select {
	case f, ok := <-call.answer:
		if !ok {
			return nil, errWorkerGone
		}
		return take(f, reply)
	case <-ctx.Done():
		if changes(op) {
			// The worker begins nothing after the caller's deadline, so that the answer is
			// near, and it tells the caller what came of the change.
			grace := time.NewTimer(answerGrace)
			defer grace.Stop()
			select {
			case f, ok := <-call.answer:
				if !ok {
					return nil, errWorkerGone
				}
				return take(f, reply)
			case <-grace.C:
			}
		}
		// The call goes on and keeps its slot; its answer may hold a secret.
		go func() {
			if f, ok := <-call.answer; ok {
				f.Secret.Wipe()
			}
		}()
		return nil, gaveUp(ctx, "wait for the HSM to "+op.String())
	}
}

// answerGrace is how long the answer to a change is waited for after its caller's
// time is up.
const answerGrace = 2 * time.Second

// changes reports whether an operation changes the ring.
func changes(op wire.Kind) bool {
	switch op {
	case wire.OpSetUse, wire.OpDestroy, wire.OpCreate, wire.OpImport:
		return true
	}
	return false
}

// takeSlot waits for a free session.
func (p *process) takeSlot(ctx context.Context) error {
	select {
	case p.slots <- struct{}{}:
	default:
		p.waiting.Add(1)
		defer p.waiting.Add(-1)
		p.report()
		select {
		case p.slots <- struct{}{}:
		case <-p.dead:
			return errWorkerGone
		case <-ctx.Done():
			return gaveUp(ctx, "wait for a free session")
		}
	}
	p.report()
	return nil
}

func (p *process) freeSlot() {
	<-p.slots
	p.report()
}

// gaveUp is the error of a caller whose context ended. A deadline that passed
// speaks against the HSM, a caller who went away does not.
func gaveUp(ctx context.Context, what string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%w: %s: %w", kek.ErrUnavailable, what, ctx.Err())
	}
	return fmt.Errorf("%s: %w", what, ctx.Err())
}

// take decodes an answer. One that the worker could not have meant is as good as
// none: the vendor's code shares the worker's memory, and a worker that talks
// nonsense is replaced.
func take(f wire.Frame, reply any) (secret.Bytes, error) {
	var err error
	switch f.Kind {
	case wire.ReplyOK:
		if reply != nil {
			err = f.Decode(reply)
		}
		if err == nil {
			return f.Secret, nil
		}
	case wire.ReplyError:
		e := new(wire.Error)
		if err = f.Decode(e); err == nil {
			f.Secret.Wipe()
			return nil, e
		}
	default:
		err = fmt.Errorf("%w: %s is no answer", wire.ErrFrame, f.Kind)
	}
	f.Secret.Wipe()
	return nil, fmt.Errorf("%w: %w", errWorkerGone, err)
}

// stopGrace is how long a worker may take to finalise the module.
const stopGrace = 2 * time.Second

// stop ends the process in good order where that is possible, and waits.
func (p *process) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	// Whether it answers or not, it is gone afterwards.
	_, _ = p.call(ctx, wire.OpClose, nil, nil, nil)
	p.kill(errors.New("kekd stops"))
	<-p.dead
}
