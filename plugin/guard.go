package plugin

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/kek"
	"kekd/internal/tracing"
)

const (
	methodPrefix = "/v2.KeyManagementService/"
	methodStatus = "Status"
)

// maxUIDSize is the longest part of a request's uid that is logged, in bytes. It
// is a UUID where kube-apiserver sends it, anything elsewhere.
const maxUIDSize = 64

// guard stands around every call: the cap, the recovery from panics, metrics, log
// and trace. It is one interceptor on purpose, since a chain costs a closure per link
// and request.
type guard struct {
	log      *zap.Logger
	observer Observer
	clock    func() time.Time
	throttle *throttle
	auditor  Auditor         // nil for none
	tracer   *tracing.Tracer // nil for none
	max      int64           // Encrypts and Decrypts at once

	inFlight atomic.Int64
}

// unary is the grpc.UnaryServerInterceptor.
func (g *guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	start := g.clock()
	method := strings.TrimPrefix(info.FullMethod, methodPrefix)
	if method == methodStatus {
		return g.status(ctx, req, start, handler)
	}
	var span tracing.Span
	if g.tracer != nil {
		ctx, span = g.tracer.Request(ctx, info.FullMethod, incoming{ctx})
	}
	request := &kek.Request{Context: ctx, UID: uidOf(req), Verify: verifying(ctx)}
	resp, err := g.serve(request, req, method, handler)
	elapsed := g.clock().Sub(start)
	if g.auditor != nil {
		err = g.record(request, method, req, resp, err, elapsed)
		elapsed = g.clock().Sub(start) // the client waits for the record too
	}
	if err != nil {
		f := classify(err)
		finish(span, request, req, nil, f)
		if f.own && request.Verify {
			return nil, g.failVerify(request, method, req, err, f, elapsed)
		}
		return nil, g.fail(request, method, req, err, f, elapsed, span.TraceID())
	}
	finish(span, request, req, resp, failure{name: tracing.ResultOK})
	g.observer.Request(method, codes.OK, elapsed, span.TraceID())
	if entry := g.log.Check(zap.DebugLevel, "request served"); entry != nil {
		entry.Write(tracing.Fields(request, zap.String("method", method),
			zap.String("key_id", keyIDOf(req, resp)), zap.Duration("elapsed", elapsed))...)
	}
	return resp, nil
}

// status serves a Status. It has no span, no record and, when it succeeds, no line in
// the log: it answers from memory, and is asked for all the time.
func (g *guard) status(ctx context.Context, req any, start time.Time, handler grpc.UnaryHandler) (any, error) {
	resp, err := g.serve(ctx, req, methodStatus, handler)
	elapsed := g.clock().Sub(start)
	if err != nil {
		f := classify(err)
		if f.own && verifying(ctx) {
			return nil, g.failVerify(ctx, methodStatus, req, err, f, elapsed)
		}
		return nil, g.fail(ctx, methodStatus, req, err, f, elapsed, "")
	}
	g.observer.Request(methodStatus, codes.OK, elapsed, "")
	return resp, nil
}

// serve runs the handler within the cap. A panic becomes a panicError.
func (g *guard) serve(ctx context.Context, req any, method string, handler grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if v := recover(); v != nil {
			g.observer.Panic()
			resp, err = nil, newPanicError(v)
		}
	}()
	// Status answers from memory: it needs no cap, and must get through when
	// everything else is shed.
	if method == methodStatus {
		return handler(ctx, req)
	}
	if !g.enter() {
		return nil, errOverloaded
	}
	defer g.leave()
	return handler(ctx, req)
}

// enter takes a place among the requests in flight. It never counts above max,
// so a burst that is being shed cannot take a free place from anyone.
func (g *guard) enter() bool {
	for {
		n := g.inFlight.Load()
		if n >= g.max {
			return false
		}
		if g.inFlight.CompareAndSwap(n, n+1) {
			g.observer.InFlight(1)
			return true
		}
	}
}

func (g *guard) leave() {
	g.inFlight.Add(-1)
	g.observer.InFlight(-1)
}

// fail reports err, which f classifies, and returns what the client gets of it.
func (g *guard) fail(ctx context.Context, method string, req any, err error, f failure, elapsed time.Duration, traceID string) error {
	g.observer.Request(method, f.code, elapsed, traceID)
	keyID := keyIDOf(req, nil)
	if ok, dropped := g.throttle.allow(throttleKind{method, f.name}); ok {
		fields := tracing.Fields(ctx,
			zap.String("method", method), zap.String("class", f.name),
			zap.Stringer("code", f.code), zap.Duration("elapsed", elapsed), zap.Error(err))
		if keyID != "" {
			fields = append(fields, zap.String("key_id", keyID))
		}
		if dropped > 0 {
			fields = append(fields, zap.Uint64("left_out", dropped))
		}
		if p, ok := errors.AsType[*panicError](err); ok {
			fields = append(fields, zap.Strings("stack", p.stack))
		}
		g.log.Log(f.level, "request failed", fields...)
	}
	return status.Error(f.code, f.publicText(err, keyID))
}

// failVerify is fail for what a request of kekctl verify brings about itself, as it
// is meant to: nobody's failure.
func (g *guard) failVerify(ctx context.Context, method string, req any, err error, f failure, elapsed time.Duration) error {
	g.observer.Verified(method)
	keyID := keyIDOf(req, nil)
	if entry := g.log.Check(zap.DebugLevel, "request of kekctl verify failed"); entry != nil {
		entry.Write(tracing.Fields(ctx, zap.String("method", method), zap.String("class", f.name), zap.Stringer("code", f.code),
			zap.String("key_id", keyID), zap.Duration("elapsed", elapsed), zap.Error(err))...)
	}
	return status.Error(f.code, f.publicText(err, keyID))
}

// verifying reports whether a request comes from kekctl verify, or says so.
func verifying(ctx context.Context) bool {
	return len(metadata.ValueFromIncomingContext(ctx, kek.VerifyHeader)) > 0
}

// uidOf returns the uid that the client gave the request, for the log.
func uidOf(req any) string {
	if r, ok := req.(interface{ GetUid() string }); ok {
		return clip(r.GetUid(), maxUIDSize)
	}
	return ""
}

// keyIDOf returns the key_id of a Decrypt, which came with the request, or of an
// Encrypt, which goes with the response.
func keyIDOf(req, resp any) string {
	if r, ok := req.(*kmsapi.DecryptRequest); ok {
		return clip(r.GetKeyId(), maxEchoedKeyID)
	}
	if r, ok := resp.(*kmsapi.EncryptResponse); ok {
		return r.GetKeyId()
	}
	return ""
}

// panicError is a recovered panic.
type panicError struct {
	what  string
	stack []string // innermost first: function and line, no arguments
}

// maxStackDepth is how many frames of a panic are logged.
const maxStackDepth = 32

// newPanicError describes a panic and the stack of its caller, which must be the
// deferred function that recovered it. Nothing of the request gets in: the usual
// stack trace prints argument words, which may be a key's, and a panic's value
// may be anything.
func newPanicError(v any) *panicError {
	e := &panicError{what: fmt.Sprintf("panic of type %T", v)}
	if re, ok := v.(runtime.Error); ok {
		e.what = re.Error() // speaks of indexes and types
	}
	pcs := make([]uintptr, maxStackDepth)
	// Skip runtime.Callers, this function and the deferred one.
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	for {
		frame, more := frames.Next()
		// The runtime's own frames lie above the one that panicked and below all.
		if frame.Function != "" && !strings.HasPrefix(frame.Function, "runtime.") {
			e.stack = append(e.stack, frame.Function+" "+frame.File+":"+strconv.Itoa(frame.Line))
		}
		if !more {
			return e
		}
	}
}

func (e *panicError) Error() string { return e.what }
