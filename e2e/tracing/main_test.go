// Package tracing has the real kekd on a real SoftHSM token send its traces through a
// real OpenTelemetry Collector, and takes collectors away from it.
//
// With KEKD_UPDATE_DOCS=1 the traces that it sees, and what the benchmark measures, are
// written to docs/tracing.md.
package tracing

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"text/template"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"kekd/e2e/internal/harness"
)

// page is where the traces stand in the documentation.
const page = "../../docs/tracing.md"

// update writes content into the page, if that is wanted.
func update(tb testing.TB, name, content string) {
	tb.Helper()
	if os.Getenv("KEKD_UPDATE_DOCS") != "1" {
		return
	}
	if err := harness.UpdatePage(page, name, content); err != nil {
		tb.Fatal(err)
	}
}

// receiver takes OTLP by gRPC and keeps it.
type receiver struct {
	collectorpb.UnimplementedTraceServiceServer

	mu   sync.Mutex
	got  []*collectorpb.ExportTraceServiceRequest
	hang bool // no batch is answered before its sender gives up
	// forget: nothing is kept. Set before anything comes.
	forget bool

	address string
	server  *grpc.Server
	served  chan struct{}
}

// Export implements the OTLP trace service.
func (r *receiver) Export(ctx context.Context, req *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	hang := r.hang
	if !hang && !r.forget {
		r.got = append(r.got, req)
	}
	r.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func (r *receiver) setHang(hang bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hang = hang
}

// newReceiver serves at a port of the loopback that the kernel chooses.
func newReceiver(tb testing.TB) *receiver {
	tb.Helper()
	r := &receiver{address: "127.0.0.1:0"}
	r.start(tb)
	tb.Cleanup(r.stop)
	return r
}

// start serves at the same address as before.
func (r *receiver) start(tb testing.TB) {
	tb.Helper()
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", r.address)
	if err != nil {
		tb.Fatalf("listen for OTLP: %v", err)
	}
	r.address = l.Addr().String()
	r.server, r.served = grpc.NewServer(), make(chan struct{})
	collectorpb.RegisterTraceServiceServer(r.server, r)
	go func() {
		defer close(r.served)
		_ = r.server.Serve(l) // ends with stop
	}()
}

func (r *receiver) stop() {
	r.server.Stop()
	<-r.served
}

// trace is everything that came so far, as spans and as bytes.
func (r *receiver) traces(tb testing.TB) ([]*span, []byte) {
	tb.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*span
	var raw bytes.Buffer
	for _, req := range r.got {
		b, err := proto.Marshal(req)
		if err != nil {
			tb.Fatal(err)
		}
		raw.Write(b)
		all = append(all, spansOf(req)...)
	}
	return all, raw.Bytes()
}

// count is how many spans came so far.
func (r *receiver) count(tb testing.TB) int {
	tb.Helper()
	all, _ := r.traces(tb)
	return len(all)
}

var collectorConfig = template.Must(template.New("collector.yaml").Parse(`receivers:
  otlp:
    protocols:
      grpc:
        endpoint: {{.Address}}
        tls: {cert_file: {{.Server}}.pem, key_file: {{.Server}}.key, client_ca_file: {{.CA}}.pem}
exporters:
  otlp_grpc:
    endpoint: {{.Next}}
    compression: none
    tls: {insecure: true}
    sending_queue: {enabled: false}
service:
  telemetry: {metrics: {level: none}}
  pipelines:
    traces: {receivers: [otlp], exporters: [otlp_grpc]}
`))

// startCollector builds and starts a real OpenTelemetry Collector, which wants TLS and
// a client's certificate and passes everything on to r. It returns the section tracing
// of the configuration that reaches it.
func startCollector(t *testing.T, r *receiver) string {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "collector")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".")
	build.Dir = "collector"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the collector: %v\n%s", err, out)
	}
	ca := issue(t, dir, "ca", nil)
	issue(t, dir, "collector", ca)
	issue(t, dir, "kekd", ca)
	address := harness.FreeAddress(t)
	var text bytes.Buffer
	if err := collectorConfig.Execute(&text, map[string]string{
		"Address": address, "Next": r.address, "Server": filepath.Join(dir, "collector"), "CA": filepath.Join(dir, "ca"),
	}); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "collector.yaml")
	if err := os.WriteFile(config, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "collector.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--config", "file:"+config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, exited := make(chan error), make(chan struct{})
	go func() {
		// Pdeathsig fires when the thread that started the child ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(exited)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // it is killed
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start the collector: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		<-exited
		_ = log.Close()
		if t.Failed() {
			said, _ := os.ReadFile(log.Name())
			t.Logf("the collector said:\n%s", said)
		}
	})
	harness.Eventually(t, 30*time.Second, "the collector listens", func(ctx context.Context) error {
		select {
		case <-exited:
			t.Fatal("the collector ended")
		default:
		}
		c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return c.Close()
	})
	return `{endpoint: "https://` + address + `", caFile: "` + dir + `/ca.pem", clientCertificateFile: "` + dir +
		`/kekd.pem", clientKeyFile: "` + dir + `/kekd.key"}`
}

// authority is a certificate that vouches for others.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue writes NAME.pem and NAME.key, which ca vouches for, or itself if ca is nil.
func issue(t *testing.T, dir, name string, ca *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: ca == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ca == nil {
		ca = &authority{cert, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err = errors.Join(err,
		os.WriteFile(filepath.Join(dir, name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(filepath.Join(dir, name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600)); err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}
