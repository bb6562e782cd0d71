package conformance_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	kmsv2 "k8s.io/kms/apis/v2"

	"kekd/internal/conformance"
	"kekd/internal/kek"
)

// magic starts every ciphertext of the reference server.
const magic = "ref1"

// referenceServer is a KMS v2 plugin in memory that does everything right. A
// planted fault is a hook around one of its methods; what the hooks need to go
// wrong in is in fields.
//
//	ciphertext = magic ‖ nonce(12) ‖ AES-256-GCM, AAD = magic, key_id, annotations
type referenceServer struct {
	kmsv2.UnimplementedKeyManagementServiceServer

	annotations map[string][]byte // made by every Encrypt
	nonce       []byte            // instead of a random one
	clock       *fakeClock

	mu      sync.Mutex
	keys    map[string]cipher.AEAD // guarded by mu; by key_id
	current string                 // guarded by mu

	onStatus  func(context.Context, statusFunc) (*kmsv2.StatusResponse, error)
	onEncrypt func(context.Context, *kmsv2.EncryptRequest, encryptFunc) (*kmsv2.EncryptResponse, error)
	onDecrypt func(context.Context, *kmsv2.DecryptRequest, decryptFunc) (*kmsv2.DecryptResponse, error)
	stop      func() // ends the server without a farewell
}

type (
	statusFunc  func() (*kmsv2.StatusResponse, error)
	encryptFunc func(*kmsv2.EncryptRequest) (*kmsv2.EncryptResponse, error)
	decryptFunc func(*kmsv2.DecryptRequest) (*kmsv2.DecryptResponse, error)
)

func newReferenceServer(t *testing.T) *referenceServer {
	t.Helper()
	s := &referenceServer{keys: map[string]cipher.AEAD{}, clock: &fakeClock{}}
	s.rotate("reference/key-1")
	return s
}

// rotate makes a new key under the given key_id the current one.
func (s *referenceServer) rotate(keyID string) {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[keyID], s.current = aead, keyID
}

func (s *referenceServer) key(keyID string) (string, cipher.AEAD) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if keyID == "" {
		keyID = s.current
	}
	return keyID, s.keys[keyID]
}

func (s *referenceServer) Status(ctx context.Context, _ *kmsv2.StatusRequest) (*kmsv2.StatusResponse, error) {
	next := func() (*kmsv2.StatusResponse, error) {
		keyID, _ := s.key("")
		return &kmsv2.StatusResponse{Version: "v2", Healthz: "ok", KeyId: keyID}, nil
	}
	if s.onStatus != nil {
		return s.onStatus(ctx, next)
	}
	return next()
}

func (s *referenceServer) Encrypt(ctx context.Context, req *kmsv2.EncryptRequest) (*kmsv2.EncryptResponse, error) {
	next := func(req *kmsv2.EncryptRequest) (*kmsv2.EncryptResponse, error) {
		if n := len(req.GetPlaintext()); n == 0 || n > 900 {
			return nil, status.Errorf(codes.InvalidArgument, "plaintext of %d bytes", n)
		}
		return s.seal(req.GetPlaintext()), nil
	}
	if s.onEncrypt != nil {
		return s.onEncrypt(ctx, req, next)
	}
	return next(req)
}

// seal encrypts a plaintext of any size.
func (s *referenceServer) seal(plaintext []byte) *kmsv2.EncryptResponse {
	keyID, aead := s.key("")
	nonce := bytes.Clone(s.nonce)
	if nonce == nil {
		nonce = make([]byte, aead.NonceSize())
		_, _ = rand.Read(nonce)
	}
	out := append([]byte(magic), nonce...)
	out = aead.Seal(out, nonce, plaintext, aad(keyID, s.annotations))
	return &kmsv2.EncryptResponse{Ciphertext: out, KeyId: keyID, Annotations: s.annotations}
}

func (s *referenceServer) Decrypt(ctx context.Context, req *kmsv2.DecryptRequest) (*kmsv2.DecryptResponse, error) {
	if s.onDecrypt != nil {
		return s.onDecrypt(ctx, req, s.open)
	}
	return s.open(req)
}

func (s *referenceServer) open(req *kmsv2.DecryptRequest) (*kmsv2.DecryptResponse, error) {
	if req.GetKeyId() == "" || len(req.GetKeyId()) > 1024 {
		return nil, status.Error(codes.InvalidArgument, "key_id of a wrong size")
	}
	keyID, aead := s.key(req.GetKeyId())
	if aead == nil {
		return nil, status.Error(codes.NotFound, "no such key")
	}
	rest, ours := bytes.CutPrefix(req.GetCiphertext(), []byte(magic))
	if !ours || len(rest) < aead.NonceSize() || len(rest) > 1024 {
		return nil, status.Error(codes.InvalidArgument, "not a ciphertext of this plugin")
	}
	plaintext, err := aead.Open(nil, rest[:aead.NonceSize()], rest[aead.NonceSize():], aad(keyID, req.GetAnnotations()))
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "the ciphertext is damaged")
	}
	return &kmsv2.DecryptResponse{Plaintext: plaintext}, nil
}

// aad binds what is stored in the clear.
func aad(keyID string, annotations map[string][]byte) []byte {
	out := fmt.Appendf(nil, "%q", magic+keyID)
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		out = fmt.Appendf(out, " %q %q", key, annotations[key])
	}
	return out
}

// serve starts the server on a Unix socket of its own and returns a connection
// to it, made as kekctl makes it.
func (s *referenceServer) serve(t *testing.T) *grpc.ClientConn {
	t.Helper()
	// Not t.TempDir: with the name of a subtest in it the path may pass 107 bytes.
	dir, err := os.MkdirTemp("", "kms")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "kms.sock")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if len(metadata.ValueFromIncomingContext(ctx, kek.VerifyHeader)) != 1 {
			t.Errorf("%s without the header %s", info.FullMethod, kek.VerifyHeader)
		}
		return next(ctx, req)
	}))
	kmsv2.RegisterKeyManagementServiceServer(server, s)
	s.stop = server.Stop
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	conn, err := conformance.Dial("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// fakeClock moves only when a planted fault says that something took long.
type fakeClock struct{ elapsed atomic.Int64 }

func (c *fakeClock) Now() time.Time { return time.Unix(0, c.elapsed.Load()) }

func (c *fakeClock) advance(d time.Duration) { c.elapsed.Add(int64(d)) }
