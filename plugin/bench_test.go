package plugin

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/kek"
)

// BenchmarkGuard is what kekd adds to gRPC around every request.
func BenchmarkGuard(b *testing.B) {
	g := &guard{log: zap.NewNop(), observer: nopObserver{}, clock: time.Now, throttle: newThrottle(time.Now), max: 64}
	s := &service{sealer: nopConfig(b).Sealer, health: nopConfig(b).Health}
	info := &grpc.UnaryServerInfo{FullMethod: kmsapi.KeyManagementService_Encrypt_FullMethodName}
	handler := func(ctx context.Context, req any) (any, error) { return s.Encrypt(ctx, req.(*kmsapi.EncryptRequest)) }
	ctx, cancel := context.WithTimeout(b.Context(), time.Second)
	defer cancel()
	req := &kmsapi.EncryptRequest{Plaintext: []byte("0123456789abcdef0123456789abcdef"), Uid: testUID}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.unary(ctx, req, info, handler); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkEncrypt is a whole call over the socket with a sealer that does
// nothing, beside a bare gRPC server with default options. Client and server
// share the process.
func BenchmarkEncrypt(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("bare/callers=%d", callers), func(b *testing.B) {
			path := filepath.Join(tempDir(b), "bare.sock")
			cfg := nopConfig(b)
			server := grpc.NewServer()
			kmsapi.RegisterKeyManagementServiceServer(server, &service{sealer: cfg.Sealer, health: cfg.Health})
			socket, err := Listen(path)
			if err != nil {
				b.Fatal(err)
			}
			go func() { _ = server.Serve(acceptor{socket}) }()
			b.Cleanup(func() { server.Stop(); _ = socket.Close() })
			benchCalls(b, kmsapi.NewKeyManagementServiceClient(dial(b, path)), callers)
		})
		b.Run(fmt.Sprintf("kekd/callers=%d", callers), func(b *testing.B) {
			path := filepath.Join(tempDir(b), "kekd.sock")
			server, err := New(nopConfig(b))
			if err != nil {
				b.Fatal(err)
			}
			socket, err := Listen(path)
			if err != nil {
				b.Fatal(err)
			}
			ran := make(chan error, 1)
			go func() { ran <- server.Run(socket) }()
			b.Cleanup(func() { _, _ = server.Shutdown(context.Background()), <-ran })
			benchCalls(b, kmsapi.NewKeyManagementServiceClient(dial(b, path)), callers)
		})
	}
}

func nopConfig(tb testing.TB) Config {
	tb.Helper()
	sealed := kek.Sealed{KeyID: testKeyID, Ciphertext: make([]byte, 200)}
	return Config{
		Sealer:      &fakeSealer{seal: func(context.Context, []byte) (kek.Sealed, error) { return sealed, nil }},
		Health:      &fakeHealth{keyID: testKeyID},
		AllowedUIDs: []uint32{uint32(os.Getuid())},
	}
}

func benchCalls(b *testing.B, client kmsapi.KeyManagementServiceClient, callers int) {
	b.ReportAllocs()
	b.SetParallelism(max(1, callers/runtime.GOMAXPROCS(0)))
	if callers == 1 {
		for b.Loop() {
			benchCall(b, client)
		}
		return
	}
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			benchCall(b, client)
		}
	})
}

func benchCall(b *testing.B, client kmsapi.KeyManagementServiceClient) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if err := call(ctx, client, "Encrypt"); err != nil {
		b.Error(err)
	}
}
