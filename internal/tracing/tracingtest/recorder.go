// Package tracingtest records spans in tests.
package tracingtest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"kekd/internal/tracing"
)

// Recorder keeps the spans that ended, all of them. It is safe for concurrent use.
type Recorder struct {
	// Tracer makes the spans.
	Tracer   *tracing.Tracer
	provider *sdktrace.TracerProvider
	memory   *tracetest.InMemoryExporter
}

// New makes a Recorder.
func New() *Recorder {
	memory := tracetest.NewInMemoryExporter()
	p := sdktrace.NewTracerProvider(sdktrace.WithSyncer(memory), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())))
	return &Recorder{Tracer: tracing.New(p, "test"), provider: p, memory: memory}
}

// Begin starts a span that stands for a request.
func (r *Recorder) Begin(ctx context.Context, name string) (context.Context, trace.Span) {
	return r.provider.Tracer("test").Start(ctx, name)
}

// Spans returns the spans that have ended so far.
func (r *Recorder) Spans() tracetest.SpanStubs { return r.memory.GetSpans() }

// Reset forgets the spans that have ended so far.
func (r *Recorder) Reset() { r.memory.Reset() }

// Named returns those with this name, the first to end first.
func (r *Recorder) Named(name string) tracetest.SpanStubs {
	return slices.DeleteFunc(r.Spans(), func(s tracetest.SpanStub) bool { return s.Name != name })
}

// One returns the only span with this name.
func (r *Recorder) One(tb testing.TB, name string) tracetest.SpanStub {
	tb.Helper()
	spans := r.Named(name)
	if len(spans) != 1 {
		tb.Fatalf("%d spans %s ended, want 1, among\n%s", len(spans), name, r.Tree())
	}
	return spans[0]
}

// Value returns an attribute as text, empty if the span has none.
func Value(s tracetest.SpanStub, key attribute.Key) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			return a.Value.String()
		}
	}
	return ""
}

// Tree spells the spans that have ended, one on a line with its result, below its
// parent, in the order of their starts.
func (r *Recorder) Tree() string {
	spans := r.Spans()
	slices.SortStableFunc(spans, func(a, b tracetest.SpanStub) int { return a.StartTime.Compare(b.StartTime) })
	known := map[trace.SpanID]bool{}
	for _, s := range spans {
		known[s.SpanContext.SpanID()] = true
	}
	var b strings.Builder
	var write func(parent trace.SpanID, depth int)
	write = func(parent trace.SpanID, depth int) {
		for _, s := range spans {
			id := s.Parent.SpanID()
			if id != parent && (parent.IsValid() || known[id]) {
				continue
			}
			fmt.Fprintf(&b, "%s%s %s\n", strings.Repeat("  ", depth), s.Name, Value(s, tracing.Result))
			write(s.SpanContext.SpanID(), depth+1)
		}
	}
	write(trace.SpanID{}, 0)
	return b.String()
}

// Without requires that none of the texts is in anything that the spans say.
func (r *Recorder) Without(tb testing.TB, texts ...string) {
	tb.Helper()
	for _, s := range r.Spans() {
		all := []string{s.Name, s.Status.Description}
		add := func(attributes []attribute.KeyValue) {
			for _, a := range attributes {
				all = append(all, string(a.Key), a.Value.String())
			}
		}
		add(s.Attributes)
		for _, e := range s.Events {
			all = append(all, e.Name)
			add(e.Attributes)
		}
		for _, l := range s.Links {
			add(l.Attributes)
		}
		for _, said := range all {
			for _, text := range texts {
				if strings.Contains(said, text) {
					tb.Errorf("span %s says %q, which holds %q", s.Name, said, text)
				}
			}
		}
	}
}
