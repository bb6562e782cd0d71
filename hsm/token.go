package hsm

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"time"

	"go.uber.org/zap"

	"kekd/hsm/wire"
	"kekd/internal/kek"
	"kekd/internal/secret"
	"kekd/internal/tracing"
)

// PINSource is where the PIN comes from. String names it without the content.
type PINSource interface {
	Read() (secret.Bytes, error)
	String() string
}

// Observer learns of what happens, for metrics. Its methods must not block.
type Observer interface {
	// HSMOperation is one operation as the caller of Token saw it. The result is
	// "ok" or an error class; traceID is the id of its trace in hexadecimal, empty if
	// none is recorded.
	HSMOperation(op, result string, elapsed time.Duration, traceID string)
	// HSMWorkerRestart is a worker that came to its end other than by Close.
	HSMWorkerRestart(reason string)
	// HSMWorkerStartFailed is a worker that did not come up: the module would not
	// load, the login was refused, the key not proven again. The reason is an error
	// class, as HSMOperation's results are.
	HSMWorkerStartFailed(reason string)
	// HSMSessions is how many sessions have a call in flight, of how many that the
	// token gave, and how many calls wait for one.
	HSMSessions(inUse, limit, waiting int)
	// HSMLatched tells whether the PIN is latched.
	HSMLatched(latched bool)
}

// Config is all that a Token needs. Every field without a remark is required.
type Config struct {
	// Module is the absolute path of the vendor's PKCS#11 library.
	Module string
	// InitArgs is handed to C_Initialize as pReserved; empty for nearly all modules.
	InitArgs string
	// Env is the worker's whole environment.
	Env map[string]string
	// Token selects exactly one token.
	Token wire.Selector
	PIN   PINSource
	// Sessions is the size of the session pool, from 1 to 64.
	Sessions int
	// CallTimeout is how long a call into the module may take before the worker
	// is killed.
	CallTimeout time.Duration
	// Mechanism pins aes-gcm, aes-kwp or aes-cbc-hmac. Empty takes the first that
	// is proven to work.
	Mechanism string
	// AllowFinalPINTry logs in although the token says that one more wrong PIN
	// locks it.
	AllowFinalPINTry bool
	// Ring is the key ring's label.
	Ring string
	// Latch keeps the PIN latch across restarts.
	Latch  LatchStore
	Logger *zap.Logger
	// Observer may be nil.
	Observer Observer
	// Tracer is nil for none.
	Tracer *tracing.Tracer
	// Command makes the worker's command; nil re-executes this binary.
	Command func() *exec.Cmd
}

// Token is the HSM's token. It is safe for concurrent use, and satisfies
// keycache.Wrapper. Making one does nothing yet: the worker starts with the
// first call.
//
// Errors wrap the sentinels of package kek; the detail is a *wire.Error where
// the module was asked.
type Token struct {
	cfg Config
	sup *supervisor

	mu sync.Mutex
	// proven is the key and mechanism of the last successful Prove. A new worker
	// proves them again before it serves. Guarded by mu.
	proven provenKey
}

type provenKey struct {
	id   kek.ID
	mech kek.Mechanism
}

// New makes a Token.
func New(cfg Config) *Token {
	if cfg.Observer == nil {
		cfg.Observer = noObserver{}
	}
	if cfg.Command == nil {
		cfg.Command = selfCommand
	}
	t := &Token{cfg: cfg}
	t.sup = newSupervisor(cfg, t.lastProven)
	return t
}

func (t *Token) lastProven() provenKey {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.proven
}

// Close ends the worker. Calls in flight fail.
func (t *Token) Close() { t.sup.close() }

// Info describes the token; it starts the worker if none runs.
func (t *Token) Info(ctx context.Context) (wire.TokenInfo, error) {
	p, err := t.sup.get(ctx)
	if err != nil {
		return wire.TokenInfo{}, err
	}
	return p.token, nil
}

// Describe returns what the running worker said of the token, without touching
// anything; false when no worker runs.
func (t *Token) Describe() (wire.TokenInfo, bool) {
	p := t.sup.current()
	if p == nil {
		return wire.TokenInfo{}, false
	}
	return p.token, true
}

// WorkerPID returns the running worker's process id; 0 when none runs.
func (t *Token) WorkerPID() int {
	p := t.sup.current()
	if p == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Keys lists the ring's keys with their attributes, in no order and with no
// state but Disabled or Scheduled: BuildRing derives the rest.
func (t *Token) Keys(ctx context.Context) ([]kek.Info, error) {
	var reply wire.KeysReply
	if _, err := t.do(ctx, wire.OpKeys, retry, struct{}{}, nil, &reply); err != nil {
		return nil, fmt.Errorf("list the key ring: %w", err)
	}
	keys := make([]kek.Info, 0, len(reply.Keys))
	for _, k := range reply.Keys {
		keys = append(keys, describeKey(t.cfg.Ring, k))
	}
	return keys, nil
}

// Prove finds the mechanism that works with a key, by using it, and remembers
// both. The strings say what was passed over and why. A mechanism that was found
// earlier is not silently replaced by another one.
func (t *Token) Prove(ctx context.Context, id kek.ID) (kek.Mechanism, []string, error) {
	reply, err := t.prove(ctx, wire.ProveRequest{ID: []byte(id), Mechanism: t.cfg.Mechanism})
	if err != nil {
		return 0, nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.proven.id == id && t.proven.mech != reply.Mechanism {
		return 0, nil, fmt.Errorf("prove key %s: %w: the token does %s now, it did %s before", id, kek.ErrRefused, reply.Mechanism, t.proven.mech)
	}
	t.proven = provenKey{id, reply.Mechanism}
	return reply.Mechanism, reply.Tried, nil
}

// Try is Prove for a key that is not in use yet, and may never be: nothing is
// remembered.
func (t *Token) Try(ctx context.Context, id kek.ID) (kek.Mechanism, error) {
	reply, err := t.prove(ctx, wire.ProveRequest{ID: []byte(id), Mechanism: t.cfg.Mechanism, Trial: true})
	return reply.Mechanism, err
}

func (t *Token) prove(ctx context.Context, req wire.ProveRequest) (wire.ProveReply, error) {
	var reply wire.ProveReply
	if _, err := t.do(ctx, wire.OpProve, retry, req, nil, &reply); err != nil {
		return wire.ProveReply{}, fmt.Errorf("prove key %s: %w", kek.ID(req.ID), err)
	}
	return reply, nil
}

// Create makes a KEK with this CKA_ID on the token and proves it. It is never
// tried twice. When it fails it leaves no key, or the error is a *LeftoverError: the
// key could not be removed or looked for, or the answer was lost and a node may have
// taken up the key already, since it is active.
func (t *Token) Create(ctx context.Context, id kek.ID) (kek.Info, kek.Mechanism, error) {
	reply, err := t.add(ctx, wire.OpCreate, id, wire.CreateRequest{ID: []byte(id), Mechanism: t.cfg.Mechanism})
	if err != nil {
		return kek.Info{}, 0, fmt.Errorf("create key %s: %w", id, err)
	}
	return describeKey(t.cfg.Ring, reply.Key), reply.Proof.Mechanism, nil
}

// SetUse changes a key's state on the token, where all nodes read it, and returns
// the key as read back. The label marks the state. Where the token allows it, the
// rights to encrypt and decrypt are taken from a key out of use as well, so that
// other programs are kept from it too.
//
// seen is the key as Keys returned it when the change was decided. If the label, the
// usage bits or the check value on the token are different now, nothing is changed
// and the error wraps kek.ErrChanged. Two exceptions: what the token does not tell
// (a usage bit, the check value 000000) is not compared, and a key that already is
// in the wanted state, or half way from what was seen, is not a conflict. So SetUse can
// be repeated after a lost answer, and two callers that want the same both succeed.
//
// No step begins after ctx's deadline; a change that would come too late fails with
// an error that wraps context.DeadlineExceeded and not kek.ErrUnavailable.
//
// PKCS#11 has no compare-and-swap, and no lock that two hosts share. Two processes
// that change one key within the same millisecond can both find it as seen. Each
// reads back what it has set and reports kek.ErrChanged if it finds something else,
// so at least one of the two learns of it unless the last change falls between the
// other's last reading and its return. An flock on one host would not help those on
// another, and would have to know all programs on this one.
func (t *Token) SetUse(ctx context.Context, seen kek.Info, use Use) (kek.Info, error) {
	var reply wire.SetUseReply
	req := wire.SetUseRequest{
		ID: []byte(seen.ID), Seen: asSeen(seen), NotAfter: notAfter(ctx),
		Label: t.cfg.Ring + use.suffix, Usable: use == Enabled(),
	}
	if _, err := t.do(ctx, wire.OpSetUse, retry, req, nil, &reply); err != nil {
		return kek.Info{}, fmt.Errorf("change the state of key %s: %w", seen.ID, err)
	}
	return describeKey(t.cfg.Ring, reply.Key), nil
}

// Destroy destroys a KEK and the HMAC key beside it for good, and makes sure that
// they are gone. It is never tried twice: when the answer is lost, the key may be
// gone. What was left half done is finished by another call.
//
// seen and ctx's deadline are conditions as in SetUse, with the same limit: a change
// that another process makes between the worker's last reading and C_DestroyObject,
// which is the next call on the same session, is not noticed. A KEK that is gone
// already, with its HMAC key left, is not a conflict.
func (t *Token) Destroy(ctx context.Context, seen kek.Info) error {
	req := wire.DestroyRequest{ID: []byte(seen.ID), Seen: asSeen(seen), NotAfter: notAfter(ctx)}
	if _, err := t.do(ctx, wire.OpDestroy, noRetry, req, nil, nil); err != nil {
		return fmt.Errorf("destroy key %s: %w", seen.ID, err)
	}
	return nil
}

// asSeen is what a change is conditional on.
func asSeen(k kek.Info) wire.Seen {
	return wire.Seen{Label: k.Attributes.Label, Encrypt: k.Attributes.Encrypt, Decrypt: k.Attributes.Decrypt, CheckValue: k.CheckValue}
}

// notAfter is ctx's deadline for the worker.
func notAfter(ctx context.Context) wire.Deadline {
	d, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	return wire.Until(time.Until(d))
}

// Wrap encrypts plaintext under a KEK, bound to the AAD, which must not be empty.
func (t *Token) Wrap(ctx context.Context, id kek.ID, m kek.Mechanism, plaintext secret.Bytes, aad []byte) ([]byte, error) {
	var reply wire.WrapReply
	req := wire.WrapRequest{ID: []byte(id), Mechanism: m, AAD: aad}
	if _, err := t.do(ctx, wire.OpWrap, retry, req, plaintext, &reply); err != nil {
		return nil, fmt.Errorf("wrap under key %s: %w", id, err)
	}
	return reply.Blob, nil
}

// Unwrap is the reverse of Wrap. The caller owns the result and wipes it.
func (t *Token) Unwrap(ctx context.Context, id kek.ID, m kek.Mechanism, blob, aad []byte) (secret.Bytes, error) {
	req := wire.UnwrapRequest{ID: []byte(id), Mechanism: m, AAD: aad, Blob: blob}
	plain, err := t.do(ctx, wire.OpUnwrap, retry, req, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("unwrap under key %s: %w", id, err)
	}
	return plain, nil
}

// probeAAD marks what a probe encrypts. Nothing that is stored has this AAD.
const probeAAD = "kekd/v1/probe"

// Probe encrypts and decrypts a random value under a KEK and compares. Both
// directions, since the right to decrypt can be lost alone.
func (t *Token) Probe(ctx context.Context, id kek.ID, m kek.Mechanism) error {
	plain := make(secret.Bytes, 32)
	if _, err := rand.Read(plain); err != nil {
		return err
	}
	defer plain.Wipe()
	var reply wire.WrapReply
	wrap := wire.WrapRequest{ID: []byte(id), Mechanism: m, AAD: []byte(probeAAD)}
	if _, err := t.observe(ctx, "probe", wire.OpWrap, retry, wrap, plain, &reply); err != nil {
		return fmt.Errorf("probe key %s: %w", id, err)
	}
	unwrap := wire.UnwrapRequest{ID: []byte(id), Mechanism: m, AAD: []byte(probeAAD), Blob: reply.Blob}
	back, err := t.observe(ctx, "probe", wire.OpUnwrap, retry, unwrap, nil, nil)
	if err != nil {
		return fmt.Errorf("probe key %s: %w", id, err)
	}
	defer back.Wipe()
	if subtle.ConstantTimeCompare(plain, back) != 1 {
		return fmt.Errorf("probe key %s: %w: it decrypted to something else than was encrypted", id, kek.ErrUnavailable)
	}
	return nil
}

// repeat says whether a call may be done again on a new worker.
type repeat bool

const (
	retry   repeat = true
	noRetry repeat = false
)

// do runs a call under the operation's own name.
func (t *Token) do(ctx context.Context, op wire.Kind, again repeat, meta any, sec secret.Bytes, reply any) (secret.Bytes, error) {
	return t.observe(ctx, op.String(), op, again, meta, sec, reply)
}

// observe runs a call, on a second worker if the first one failed under it, and
// reports how it went.
func (t *Token) observe(ctx context.Context, name string, op wire.Kind, again repeat, meta any, sec secret.Bytes, reply any) (secret.Bytes, error) {
	start := time.Now()
	ctx, span := t.cfg.Tracer.Operation(ctx, tracing.HSM(name))
	out, err := t.attempt(ctx, span, op, again, meta, sec, reply)
	result := resultOf(err)
	endSpan(span, result, err)
	if errors.Is(err, kek.ErrCorrupt) && kek.Verifying(ctx) {
		result = "verify" // kekctl verify sent damaged input, which is not a failure of the HSM
	}
	t.cfg.Observer.HSMOperation(name, result, time.Since(start), span.TraceID())
	return out, err
}

// endSpan ends a span of something that the HSM was asked.
func endSpan(span tracing.Span, result string, err error) {
	if e, ok := errors.AsType[*wire.Error](err); ok && span.Recorded() && e.Call != "" {
		span.Set(tracing.Function.String(e.Call), tracing.ReturnValue.String(wire.RVName(e.RV)))
	}
	span.End(result)
}

func (t *Token) attempt(
	ctx context.Context, span tracing.Span, op wire.Kind, again repeat, meta any, sec secret.Bytes, reply any,
) (secret.Bytes, error) {
	var first error
	for tries := 1; ; tries++ {
		span.Set(tracing.Attempts.Int(tries))
		p, err := t.sup.get(ctx)
		if err != nil && tries == 1 && (faulty(err) || isClass(err, wire.ClassSetup)) && ctx.Err() == nil {
			// The worker died while it started, or found no token, as SoftHSM has it for
			// a moment while another process logs in. Nothing was asked yet.
			first = err
			continue
		}
		if _, paused := errors.AsType[*pausedError](err); paused && first != nil {
			return nil, first // there was a try, and this is what came of it
		}
		if err != nil {
			return nil, err
		}
		out, err := p.call(ctx, op, meta, sec, reply)
		if err == nil || !faulty(err) {
			return out, err
		}
		t.sup.replace(ctx, p, err)
		span.Event(tracing.Replaced)
		if !again || tries == 2 || ctx.Err() != nil {
			return nil, err
		}
		first = err
	}
}

// faulty reports whether an error means that the worker must be replaced.
func faulty(err error) bool {
	if _, paused := errors.AsType[*pausedError](err); paused {
		return false // there is none
	}
	if errors.Is(err, errWorkerGone) {
		return true
	}
	return isClass(err, wire.ClassToken)
}

func isClass(err error, c wire.Class) bool {
	e, ok := errors.AsType[*wire.Error](err)
	return ok && e.Class == c
}

// resultOf is an error's class as the metrics spell it.
func resultOf(err error) string {
	if err == nil {
		return "ok"
	}
	if _, paused := errors.AsType[*pausedError](err); paused {
		return "unavailable" // nobody was asked
	}
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e.Class.String()
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, kek.ErrPIN):
		return wire.ClassPIN.String()
	}
	return "unavailable"
}

type noObserver struct{}

func (noObserver) HSMOperation(string, string, time.Duration, string) {}
func (noObserver) HSMWorkerRestart(string)                            {}
func (noObserver) HSMWorkerStartFailed(string)                        {}
func (noObserver) HSMSessions(int, int, int)                          {}
func (noObserver) HSMLatched(bool)                                    {}
