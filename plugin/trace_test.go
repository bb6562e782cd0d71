package plugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/kek"
	"kekd/internal/tracing"
	"kekd/internal/tracing/tracingtest"
)

func traced(rec *tracingtest.Recorder) func(*Config, *Server) {
	return func(cfg *Config, _ *Server) { cfg.Tracer = rec.Tracer }
}

// said are the attributes of a span as text.
func said(s tracetest.SpanStub) map[string]string {
	m := map[string]string{}
	for _, a := range s.Attributes {
		m[string(a.Key)] = a.Value.String()
	}
	return m
}

func TestSpanOfRequest(t *testing.T) {
	rec := tracingtest.New()
	r := start(t, traced(rec))
	r.sealer.open = func(ctx context.Context, sealed kek.Sealed) ([]byte, error) {
		kek.NoteSource(ctx, kek.FromCache)
		switch string(sealed.Ciphertext) {
		case "damaged":
			return nil, errors.Join(errDetail, kek.ErrCorrupt)
		case "away":
			return nil, errors.Join(errDetail, kek.ErrUnavailable)
		}
		return seed, nil
	}
	client := r.client(t)
	if _, err := client.Status(t.Context(), &kmsapi.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	decrypt := func(ciphertext, uid string) {
		_, _ = client.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte(ciphertext), KeyId: testKeyID, Uid: uid})
	}
	decrypt("good", testUID)
	decrypt("damaged", strings.Repeat("ü", 40))
	decrypt("away", "")
	if _, err := client.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: slices.Clone(seed), Uid: testUID}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "four spans", func() bool { return len(rec.Spans()) == 4 })

	const service = "v2.KeyManagementService/"
	common := func(method, uid, code, result string, more ...string) map[string]string {
		m := map[string]string{
			"rpc.system.name": "grpc", "rpc.method": service + method, "rpc.response.status_code": code,
			"kms.uid": uid, "kms.key_id": testKeyID, "kekd.result": result,
		}
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	for i, want := range []struct {
		attributes map[string]string
		status     codes.Code
	}{
		{common("Decrypt", testUID, "OK", "ok", "kekd.source", "cache"), codes.Unset},
		// 64 bytes end between two characters here; what the client has brought about is
		// no error of the server.
		{common("Decrypt", strings.Repeat("ü", 32)+"…", "INVALID_ARGUMENT", "corrupt", "kekd.source", "cache"), codes.Unset},
		{common("Decrypt", "", "UNAVAILABLE", "unavailable", "kekd.source", "cache"), codes.Error},
		{common("Encrypt", testUID, "OK", "ok"), codes.Unset},
	} {
		s := rec.Spans()[i]
		if diff := cmp.Diff(want.attributes, said(s)); diff != "" {
			t.Errorf("span %d (-want +got):\n%s", i, diff)
		}
		if s.Name != want.attributes["rpc.method"] || s.SpanKind != trace.SpanKindServer || s.Parent.IsValid() || s.Status.Code != want.status {
			t.Errorf("span %d is %s, %s, below %v, %v", i, s.Name, s.SpanKind, s.Parent.SpanID(), s.Status)
		}
	}
	rec.Without(t, string(seed), sealedPrefix, "C_Decrypt", "damaged")

	// Each line of a request says whose it is, and in which trace to look.
	var lines int
	for _, e := range r.logs.FilterField(zap.String("method", "Decrypt")).All() {
		uid, id := fmt.Sprint(e.ContextMap()["uid"]), rec.Spans()[lines].SpanContext.TraceID().String()
		if want := said(rec.Spans()[lines])["kms.uid"]; want != "" && uid != want || e.ContextMap()["trace_id"] != id {
			t.Errorf("%q has uid %q and trace_id %v, want %q and %s", e.Message, uid, e.ContextMap()["trace_id"], want, id)
		}
		lines++
	}
	if lines != 3 {
		t.Errorf("%d lines of Decrypts, want 3", lines)
	}
}

// A client that has a trace goes on with it, and decides whether it is recorded.
func TestTraceOfClient(t *testing.T) {
	const traceID, spanID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	for _, tc := range []struct {
		header   string
		recorded bool
		parent   string // empty: a trace of its own
	}{
		{"00-" + traceID + "-" + spanID + "-01", true, spanID},
		{"00-" + traceID + "-" + spanID + "-00", false, ""},
		{"00-" + strings.Repeat("0", 32) + "-" + spanID + "-01", true, ""}, // no trace at all
		{"garbage", true, ""},
		{strings.Repeat("x", 8000), true, ""},
	} {
		rec := tracingtest.New()
		r := start(t, traced(rec))
		var inside string
		r.sealer.seal = func(ctx context.Context, _ []byte) (kek.Sealed, error) {
			inside = tracing.TraceID(ctx)
			return kek.Sealed{KeyID: testKeyID, Ciphertext: []byte("c")}, nil
		}
		ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", tc.header, "tracestate", "vendor=1")
		if _, err := r.client(t).Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: slices.Clone(seed), Uid: testUID}); err != nil {
			t.Fatal(err)
		}
		if !tc.recorded {
			if inside != "" || len(rec.Spans()) != 0 {
				t.Errorf("traceparent %.60s: %d spans, trace %q inside", tc.header, len(rec.Spans()), inside)
			}
			continue
		}
		s := rec.One(t, "v2.KeyManagementService/Encrypt")
		if tc.parent != "" && (s.SpanContext.TraceID().String() != traceID || s.Parent.SpanID().String() != tc.parent || !s.Parent.IsRemote()) {
			t.Errorf("traceparent %.60s: span of trace %s below %s", tc.header, s.SpanContext.TraceID(), s.Parent.SpanID())
		}
		if tc.parent == "" && s.Parent.IsValid() {
			t.Errorf("traceparent %.60s: the span has the parent %s", tc.header, s.Parent.SpanID())
		}
		if inside != s.SpanContext.TraceID().String() {
			t.Errorf("traceparent %.60s: trace %q inside, want %s", tc.header, inside, s.SpanContext.TraceID())
		}
	}
}

// The metrics are given the trace of a request, for an exemplar.
func TestTraceReachesObserver(t *testing.T) {
	rec := tracingtest.New()
	ids := &idObserver{ids: make(chan string, 8)}
	r := start(t, traced(rec), func(cfg *Config, _ *Server) { cfg.Observer = ids })
	client := r.client(t)
	if _, err := client.Status(t.Context(), &kmsapi.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, "a Status", ids.ids); got != "" {
		t.Errorf("a Status has the trace %q", got)
	}
	if _, err := client.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: slices.Clone(seed)}); err != nil {
		t.Fatal(err)
	}
	if got, want := receive(t, "an Encrypt", ids.ids), rec.One(t, "v2.KeyManagementService/Encrypt").SpanContext.TraceID().String(); got != want {
		t.Errorf("the observer was given the trace %q, want %q", got, want)
	}
}

type idObserver struct {
	nopObserver

	ids chan string
}

func (o *idObserver) Request(_ string, _ grpccodes.Code, _ time.Duration, traceID string) {
	o.ids <- traceID
}

// Turned off, tracing costs no allocation: there is one for the request's context,
// which carries the uid, and there was one in keycache less to make up for it.
func TestTracingOffAllocatesNothing(t *testing.T) {
	g := &guard{log: zap.NewNop(), observer: nopObserver{}, clock: time.Now, throttle: newThrottle(time.Now), max: 8}
	resp := any(&kmsapi.DecryptResponse{Plaintext: []byte("p")})
	handler := func(ctx context.Context, _ any) (any, error) { return resp, ctx.Err() }
	req := any(&kmsapi.DecryptRequest{Uid: testUID, KeyId: testKeyID})
	info := &grpc.UnaryServerInfo{FullMethod: methodPrefix + "Decrypt"}
	ctx := context.Background()
	n := testing.AllocsPerRun(1000, func() {
		if _, err := g.unary(ctx, req, info, handler); err != nil {
			t.Error(err)
		}
	})
	if n > 1 {
		t.Errorf("%v allocations in the guard, want 1", n)
	}
}

// The log and the traces call one class by one name.
func TestClassesHaveOneName(t *testing.T) {
	for _, f := range failures {
		if errors.Is(f.class, errOverloaded) {
			continue // the plugin's own
		}
		if got := kek.Class(f.class); got != f.name {
			t.Errorf("kek.Class(%v) = %q, the log says %q", f.class, got, f.name)
		}
	}
}

func TestCodeNames(t *testing.T) {
	for c, want := range map[grpccodes.Code]string{0: "OK", 1: "CANCELLED", 5: "NOT_FOUND", 14: "UNAVAILABLE", 16: "UNAUTHENTICATED", 17: "UNKNOWN"} {
		if got := codeName(c); got != want {
			t.Errorf("codeName(%d) = %s, want %s", c, got, want)
		}
	}
}
