package keycache

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"kekd/internal/kek"
	"kekd/internal/tracing"
	"kekd/internal/tracing/tracingtest"
)

// eventuallyTrue polls until ok holds.
func eventuallyTrue(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 10s: %s", what)
		}
	}
}

// asked starts an Open in a request's trace of its own.
type asked struct {
	span trace.Span
	end  context.CancelFunc
	done chan error
	// waits is closed when the Open waits for the HSM or for its end.
	waits chan struct{}
}

// watched tells when somebody waits for its end.
type watched struct {
	context.Context

	once  sync.Once
	waits chan struct{}
}

func (w *watched) Done() <-chan struct{} {
	w.once.Do(func() { close(w.waits) })
	return w.Context.Done()
}

func ask(t *testing.T, rec *tracingtest.Recorder, s *Sealer, sealed kek.Sealed, name string) *asked {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	ctx, span := rec.Begin(ctx, name)
	a := &asked{span: span, end: cancel, done: make(chan error, 1), waits: make(chan struct{})}
	go func() {
		_, err := s.Open(&kek.Request{Context: &watched{Context: ctx, waits: a.waits}, UID: name}, sealed)
		span.End()
		a.done <- err
	}()
	return a
}

func (a *asked) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-a.done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("an Open did not return within 10s")
		return nil
	}
}

// Three Decrypts wait for one flight. The first, whose flight it is, leaves early and
// so does the second; the flight lands for the third. Its span is a child of the
// first one's and outlives it, and the others have links to it.
func TestSpansOfASharedFlight(t *testing.T) {
	rec := tracingtest.New()
	hsm := &fakeHSM{}
	cfg := seededConfig()
	cfg.Tracer = rec.Tracer
	s := readySealer(t, cfg, hsm)
	sealed := strangers(t, 1, keyA)[0]
	release := hsm.hold("unwrap")
	before := hsm.ops()

	first := ask(t, rec, s, sealed, "first")
	eventuallyTrue(t, "the flight is under way", func() bool { return hsm.ops() > before })
	second, third := ask(t, rec, s, sealed, "second"), ask(t, rec, s, sealed, "third")
	<-second.waits
	<-third.waits
	first.end()
	if err := first.wait(t); !errors.Is(err, context.Canceled) {
		t.Errorf("the first: %v, want that it was cancelled", err)
	}
	second.end()
	if err := second.wait(t); !errors.Is(err, context.Canceled) {
		t.Errorf("the second: %v, want that it was cancelled", err)
	}
	if n := len(rec.Named(tracing.SeedUnwrap)); n != 0 {
		t.Error("the flight ended with those who left")
	}
	release()
	if err := third.wait(t); err != nil {
		t.Errorf("the third: %v", err)
	}

	flight := rec.One(t, tracing.SeedUnwrap)
	fetches := rec.Named(tracing.SeedFetch)
	if len(fetches) != 3 {
		t.Fatalf("%d spans %s, want 3:\n%s", len(fetches), tracing.SeedFetch, rec.Tree())
	}
	if flight.Parent.SpanID() != fetches[0].SpanContext.SpanID() || !flight.EndTime.After(fetches[0].EndTime) {
		t.Errorf("the flight is below %s and ended at %s, its caller's span is %s and ended at %s",
			flight.Parent.SpanID(), flight.EndTime, fetches[0].SpanContext.SpanID(), fetches[0].EndTime)
	}
	for i, want := range []struct {
		request        *asked
		flight, result string
		links          int
	}{{first, "own", "canceled", 0}, {second, "shared", "canceled", 1}, {third, "shared", "ok", 1}} {
		f := fetches[i]
		if f.Parent.SpanID() != want.request.span.SpanContext().SpanID() {
			t.Errorf("fetch %d is below %s", i, f.Parent.SpanID())
		}
		if got := tracingtest.Value(f, tracing.Flight); got != want.flight {
			t.Errorf("fetch %d has flight %q, want %q", i, got, want.flight)
		}
		if got := tracingtest.Value(f, tracing.Result); got != want.result {
			t.Errorf("fetch %d has result %q, want %q", i, got, want.result)
		}
		if len(f.Links) != want.links || want.links > 0 && !f.Links[0].SpanContext.Equal(flight.SpanContext) {
			t.Errorf("fetch %d has the links %v, want %d to the flight", i, f.Links, want.links)
		}
	}
	rec.Without(t, "value 0")
}

// Who waits for the flight of a request that is not recorded has no link, and says
// that the flight is another's all the same.
func TestFlightThatIsNotRecorded(t *testing.T) {
	rec := tracingtest.New()
	hsm := &fakeHSM{}
	cfg := seededConfig()
	cfg.Tracer = rec.Tracer
	s := readySealer(t, cfg, hsm)
	sealed := strangers(t, 1, keyA)[0]
	release := hsm.hold("unwrap")
	before := hsm.ops()
	untraced := make(chan error, 1)
	go func() {
		_, err := s.Open(context.Background(), sealed)
		untraced <- err
	}()
	eventuallyTrue(t, "the flight is under way", func() bool { return hsm.ops() > before })
	other := ask(t, rec, s, sealed, "other")
	<-other.waits
	other.end()
	if err := other.wait(t); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	release()
	if err := <-untraced; err != nil {
		t.Error(err)
	}
	f := rec.One(t, tracing.SeedFetch)
	if len(f.Links) != 0 || tracingtest.Value(f, tracing.Flight) != "shared" || len(rec.Named(tracing.SeedUnwrap)) != 0 {
		t.Errorf("links %v, flight %q among\n%s", f.Links, tracingtest.Value(f, tracing.Flight), rec.Tree())
	}
}

// A warm Decrypt and an Encrypt have no spans below their own; a refusal that is
// remembered has an event.
func TestSpansOfMemory(t *testing.T) {
	rec := tracingtest.New()
	hsm := &fakeHSM{}
	cfg := seededConfig()
	cfg.Tracer = rec.Tracer
	s := readySealer(t, cfg, hsm)
	own, damaged := seal(t, s, "own"), strangers(t, 1, keyA)[0]
	if err := ask(t, rec, s, own, "warm").wait(t); err != nil {
		t.Error(err)
	}
	hsm.failWith(kek.ErrCorrupt)
	for _, name := range []string{"refused", "remembered"} {
		if err := ask(t, rec, s, damaged, name).wait(t); !errors.Is(err, kek.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
	want := "warm \nrefused \n  seed.fetch corrupt\n    seed.unwrap corrupt\nremembered \n"
	if got := rec.Tree(); got != want {
		t.Errorf("spans:\n%swant:\n%s", got, want)
	}
	if events := rec.One(t, "remembered").Events; len(events) != 1 || events[0].Name != tracing.Remembered {
		t.Errorf("events %v, want that the refusal was remembered", events)
	}
}

// A Decrypt that has the ring looked at says so.
func TestSpanOfLook(t *testing.T) {
	rec := tracingtest.New()
	l := &looker{look: func(context.Context) error { return nil }}
	cfg := seededConfig()
	cfg.Tracer, cfg.Look = rec.Tracer, l.Look
	s := readySealer(t, cfg, &fakeHSM{})
	unknown := strangers(t, 1, testKey(7, kek.Primary))[0]
	if err := ask(t, rec, s, unknown, "request").wait(t); !errors.Is(err, kek.ErrUnknownKey) {
		t.Errorf("%v, want ErrUnknownKey", err)
	}
	if got := rec.Tree(); !strings.HasPrefix(got, "request \n  ring.await ok\n") {
		t.Errorf("spans:\n%s", got)
	}
}

// The HSM is asked in the name of the request, in either mode and after it has left.
func TestUIDReachesTheHSM(t *testing.T) {
	for name, cfg := range map[string]Config{"seeded": seededConfig(), "direct": directConfig()} {
		t.Run(name, func(t *testing.T) {
			hsm := &fakeHSM{}
			s := readySealer(t, cfg, hsm)
			sealed := strangers(t, 1, keyA)[0]
			uids := make(chan string, 1)
			hsm.set(func(f *fakeHSM) {
				f.before = func(ctx context.Context, _ string) error {
					uids <- kek.UID(ctx)
					return nil
				}
			})
			gone, leave := context.WithCancel(t.Context())
			leave()
			// It may be served all the same, or not: both are right.
			_, _ = s.Open(&kek.Request{Context: gone, UID: "8a1c"}, sealed)
			select {
			case uid := <-uids:
				if uid != "8a1c" {
					t.Errorf("the HSM was asked for %q", uid)
				}
			case <-time.After(10 * time.Second):
				t.Error("the HSM was not asked within 10s")
			}
		})
	}
}
