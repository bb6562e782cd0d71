package hsm_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest/observer"

	"kekd/hsm"
	"kekd/internal/kek"
	"kekd/internal/tracing"
	"kekd/internal/tracing/tracingtest"
)

// tracedRig is a rig whose Token makes spans, with those of its setup forgotten.
func tracedRig(t *testing.T, configure ...func(*hsm.Config)) (*rig, *tracingtest.Recorder) {
	t.Helper()
	rec := tracingtest.New()
	r := newRig(t, nil, append(configure, func(c *hsm.Config) { c.Tracer = rec.Tracer })...)
	rec.Reset()
	return r, rec
}

const requestUID = "8a1c9d0e-5b7f-4c7e-9a41-0f4f3a3c2b10"

// request runs an operation in a trace, as the work of a request.
func request(ctx context.Context, rec *tracingtest.Recorder, op func(context.Context) error) error {
	ctx, span := rec.Begin(ctx, "request")
	defer span.End()
	return op(&kek.Request{Context: ctx, UID: requestUID})
}

// hasRequest requires that a line of the log says for which request it was written,
// and in which trace that is.
func hasRequest(t *testing.T, rec *tracingtest.Recorder, lines []observer.LoggedEntry) {
	t.Helper()
	if len(lines) != 1 {
		t.Fatalf("%d lines, want 1", len(lines))
	}
	fields, want := lines[0].ContextMap(), rec.One(t, "request").SpanContext.TraceID().String()
	if fields["uid"] != requestUID || fields["trace_id"] != want {
		t.Errorf("%q has uid %v and trace_id %v, want %s and %s", lines[0].Message, fields["uid"], fields["trace_id"], requestUID, want)
	}
}

func TestSpansOfAnOperation(t *testing.T) {
	t.Parallel()
	r, rec := tracedRig(t)
	must(t, request(t.Context(), rec, r.unwrap))
	want := "request \n  hsm.unwrap ok\n    hsm.session.await ok\n    hsm.call ok\n"
	if got := rec.Tree(); got != want {
		t.Errorf("spans:\n%swant:\n%s", got, want)
	}
	if n := tracingtest.Value(rec.One(t, "hsm.unwrap"), tracing.Attempts); n != "1" {
		t.Errorf("%s attempts, want 1", n)
	}
	if op := tracingtest.Value(rec.One(t, tracing.Call), tracing.Operation); op != "unwrap" {
		t.Errorf("the call's operation is %q", op)
	}
	rec.Without(t, string(r.seed), aad, string(r.blob))
}

// What nobody's request asked for begins a trace.
func TestSpansOfAProbe(t *testing.T) {
	t.Parallel()
	r, rec := tracedRig(t)
	must(t, r.token.Probe(t.Context(), r.id, r.mech))
	one := "hsm.probe ok\n  hsm.session.await ok\n  hsm.call ok\n"
	if got := rec.Tree(); got != one+one {
		t.Errorf("spans:\n%swant twice:\n%s", got, one)
	}
}

// A refusal names the function of the module and what it returned.
func TestSpanOfARefusal(t *testing.T) {
	t.Parallel()
	r, rec := tracedRig(t)
	r.blob[len(r.blob)-1] ^= 1
	if err := request(t.Context(), rec, r.unwrap); !errors.Is(err, kek.ErrCorrupt) {
		t.Fatalf("a damaged blob: %v, want ErrCorrupt", err)
	}
	for _, name := range []string{"hsm.unwrap", tracing.Call} {
		s := rec.One(t, name)
		if result := tracingtest.Value(s, tracing.Result); result != "request" {
			t.Errorf("%s has result %q", name, result)
		}
		if f, rv := tracingtest.Value(s, tracing.Function), tracingtest.Value(s, tracing.ReturnValue); f != "C_Decrypt" || !strings.HasPrefix(rv, "CKR_") {
			t.Errorf("%s blames %q, %q", name, f, rv)
		}
	}
}

// Waiting for a session stands apart from the call.
func TestSpansOfQueueing(t *testing.T) {
	t.Parallel()
	const slow = 300 * time.Millisecond
	r, rec := tracedRig(t, oneSession)
	r.faults(t, "C_Decrypt ms=300 n=1")
	var first sync.WaitGroup
	first.Go(func() {
		if err := r.unwrap(t.Context()); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the session is in use", func() bool { return r.watch.busy() == 1 })
	must(t, request(t.Context(), rec, r.wrap))
	first.Wait()
	op := rec.One(t, "hsm.wrap")
	var waited, called time.Duration
	for _, s := range rec.Spans() {
		if s.Parent.SpanID() != op.SpanContext.SpanID() {
			continue
		}
		switch s.Name {
		case tracing.SessionAwait:
			waited = s.EndTime.Sub(s.StartTime)
		case tracing.Call:
			called = s.EndTime.Sub(s.StartTime)
		}
	}
	if waited < slow/6 || called <= 0 || called > slow*9/10 {
		t.Errorf("waited for %s, called for %s, behind a call of %s", waited, called, slow)
	}
}

// A worker that is killed in a call: the operation is tried on another one, whose
// start is a trace of its own.
func TestSpansOfAKilledWorker(t *testing.T) {
	t.Parallel()
	r, rec := tracedRig(t)
	r.faults(t, "C_Decrypt crash n=1")
	must(t, request(t.Context(), rec, r.unwrap))
	op := rec.One(t, "hsm.unwrap")
	if n := tracingtest.Value(op, tracing.Attempts); n != "2" {
		t.Errorf("%s attempts, want 2", n)
	}
	if len(op.Events) != 1 || op.Events[0].Name != tracing.Replaced {
		t.Errorf("events %v, want that the worker was replaced", op.Events)
	}
	eventually(t, "the start ends", func() bool { return len(rec.Named(tracing.WorkerStart)) == 1 })
	start, await := rec.One(t, tracing.WorkerStart), rec.One(t, tracing.WorkerAwait)
	if start.Parent.IsValid() || start.SpanContext.TraceID() == op.SpanContext.TraceID() {
		t.Error("the start is part of the request's trace")
	}
	if len(start.Links) != 1 || !start.Links[0].SpanContext.Equal(op.SpanContext) {
		t.Errorf("the start has the links %v, want the operation", start.Links)
	}
	if len(await.Links) != 1 || !await.Links[0].SpanContext.Equal(start.SpanContext) || await.Parent.SpanID() != op.SpanContext.SpanID() {
		t.Errorf("who waits for the start has the links %v and the parent %s", await.Links, await.Parent.SpanID())
	}
	if reason := tracingtest.Value(start, tracing.Reason); reason != "died" {
		t.Errorf("the start's reason is %q", reason)
	}
	var steps []string
	for _, s := range rec.Named(tracing.Call) {
		if s.Parent.SpanID() == start.SpanContext.SpanID() {
			steps = append(steps, tracingtest.Value(s, tracing.Operation)+" "+tracingtest.Value(s, tracing.Result))
		}
	}
	if got := strings.Join(steps, ", "); got != "load ok, login ok, prove ok" {
		t.Errorf("the start's calls: %s", got)
	}
	hasRequest(t, rec, r.logs.FilterMessage("hsm worker replaced").All())
	rec.Without(t, string(r.seed), aad, string(r.blob))
}

// A caller who leaves ends its spans; the call goes on.
func TestSpansOfACallerWhoLeaves(t *testing.T) {
	t.Parallel()
	r, rec := tracedRig(t, impatient)
	r.faults(t, "C_Decrypt hang n=1")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- request(ctx, rec, r.unwrap) }()
	eventually(t, "the call is under way", func() bool { return r.watch.busy() == 1 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it was cancelled", err)
	}
	want := "request \n  hsm.unwrap canceled\n    hsm.session.await ok\n    hsm.call canceled\n"
	if got := rec.Tree(); got != want {
		t.Errorf("spans:\n%swant:\n%s", got, want)
	}
	const killed = "hsm call never returned, killing the worker"
	eventually(t, "the worker is killed", func() bool { return r.logs.FilterMessage(killed).Len() == 1 })
	hasRequest(t, rec, r.logs.FilterMessage(killed).All())
}
