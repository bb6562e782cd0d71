package plugin

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/audit"
	"kekd/internal/kek"
)

// trailAuditor writes a real trail, as kekd does.
type trailAuditor struct {
	log   *audit.Log
	block bool
}

func (a *trailAuditor) Request(ctx context.Context, r AuditRecord) error {
	e := audit.Event{
		Operation: r.Method, UID: r.UID, Caller: audit.Caller{UID: r.Peer.UID, PID: r.Peer.PID}, Called: true,
		KeyID: r.KeyID, Result: r.Result, Latency: r.Elapsed, Source: r.Source.String(),
	}
	if a.block {
		return a.log.RecordWait(ctx, e)
	}
	a.log.Record(e)
	return nil
}

func (*trailAuditor) CallerRefused(PeerInfo) {}

// openTrail opens a trail that nothing signs.
func openTrail(tb testing.TB) *audit.Log {
	tb.Helper()
	l, err := audit.Open(audit.Config{
		Dir: filepath.Join(tb.TempDir(), "audit"), Chain: "kekd", Program: "test", MaxFileSize: 1 << 30,
		CheckpointEvery: time.Hour, CheckpointRecords: 1 << 30, Logger: zap.NewNop(), Clock: time.Now,
	})
	if err != nil {
		tb.Fatal(err)
	}
	l.Start()
	tb.Cleanup(func() {
		if err := l.Close(context.Background()); !errors.Is(err, audit.ErrNoKey) {
			tb.Error(err)
		}
	})
	return l
}

// listed is an Auditor that remembers, and refuses if told so.
type listed struct {
	mu      sync.Mutex
	records []AuditRecord
	refused []PeerInfo
	err     error
}

func (l *listed) Request(_ context.Context, r AuditRecord) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, r)
	return l.err
}

func (l *listed) CallerRefused(p PeerInfo) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused = append(l.refused, p)
}

func (l *listed) take() []AuditRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.records
	l.records = nil
	return r
}

// serveAudited serves with an Auditor and returns a client.
func serveAudited(t *testing.T, auditor Auditor, plaintext []byte, change ...func(*Config)) kmsapi.KeyManagementServiceClient {
	t.Helper()
	cfg := Config{
		Sealer: &fakeSealer{
			seal: func(ctx context.Context, _ []byte) (kek.Sealed, error) {
				kek.NoteSource(ctx, kek.FromSeed)
				return kek.Sealed{KeyID: testKeyID, Ciphertext: []byte("sealed")}, nil
			},
			open: func(ctx context.Context, s kek.Sealed) ([]byte, error) {
				kek.NoteSource(ctx, kek.FromCache)
				kek.NoteSource(ctx, kek.FromHSM) // the last word counts
				if string(s.Ciphertext) != "sealed" {
					return nil, kek.ErrCorrupt
				}
				return plaintext, nil
			},
		},
		Health:      &fakeHealth{keyID: testKeyID},
		AllowedUIDs: []uint32{uint32(os.Getuid())}, Auditor: auditor,
	}
	for _, c := range change {
		c(&cfg)
	}
	server, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(tempDir(t), "kekd.sock")
	socket, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- server.Run(socket) }()
	t.Cleanup(func() { _, _ = server.Shutdown(context.Background()), <-ran })
	return kmsapi.NewKeyManagementServiceClient(dial(t, path))
}

// Every Encrypt and Decrypt goes on record with who asked, how it ended and where it
// was served from; Status does not.
func TestRequestsAreAudited(t *testing.T) {
	trail := new(listed)
	client := serveAudited(t, trail, []byte("plain"))
	ctx := t.Context()
	if _, err := client.Status(ctx, &kmsapi.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: []byte("plain"), Uid: "u1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: []byte("sealed"), KeyId: testKeyID, Uid: "u2"}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: []byte("broken"), KeyId: testKeyID, Uid: "u3"}); status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	if _, err := client.Encrypt(ctx, &kmsapi.EncryptRequest{Uid: "u4"}); status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	got := trail.take()
	for i := range got {
		p := got[i].Peer
		if got[i].Elapsed <= 0 || p.UID != uint32(os.Getuid()) || p.PID != int32(os.Getpid()) {
			t.Errorf("took %v for uid %d pid %d", got[i].Elapsed, p.UID, p.PID)
		}
		got[i].Elapsed, got[i].Peer = 0, PeerInfo{}
	}
	want := []AuditRecord{
		{Method: "Encrypt", UID: "u1", KeyID: testKeyID, Result: "ok", Source: kek.FromSeed},
		{Method: "Decrypt", UID: "u2", KeyID: testKeyID, Result: "ok", Source: kek.FromHSM},
		{Method: "Decrypt", UID: "u3", KeyID: testKeyID, Result: "corrupt", Source: kek.FromHSM},
		{Method: "Encrypt", UID: "u4", Result: "empty"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("on record (-want +got):\n%s", diff)
	}
}

// What can't be put on record is not answered, and the plaintext is wiped.
func TestAnswersAreWithheld(t *testing.T) {
	trail := &listed{err: errors.New("no space left on device")}
	plaintext := []byte("plain")
	client := serveAudited(t, trail, plaintext)
	for method, do := range map[string]func() error{
		"Encrypt": func() error {
			_, err := client.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("plain"), Uid: "u"})
			return err
		},
		"Decrypt": func() error {
			_, err := client.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("sealed"), KeyId: testKeyID, Uid: "u"})
			return err
		},
	} {
		if err := do(); status.Code(err) != codes.Unavailable || status.Convert(err).Message() != "the audit trail cannot be written" {
			t.Errorf("%s without a record: %v", method, err)
		}
	}
	if string(plaintext) != "\x00\x00\x00\x00\x00" {
		t.Errorf("the plaintext is still there: %q", plaintext)
	}
	// What fails by itself keeps its own error.
	_, err := client.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("broken"), KeyId: testKeyID, Uid: "u"})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a damaged ciphertext without a record: %v", err)
	}
}

// A caller who is not on the list goes on record with uid and pid.
func TestRefusedCallersAreAudited(t *testing.T) {
	trail := new(listed)
	client := serveAudited(t, trail, nil, func(c *Config) { c.AllowedUIDs = []uint32{4242} })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := client.Status(ctx, &kmsapi.StatusRequest{}); err == nil {
		t.Error("a caller who is not on the list was served")
	}
	trail.mu.Lock()
	defer trail.mu.Unlock()
	if len(trail.refused) == 0 || trail.refused[0].UID != uint32(os.Getuid()) || trail.refused[0].PID != int32(os.Getpid()) {
		t.Errorf("on record: %+v", trail.refused)
	}
}
