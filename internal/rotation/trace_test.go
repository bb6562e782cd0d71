package rotation

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"kekd/internal/kek"
	"kekd/internal/tracing"
	"kekd/internal/tracing/tracingtest"
)

// A look, the proof of a pending key, the switch and the renewal of the seed each
// begin a trace, with a link to the look that they are part of.
func TestSpans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := tracingtest.New()
		w := &world{keys: []kek.Info{key("a", -time.Hour), key("b", time.Hour)}}
		v, logs, audit := w.watcher(t)
		v.cfg.Tracer = rec.Tracer
		v.Refresh(t.Context())

		look := rec.One(t, tracing.RingLook)
		attached := func(s tracetest.SpanStub, to tracetest.SpanStub, keyID string) {
			t.Helper()
			if s.Parent.IsValid() || s.SpanContext.TraceID() == to.SpanContext.TraceID() {
				t.Errorf("%s does not begin a trace", s.Name)
			}
			if len(s.Links) != 1 || !s.Links[0].SpanContext.Equal(to.SpanContext) {
				t.Errorf("%s has the links %v, want the look", s.Name, s.Links)
			}
			if got := tracingtest.Value(s, tracing.KeyID); got != keyID {
				t.Errorf("%s is about %q, want %q", s.Name, got, keyID)
			}
		}
		attached(rec.One(t, tracing.RingSwitch), look, w.keys[0].KeyID())
		attached(rec.One(t, tracing.RingProve), look, w.keys[1].KeyID())
		for _, name := range []string{tracing.RingSwitch, tracing.RingProve} {
			if m := tracingtest.Value(rec.One(t, name), tracing.Mechanism); m != kek.KWP.String() {
				t.Errorf("%s found %q, want %s", name, m, kek.KWP)
			}
		}
		for message, trace := range map[string]tracetest.SpanStub{"key published": rec.One(t, tracing.RingSwitch), "pending key works": rec.One(t, tracing.RingProve)} {
			lines := append(logs.FilterMessage(message).All(), audit.FilterMessage(message).All()...)
			if len(lines) != 1 || lines[0].ContextMap()["trace_id"] != trace.SpanContext.TraceID().String() {
				t.Errorf("%q is not logged once with its trace: %v", message, lines)
			}
		}

		rec.Reset()
		w.set(func() { w.due = true })
		v.Refresh(t.Context())
		attached(rec.One(t, tracing.SeedRenew), rec.One(t, tracing.RingLook), w.keys[0].KeyID())

		rec.Reset()
		w.set(func() { w.keysErr = errors.Join(errors.New("C_FindObjects: secret text"), kek.ErrUnavailable) })
		v.Refresh(t.Context())
		if got, want := rec.Tree(), "ring.look unavailable\n"; got != want {
			t.Errorf("a look that fails:\n%swant:\n%s", got, want)
		}
		rec.Without(t, "secret text")
	})
}
