package tracing

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"kekd/internal/kek"
)

// Scope is the name of the instrumentation.
const Scope = "kekd"

// Tracer starts spans. It is safe for concurrent use. A nil Tracer starts none.
type Tracer struct{ tracer trace.Tracer }

// New returns a Tracer of a provider. version is that of kekd.
func New(p trace.TracerProvider, version string) *Tracer {
	return &Tracer{p.Tracer(Scope, trace.WithInstrumentationVersion(version))}
}

// Request starts the span of a gRPC request of this full method ("/service/method").
// Its parent is the client's span, where the client has sent one (W3C Trace Context,
// as headers has it); otherwise it begins a trace.
func (t *Tracer) Request(ctx context.Context, fullMethod string, headers propagation.TextMapCarrier) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	method := fullMethod
	if len(method) > 0 && method[0] == '/' {
		method = method[1:]
	}
	ctx = propagation.TraceContext{}.Extract(ctx, headers)
	ctx, span := t.tracer.Start(ctx, method, trace.WithSpanKind(trace.SpanKindServer))
	s := of(span)
	s.Set(rpcSystem.String("grpc"), rpcMethod.String(method))
	return ctx, s
}

// Child starts a span below the one of ctx. Where ctx has none that is recorded,
// neither is this one.
func (t *Tracer) Child(ctx context.Context, name string, attributes ...attribute.KeyValue) (context.Context, Span) {
	if t == nil || !trace.SpanContextFromContext(ctx).IsSampled() {
		return ctx, Span{}
	}
	return t.start(ctx, name, attributes)
}

// Operation is Child, but begins a trace where ctx has none: for what requests and
// background work both do.
func (t *Tracer) Operation(ctx context.Context, name string, attributes ...attribute.KeyValue) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() && !sc.IsSampled() {
		return ctx, Span{}
	}
	return t.start(ctx, name, attributes)
}

// Root starts a span that begins a trace of its own, with a link to the span of
// cause if that is recorded. The two contexts may be the same.
func (t *Tracer) Root(ctx, cause context.Context, name string, attributes ...attribute.KeyValue) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	options := []trace.SpanStartOption{trace.WithNewRoot(), trace.WithAttributes(attributes...)}
	if sc := trace.SpanContextFromContext(cause); sc.IsSampled() {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: sc}))
	}
	ctx, span := t.tracer.Start(ctx, name, options...)
	return ctx, of(span)
}

func (t *Tracer) start(ctx context.Context, name string, attributes []attribute.KeyValue) (context.Context, Span) {
	ctx, span := t.tracer.Start(ctx, name, trace.WithAttributes(attributes...))
	return ctx, of(span)
}

// Span is a span that is being recorded; the zero value is none, and does nothing.
// It is safe for concurrent use.
type Span struct{ span trace.Span }

// of returns no Span where nothing is recorded.
func of(s trace.Span) Span {
	if !s.IsRecording() {
		return Span{}
	}
	return Span{s}
}

// From returns the span of ctx.
func From(ctx context.Context) Span { return of(trace.SpanFromContext(ctx)) }

// Recorded reports whether there is a span at all.
func (s Span) Recorded() bool { return s.span != nil }

// Context is what a link to the span needs; not valid for none.
func (s Span) Context() trace.SpanContext {
	if s.span == nil {
		return trace.SpanContext{}
	}
	return s.span.SpanContext()
}

// TraceID returns the id of the span's trace in hexadecimal, empty for none.
func (s Span) TraceID() string {
	if s.span == nil {
		return ""
	}
	return s.span.SpanContext().TraceID().String()
}

// Set sets attributes.
func (s Span) Set(attributes ...attribute.KeyValue) {
	if s.span != nil {
		s.span.SetAttributes(attributes...)
	}
}

// Event notes that something happened.
func (s Span) Event(name string, attributes ...attribute.KeyValue) {
	if s.span != nil {
		s.span.AddEvent(name, trace.WithAttributes(attributes...))
	}
}

// Link adds a link to another span, unless that is not recorded.
func (s Span) Link(to trace.SpanContext) {
	if s.span != nil && to.IsSampled() {
		s.span.AddLink(trace.Link{SpanContext: to})
	}
}

// ResultOK is the Result of what worked.
const ResultOK = "ok"

// End ends the span with its Result. All but ResultOK count as an error.
func (s Span) End(result string) {
	if s.span == nil {
		return
	}
	s.EndAs(result, result != ResultOK)
}

// EndAs is End where a result is not an error just because it is not ResultOK.
func (s Span) EndAs(result string, failed bool) {
	if s.span == nil {
		return
	}
	s.span.SetAttributes(Result.String(result))
	if failed {
		s.span.SetStatus(codes.Error, "")
	}
	s.span.End()
}

// TraceID returns the id of the trace that ctx is part of in hexadecimal; empty
// where none is recorded.
func TraceID(ctx context.Context) string {
	if sc := trace.SpanContextFromContext(ctx); sc.IsSampled() {
		return sc.TraceID().String()
	}
	return ""
}

// Fields are the fields that belong into every line of the log about what ctx was
// made for: the uid of the request, and the trace_id where it is recorded.
func Fields(ctx context.Context, more ...zap.Field) []zap.Field {
	fields := make([]zap.Field, 0, len(more)+2)
	if uid := kek.UID(ctx); uid != "" {
		fields = append(fields, zap.String("uid", uid))
	}
	if id := TraceID(ctx); id != "" {
		fields = append(fields, zap.String("trace_id", id))
	}
	return append(fields, more...)
}
