package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/kek"
)

// childEnv makes the test binary play a part in another process. The value names
// the part.
const (
	childEnv     = "KEKD_PLUGIN_TEST_CHILD"
	childPathEnv = "KEKD_PLUGIN_TEST_PATH"
	childFlooder = "flood"
)

func TestMain(m *testing.M) {
	switch part := os.Getenv(childEnv); part {
	case "":
		goleak.VerifyTestMain(m)
	case "listen", "activated":
		os.Exit(childListen(part, os.Getenv(childPathEnv)))
	case childFlooder:
		os.Exit(childFlood(os.Getenv(childPathEnv)))
	default:
		panic("unknown part " + part)
	}
}

const (
	testKeyID = "k8s-kek/0100000000000000000000000000000000/a1b2c3"
	testUID   = "8a1c9d0e-5b7f-4c7e-9a41-0f4f3a3c2b10"
)

// seed is a plaintext as kube-apiserver sends it. It must never be logged.
var seed = []byte("seed-of-32-bytes-0123456789abcde")

// fakeSealer turns "x" into "sealed:x" and back, unless a hook says otherwise.
type fakeSealer struct {
	seal func(ctx context.Context, plaintext []byte) (kek.Sealed, error)
	open func(ctx context.Context, sealed kek.Sealed) ([]byte, error)
}

const sealedPrefix = "sealed:"

func (f *fakeSealer) Seal(ctx context.Context, plaintext []byte) (kek.Sealed, error) {
	if f.seal != nil {
		return f.seal(ctx, plaintext)
	}
	return kek.Sealed{KeyID: testKeyID, Ciphertext: append([]byte(sealedPrefix), plaintext...)}, nil
}

func (f *fakeSealer) Open(ctx context.Context, sealed kek.Sealed) ([]byte, error) {
	if f.open != nil {
		return f.open(ctx, sealed)
	}
	plaintext, ok := bytes.CutPrefix(sealed.Ciphertext, []byte(sealedPrefix))
	if !ok {
		return nil, fmt.Errorf("parse envelope: %w", kek.ErrCorrupt)
	}
	return plaintext, nil
}

// fakeHealth is ready with testKeyID unless told otherwise.
type fakeHealth struct {
	keyID                string
	statusErr, encryptOK error
}

func (f *fakeHealth) Status() (string, error) { return f.keyID, f.statusErr }
func (f *fakeHealth) MayEncrypt() error       { return f.encryptOK }

// reasonError is a health error with a text for the public.
type reasonError struct {
	class  error
	reason string
}

func (e *reasonError) Error() string        { return "detail CKR_DEVICE_ERROR 0x30" }
func (e *reasonError) Unwrap() error        { return e.class }
func (e *reasonError) PublicReason() string { return e.reason }

// tally is an Observer that counts.
type tally struct {
	mu       sync.Mutex
	requests map[string]int // "Encrypt OK"
	inFlight int
	peak     int
	refused  []uint32
	tooMany  int
	arrived  int
	panics   int
}

func (o *tally) Request(method string, code codes.Code, _ time.Duration, _ string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.requests == nil {
		o.requests = make(map[string]int)
	}
	o.requests[method+" "+code.String()]++
}

func (o *tally) Verified(method string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.requests == nil {
		o.requests = make(map[string]int)
	}
	o.requests[method+" verify"]++
}

func (o *tally) InFlight(delta int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.inFlight += delta
	o.peak = max(o.peak, o.inFlight)
}

func (o *tally) Arrived() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.arrived++
}

func (o *tally) TooMany() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tooMany++
}

func (o *tally) Refused(uid uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.refused = append(o.refused, uid)
}

func (o *tally) Panic() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.panics++
}

// refusals and arrivals are what their names say.
func (o *tally) refusals() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.tooMany
}

func (o *tally) arrivals() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.arrived
}

// snapshot copies the tally for comparisons.
func (o *tally) snapshot() (requests map[string]int, inFlight int, refused []uint32, panics int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	requests = maps.Clone(o.requests)
	return requests, o.inFlight, slices.Clone(o.refused), o.panics
}

// rig is a Server on a real socket.
type rig struct {
	sealer *fakeSealer
	health *fakeHealth
	tally  *tally
	logs   *observer.ObservedLogs
	path   string
	server *Server
	socket *Socket
	ran    chan error // Run's result
}

// start serves on a new socket until the test ends. The hooks may change the
// configuration before and the server after it is made.
func start(tb testing.TB, hooks ...func(*Config, *Server)) *rig {
	tb.Helper()
	core, logs := observer.New(zap.DebugLevel)
	r := &rig{
		sealer: &fakeSealer{}, health: &fakeHealth{keyID: testKeyID}, tally: &tally{}, logs: logs,
		path: filepath.Join(tempDir(tb), "kekd.sock"), ran: make(chan error, 1),
	}
	cfg := Config{
		Sealer: r.sealer, Health: r.health, Observer: r.tally, Log: zap.New(core),
		AllowedUIDs: []uint32{uint32(os.Getuid())},
	}
	for _, hook := range hooks {
		hook(&cfg, nil)
	}
	var err error
	if r.server, err = New(cfg); err != nil {
		tb.Fatalf("New: %v", err)
	}
	for _, hook := range hooks {
		hook(&cfg, r.server)
	}
	if r.socket, err = Listen(r.path); err != nil {
		tb.Fatalf("Listen: %v", err)
	}
	go func() { r.ran <- r.server.Run(r.socket) }()
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := r.server.Shutdown(ctx); err != nil {
			tb.Errorf("Shutdown: %v", err)
		}
		if err := <-r.ran; err != nil {
			tb.Errorf("Run: %v", err)
		}
	})
	return r
}

// client connects as kube-apiserver does.
func (r *rig) client(tb testing.TB, opts ...grpc.DialOption) kmsapi.KeyManagementServiceClient {
	tb.Helper()
	return kmsapi.NewKeyManagementServiceClient(dial(tb, r.path, opts...))
}

func dial(tb testing.TB, path string, opts ...grpc.DialOption) *grpc.ClientConn {
	tb.Helper()
	opts = append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"),
	}, opts...)
	conn, err := grpc.NewClient("unix://"+path, opts...)
	if err != nil {
		tb.Fatalf("dial %s: %v", path, err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return conn
}

// tempDir is t.TempDir with a path short enough for sockets.
func tempDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "kekd")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// eventually polls until ok holds.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			tb.Fatalf("not within 10s: %s", what)
		}
	}
}

// receive waits for a value.
func receive[T any](tb testing.TB, what string, c <-chan T) T {
	tb.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		tb.Fatalf("not within 10s: %s", what)
		panic("unreachable")
	}
}

// logText is everything that was logged, fields included.
func logText(tb testing.TB, logs *observer.ObservedLogs) string {
	tb.Helper()
	var b strings.Builder
	enc := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	for _, e := range logs.All() {
		buf, err := enc.EncodeEntry(e.Entry, e.Context)
		if err != nil {
			tb.Fatal(err)
		}
		b.WriteString(buf.String())
	}
	return b.String()
}

var errDetail = errors.New("C_Decrypt: rv 0x30 /usr/lib/softhsm/libsofthsm2.so")
