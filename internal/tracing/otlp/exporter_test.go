package otlp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"kekd/internal/config"
	"kekd/internal/tracing"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// receiver takes OTLP by gRPC.
type receiver struct {
	collector.UnimplementedTraceServiceServer

	mu   sync.Mutex
	got  []*tracepb.ResourceSpans
	hang bool // no batch is answered before its sender gives up
	err  error
	part int64 // spans of a batch that are refused
}

func (r *receiver) Export(ctx context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	hang, err, part := r.hang, r.err, r.part
	if !hang && err == nil {
		r.got = append(r.got, req.GetResourceSpans()...)
	}
	r.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	resp := &collector.ExportTraceServiceResponse{}
	if part > 0 {
		resp.PartialSuccess = &collector.ExportTracePartialSuccess{RejectedSpans: part, ErrorMessage: "too old"}
	}
	return resp, err
}

// names are those of the spans that came.
func (r *receiver) names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, rs := range r.got {
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				names = append(names, s.GetName())
			}
		}
	}
	return names
}

// serve serves at an address of the loopback, "127.0.0.1:0" for a new one, until stop.
func (r *receiver) serve(t *testing.T, address string, options ...grpc.ServerOption) (at string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(options...)
	collector.RegisterTraceServiceServer(s, r)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(l) // ends with stop
	}()
	var once sync.Once
	stop = func() { once.Do(func() { s.Stop(); <-served }) }
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

// tally is an Observer that counts.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func (o *tally) TraceSpans(result string, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.counts == nil {
		o.counts = map[string]int{}
	}
	o.counts[result] += n
}

func (o *tally) get(result string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.counts[result]
}

// rig is an Exporter at a quicker pace than usual.
type rig struct {
	*Exporter

	tally *tally
	logs  *observer.ObservedLogs
}

func newRig(t *testing.T, cfg config.Tracing) *rig {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	r := &rig{tally: &tally{}, logs: logs}
	var err error
	r.Exporter, err = newExporter(cfg, "v1.2.3", zap.New(core), r.tally, pace{every: 20 * time.Millisecond, timeout: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = r.Shutdown(ctx) // the test may have done it
	})
	return r
}

// end makes n spans, each a trace.
func (r *rig) end(n int) {
	tracer := r.Tracer()
	for range n {
		_, s := tracer.Root(context.Background(), context.Background(), tracing.RingLook)
		s.End(tracing.ResultOK)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 20s: %s", what)
		}
	}
}

func plain(address string) config.Tracing {
	return config.Tracing{Endpoint: "http://" + address, SampleRatio: 1}
}

func TestExport(t *testing.T) {
	in := &receiver{}
	address, _ := in.serve(t, "127.0.0.1:0")
	global := otel.GetTracerProvider()
	r := newRig(t, plain(address))
	r.end(1)
	eventually(t, "the span comes by itself", func() bool { return len(in.names()) == 1 })
	r.end(2)
	if err := r.Shutdown(t.Context()); err != nil { // which sends the rest
		t.Error(err)
	}
	if got := in.names(); len(got) != 3 || r.tally.get(Exported) != 3 {
		t.Errorf("%d spans came, %d count as exported, want 3", len(got), r.tally.get(Exported))
	}
	said := map[string]string{}
	for _, a := range in.got[0].GetResource().GetAttributes() {
		said[a.GetKey()] = a.GetValue().GetStringValue()
	}
	host, _ := os.Hostname()
	if said["service.name"] != "kekd" || said["service.version"] != "v1.2.3" || said["host.name"] != host || len(said["service.instance.id"]) != 36 {
		t.Errorf("the resource is %v", said)
	}
	if scope := in.got[0].GetScopeSpans()[0].GetScope(); scope.GetName() != "kekd" || scope.GetVersion() != "v1.2.3" {
		t.Errorf("the scope is %v", scope)
	}
	if otel.GetTracerProvider() != global {
		t.Error("the global tracer provider was changed")
	}
}

// A place in the queue is free again when its span was sent, and when it could not be.
func TestPlacesAreFreed(t *testing.T) {
	in := &receiver{}
	address, stop := in.serve(t, "127.0.0.1:0")
	r := newRig(t, plain(address))
	for i := 1; i <= 6; i++ {
		if i == 4 {
			stop()
		}
		r.end(maxQueued / 2)
		eventually(t, "none is waiting", func() bool {
			return r.tally.get(Exported)+r.tally.get(Failed) == i*maxQueued/2
		})
	}
	if n := r.tally.get(Dropped); n != 0 {
		t.Errorf("%d spans were dropped", n)
	}
}

// However the collector fails, who makes spans does not wait for it, what is lost is
// counted and told once, and the stop is not held up.
func TestCollectorFails(t *testing.T) {
	const spans = 5 * maxQueued
	for _, tc := range []struct {
		name string
		in   *receiver // nil for none at all
	}{
		{"away", nil},
		{"hangs", &receiver{hang: true}},
		{"refuses", &receiver{err: status.Error(codes.PermissionDenied, "no")}},
		{"is busy", &receiver{err: status.Error(codes.Unavailable, "later")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			in := tc.in
			if in == nil {
				in = &receiver{}
			}
			address, stop := in.serve(t, "127.0.0.1:0")
			if tc.in == nil {
				stop()
			}
			r := newRig(t, plain(address))
			begun := time.Now()
			r.end(spans)
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("%d spans took %s", spans, took)
			}
			eventually(t, "some count as failed", func() bool { return r.tally.get(Failed) > 0 })
			eventually(t, "the failure is logged", func() bool { return r.logs.Len() > 0 })

			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			begun = time.Now()
			_ = r.Shutdown(ctx) // what it says depends on how quickly the collector fails
			if took := time.Since(begun); took > 3*time.Second {
				t.Errorf("the stop took %s, its deadline was 100ms", took)
			}
			// What the stop has cut off is given up soon after.
			eventually(t, "each span counts once", func() bool {
				return r.tally.get(Failed)+r.tally.get(Dropped) == spans
			})
			if n := r.tally.get(Exported); n != 0 {
				t.Errorf("%d spans count as exported", n)
			}
			if n := r.logs.FilterMessage("spans cannot be exported, and are lost").Len(); n != 1 || r.logs.Len() != 1 {
				t.Errorf("%d lines of the loss among %d, want 1", n, r.logs.Len())
			}
		})
	}
}

// A collector that is back gets the spans from then on.
func TestCollectorBack(t *testing.T) {
	in := &receiver{}
	address, stop := in.serve(t, "127.0.0.1:0")
	r := newRig(t, plain(address))
	r.end(1)
	eventually(t, "a span comes", func() bool { return len(in.names()) == 1 })
	stop()
	r.end(1)
	eventually(t, "one is lost", func() bool { return r.tally.get(Failed) == 1 })
	in.serve(t, address)
	eventually(t, "one comes again", func() bool {
		r.end(1)
		return len(in.names()) > 1
	})
	eventually(t, "that is logged", func() bool { return r.logs.FilterMessage("spans are exported again").Len() == 1 })
}

// A batch of which the collector refuses a part counts as failed: it does not say
// which of them.
func TestPartialSuccess(t *testing.T) {
	in := &receiver{part: 1}
	address, _ := in.serve(t, "127.0.0.1:0")
	r := newRig(t, plain(address))
	r.end(2)
	eventually(t, "both count as failed", func() bool { return r.tally.get(Failed) == 2 })
	line := r.logs.FilterMessage("spans cannot be exported, and are lost").All()
	if len(line) != 1 || !strings.Contains(fmt.Sprint(line[0].ContextMap()["error"]), "too old") {
		t.Errorf("the log says %v, want what the collector said", line)
	}
}

// Requests are recorded by their share, and whatever is rare always; what is below
// another span goes with that.
func TestSampler(t *testing.T) {
	in := &receiver{}
	address, _ := in.serve(t, "127.0.0.1:0")
	cfg := plain(address)
	cfg.SampleRatio = 0
	r := newRig(t, cfg)
	tracer, ctx := r.Tracer(), context.Background()
	for _, name := range []string{tracing.RingLook, tracing.WorkerStart, tracing.RingProve, tracing.RingSwitch, tracing.SeedRenew} {
		below, span := tracer.Root(ctx, ctx, name)
		_, child := tracer.Child(below, tracing.Call)
		if child.Recorded() != span.Recorded() {
			t.Errorf("%s is recorded: %v, what is below it: %v", name, span.Recorded(), child.Recorded())
		}
		child.End(tracing.ResultOK)
		span.End(tracing.ResultOK)
	}
	inside, request := tracer.Request(ctx, "/service/Method", nothing{})
	if request.Recorded() || tracing.TraceID(inside) != "" {
		t.Error("a request is recorded at a ratio of 0")
	}
	// Nor does what the request causes begin a trace of its own, unless it is rare.
	if _, op := tracer.Operation(inside, tracing.HSM("unwrap")); op.Recorded() {
		t.Error("an operation of a request that is not recorded is")
	}
	if err := r.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	want := "hsm.call hsm.worker.start hsm.call ring.prove hsm.call ring.switch hsm.call seed.renew"
	if got := strings.Join(in.names(), " "); got != want {
		t.Errorf("recorded: %s\nwant: %s", got, want)
	}
}

type nothing struct{}

func (nothing) Get(string) string  { return "" }
func (nothing) Set(string, string) {}
func (nothing) Keys() []string     { return nil }

// pair is a certificate and its key, as files and ready for use.
type pair struct {
	cert, key string // paths
	tls       tls.Certificate
}

// issue makes a pair that ca vouches for, or itself if ca is nil.
func issue(t *testing.T, name string, ca *pair) *pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: ca == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := template, any(key)
	if ca != nil {
		if parent, err = x509.ParseCertificate(ca.tls.Certificate[0]); err != nil {
			t.Fatal(err)
		}
		signer = ca.tls.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p := &pair{cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem"), tls: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}}
	for path, block := range map[string]*pem.Block{p.cert: {Type: "CERTIFICATE", Bytes: der}, p.key: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func TestTLS(t *testing.T) {
	ca, other := issue(t, "ca", nil), issue(t, "other ca", nil)
	server, client, stranger := issue(t, "collector", ca), issue(t, "kekd", ca), issue(t, "kekd", other)
	trusted := x509.NewCertPool()
	root, err := x509.ParseCertificate(ca.tls.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	trusted.AddCert(root)
	in := &receiver{}
	address, _ := in.serve(t, "127.0.0.1:0", grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{server.tls}, ClientCAs: trusted, ClientAuth: tls.RequireAndVerifyClientCert,
	})))
	for _, tc := range []struct {
		name string
		cfg  config.Tracing
		want string
	}{
		{"good", config.Tracing{CAFile: ca.cert, ClientCertificateFile: client.cert, ClientKeyFile: client.key}, Exported},
		{"an unknown collector", config.Tracing{CAFile: other.cert, ClientCertificateFile: client.cert, ClientKeyFile: client.key}, Failed},
		{"not vouched for by the system", config.Tracing{ClientCertificateFile: client.cert, ClientKeyFile: client.key}, Failed},
		{"an unknown kekd", config.Tracing{CAFile: ca.cert, ClientCertificateFile: stranger.cert, ClientKeyFile: stranger.key}, Failed},
		{"kekd without a certificate", config.Tracing{CAFile: ca.cert}, Failed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.cfg.Endpoint, tc.cfg.SampleRatio = "https://"+address, 1
			r := newRig(t, tc.cfg)
			r.end(1)
			eventually(t, "the span is "+tc.want, func() bool { return r.tally.get(tc.want) == 1 })
		})
	}
	// Without TLS nothing comes in either.
	r := newRig(t, plain(address))
	r.end(1)
	eventually(t, "a span without TLS fails", func() bool { return r.tally.get(Failed) == 1 })
}

// Files that are not there, or not what they should be, are told at the start.
func TestBadFiles(t *testing.T) {
	ca := issue(t, "ca", nil)
	const endpoint = "https://127.0.0.1:1"
	for _, tc := range []struct {
		cfg  config.Tracing
		want string
	}{
		{config.Tracing{Endpoint: "127.0.0.1:1"}, "tracing.endpoint: "},
		{config.Tracing{Endpoint: endpoint, CAFile: ca.cert + ".not"}, "tracing.caFile: open "},
		{config.Tracing{Endpoint: endpoint, CAFile: ca.key}, "tracing.caFile: " + ca.key + " holds no certificate in PEM"},
		{config.Tracing{Endpoint: endpoint, ClientCertificateFile: ca.key, ClientKeyFile: ca.key}, "tracing.clientCertificateFile: "},
	} {
		if _, err := New(tc.cfg, "v1", zap.NewNop(), &tally{}); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("New(%+v) = %v, want %s…", tc.cfg, err, tc.want)
		}
	}
}
