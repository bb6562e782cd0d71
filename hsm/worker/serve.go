package worker

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"

	"kekd/hsm/wire"
	"kekd/internal/kek"
	"kekd/internal/secret"
)

// Arg is the only argument of a process that is a worker.
const Arg = "hsm-worker"

// socketFD is the inherited end of the socketpair.
const socketFD = 3

// Is reports whether this process was started as a worker.
func Is(args []string) bool { return len(args) == 2 && args[1] == Arg }

// Main is the whole life of a worker process; it returns its exit code. It ends
// when the parent asks for it or is gone.
func Main(open Opener) int {
	// Before the process is hardened: its files in /proc are root's from then on.
	if err := volunteer("/proc/self/oom_score_adj"); err != nil {
		fmt.Fprintln(os.Stderr, "hsm worker: offer itself to the out-of-memory killer:", err)
	}
	if err := secret.HardenProcess(); err != nil {
		fmt.Fprintln(os.Stderr, "harden the worker process:", err)
		return 1
	}
	f := os.NewFile(socketFD, "worker socket")
	conn, err := net.FileConn(f)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kekd's worker process is started by kekd itself, not by hand")
		return 2
	}
	_ = f.Close() // FileConn works on a copy
	if err := Serve(conn, New(open)); err != nil {
		fmt.Fprintln(os.Stderr, "hsm worker:", err)
		return 1
	}
	return 0
}

// Serve answers requests until the parent asks to close, or is gone. Each runs
// in its own goroutine; the parent keeps their number at the pool's size.
func Serve(rw io.ReadWriter, w *Worker) error {
	conn := wire.NewConn(rw)
	var calls sync.WaitGroup
	for {
		f, err := conn.Receive()
		switch {
		case errors.Is(err, io.EOF):
			// The parent is gone. Calls may hang in the module, so nothing is
			// waited for or finalised.
			return nil
		case err != nil:
			return err
		}
		if f.Kind == wire.OpClose {
			calls.Wait()
			w.Close()
			return conn.Send(f.ID, wire.ReplyOK, nil, nil)
		}
		calls.Go(func() {
			if err := answer(conn, w, f); err != nil {
				// Without an answer the parent would wait for its deadline.
				fmt.Fprintln(os.Stderr, "hsm worker:", err)
			}
		})
	}
}

// answer runs one request and sends the reply.
func answer(conn *wire.Conn, w *Worker, f wire.Frame) error {
	defer f.Secret.Wipe()
	meta, sec, err := w.dispatch(f)
	defer sec.Wipe()
	if err != nil {
		e, ok := errors.AsType[*wire.Error](err)
		if !ok {
			e = &wire.Error{Class: wire.ClassToken, Text: err.Error()}
		}
		return conn.Send(f.ID, wire.ReplyError, e, nil)
	}
	return conn.Send(f.ID, wire.ReplyOK, meta, sec)
}

// dispatch runs one request. A panic in here is a bug or a module's garbage;
// it costs this worker and nothing else, so it is reported as the token's fault.
func (w *Worker) dispatch(f wire.Frame) (meta any, sec secret.Bytes, err error) {
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(os.Stderr, "hsm worker: panic in %s: %v\n%s", f.Kind, p, debug.Stack())
			err = &wire.Error{Class: wire.ClassToken, Text: fmt.Sprintf("the worker panicked in %s", f.Kind)}
		}
	}()
	if f.Kind != wire.OpLoad && w.module == nil || f.Kind > wire.OpLogin && w.pool == nil {
		return nil, nil, fmt.Errorf("%s before load and login", f.Kind)
	}
	switch f.Kind {
	case wire.OpLoad:
		return decoded(f, w.Load)
	case wire.OpLogin:
		return decoded(f, func(req wire.LoginRequest) (wire.LoginReply, error) {
			n, err := w.Login(f.Secret, req.Required)
			return wire.LoginReply{Sessions: n}, err
		})
	case wire.OpKeys:
		reply, err := w.Keys()
		return reply, nil, err
	case wire.OpCreate:
		return decoded(f, w.Create)
	case wire.OpProve:
		return decoded(f, w.Prove)
	case wire.OpSetUse:
		return decoded(f, w.SetUse)
	case wire.OpDestroy:
		return decoded(f, func(req wire.DestroyRequest) (struct{}, error) { return struct{}{}, w.Destroy(req) })
	case wire.OpAbandon:
		return decoded(f, w.Abandon)
	case wire.OpImportState:
		reply, err := w.ImportState()
		return reply, nil, err
	case wire.OpImportBegin:
		return decoded(f, w.ImportBegin)
	case wire.OpImport:
		return decoded(f, w.Import)
	case wire.OpImportAbort:
		return decoded(f, func(req wire.ImportAbortRequest) (struct{}, error) {
			return struct{}{}, w.ImportAbort(kek.ID(req.ID))
		})
	case wire.OpEvidence:
		reply, err := w.Evidence()
		return reply, nil, err
	case wire.OpAuditKeys:
		keys, err := w.AuditKeys()
		return wire.AuditKeysReply{Keys: keys}, nil, err
	case wire.OpAuditCreate:
		return decoded(f, w.AuditCreate)
	case wire.OpAuditSign:
		return decoded(f, w.AuditSign)
	case wire.OpWrap:
		return decoded(f, func(req wire.WrapRequest) (wire.WrapReply, error) { return w.Wrap(req, f.Secret) })
	case wire.OpUnwrap:
		var req wire.UnwrapRequest
		if err := f.Decode(&req); err != nil {
			return nil, nil, err
		}
		sec, err := w.Unwrap(req)
		return nil, sec, err
	}
	return nil, nil, fmt.Errorf("%w: %s is no request", wire.ErrFrame, f.Kind)
}

// decoded runs an operation whose request and reply are metadata alone.
func decoded[Q, R any](f wire.Frame, op func(Q) (R, error)) (any, secret.Bytes, error) {
	var req Q
	if err := f.Decode(&req); err != nil {
		return nil, nil, err
	}
	reply, err := op(req)
	return reply, nil, err
}

func isClass(err error, c wire.Class) bool {
	e, ok := errors.AsType[*wire.Error](err)
	return ok && e.Class == c
}
