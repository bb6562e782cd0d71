package audit

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerDir); dir != "" {
		writeForEver(dir)
	}
	goleak.VerifyTestMain(m)
}

// softSigner signs in memory as a key on the token would.
type softSigner struct {
	key  *ecdsa.PrivateKey
	name string

	mu  sync.Mutex
	err error
}

func newSigner(t testing.TB) *softSigner {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	must(t, err)
	return &softSigner{key: key, name: KeyName(der)}
}

func (s *softSigner) keys() PublicKeys { return PublicKeys{s.name: &s.key.PublicKey} }

func (s *softSigner) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *softSigner) Sign(_ context.Context, message []byte) (Signature, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return Signature{}, s.err
	}
	sum := sha256.Sum256(message)
	value, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	return Signature{Key: s.name, Algorithm: ECDSA, Value: value}, err
}

// memory is a Memory without a disk.
type memory struct {
	mu     sync.Mutex
	values map[string][]byte
}

func (m *memory) Load(name string, v any) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.values[name]
	if !ok {
		return false, nil
	}
	return true, json.Unmarshal(b, v)
}

func (m *memory) Save(name string, v any) error {
	b, err := json.Marshal(v)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.values == nil {
		m.values = map[string][]byte{}
	}
	m.values[name] = b
	return err
}

// tally is an Observer that counts.
type tally struct {
	mu            sync.Mutex
	written, lost uint64
	signed        uint64
	failing       map[string]bool
}

func (o *tally) AuditRecords(written, lost uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.written += written
	o.lost += lost
}

func (o *tally) AuditCheckpoint(_ time.Time, seq uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.signed = seq
}

func (o *tally) AuditFailing(part string, failing bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failing == nil {
		o.failing = map[string]bool{}
	}
	o.failing[part] = failing
}

// counts are the records that were lost, and the last line that is signed.
func (o *tally) counts() (lost, signed uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lost, o.signed
}

func (o *tally) fails(part string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.failing[part]
}

// settings are a Config for tests: no checkpoint but by Close, unless changed.
func settings(dir string, signer Signer, change ...func(*Config)) Config {
	cfg := Config{
		Dir: dir, Chain: "kekd", Program: "kekd test", MaxFileSize: 1 << 20,
		CheckpointEvery: time.Hour, CheckpointRecords: 1 << 30,
		Signer: signer, Logger: zap.NewNop(), Clock: time.Now,
	}
	for _, c := range change {
		c(&cfg)
	}
	return cfg
}

func open(t testing.TB, cfg Config) *Log {
	t.Helper()
	l, err := Open(cfg)
	must(t, err)
	l.Start()
	return l
}

// sample is a usual Event.
func sample() Event {
	return Event{
		Operation: Decrypt, UID: "5a1c8b57-46d0-4be2-a2f4-0d5e4a4e3c11", Caller: Caller{UID: 0, PID: 4711}, Called: true,
		KeyID:  "k8s-kek/0100000000684e2f00a1b2c3d4e5f60718/c0ffee",
		Result: OK, Latency: 31 * time.Microsecond, Source: FromCache,
	}
}

func verify(t testing.TB, dir string, o VerifyOptions) *Report {
	t.Helper()
	reports, err := Verify(context.Background(), []string{dir}, o)
	must(t, err)
	if len(reports) != 1 {
		t.Fatalf("%d chains, want 1", len(reports))
	}
	return reports[0]
}

func wantOK(t testing.TB, r *Report) {
	t.Helper()
	for _, p := range r.Problems {
		t.Errorf("a trail that nobody touched: %s", p)
	}
}

// files are the paths of a directory's audit files, in order.
func files(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	must(t, err)
	return names
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until ok, which another goroutine brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

var errAway = errors.New("the HSM is away")

func read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	return string(b)
}
