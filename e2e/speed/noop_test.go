package speed

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	kmsapi "k8s.io/kms/apis/v2"
)

// noop is a KMS v2 plugin that protects nothing, at no cost. It answers with as
// many bytes as kekd does, since every object in etcd carries them.
type noop struct {
	kmsapi.UnsafeKeyManagementServiceServer
}

const (
	noopKey        = "k8s-kek/000000000000000000000000000000000000/000000"
	noopCiphertext = 178 // bytes
	seedSize       = 32  // what kube-apiserver has encrypted, in bytes
)

func (noop) Status(context.Context, *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	return &kmsapi.StatusResponse{Version: "v2", Healthz: "ok", KeyId: noopKey}, nil
}

func (noop) Encrypt(_ context.Context, r *kmsapi.EncryptRequest) (*kmsapi.EncryptResponse, error) {
	ciphertext := make([]byte, noopCiphertext)
	copy(ciphertext, r.GetPlaintext())
	return &kmsapi.EncryptResponse{Ciphertext: ciphertext, KeyId: noopKey}, nil
}

func (noop) Decrypt(_ context.Context, r *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	return &kmsapi.DecryptResponse{Plaintext: r.GetCiphertext()[:seedSize]}, nil
}

// startNoop serves the plugin until the benchmark ends, and returns its socket.
func startNoop(b *testing.B) string {
	b.Helper()
	socket := filepath.Join(b.TempDir(), "noop.sock")
	l, err := new(net.ListenConfig).Listen(b.Context(), "unix", socket)
	if err != nil {
		b.Fatalf("listen for the no-op plugin: %v", err)
	}
	s := grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(s, noop{})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	b.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			b.Errorf("serve the no-op plugin: %v", err)
		}
	})
	return socket
}
