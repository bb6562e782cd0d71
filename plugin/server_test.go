package plugin

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/kek"
)

func TestNewRefuses(t *testing.T) {
	good := Config{Sealer: &fakeSealer{}, Health: &fakeHealth{}, AllowedUIDs: []uint32{0}}
	tests := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no sealer", func(c *Config) { c.Sealer = nil }, "Config.Sealer"},
		{"no health", func(c *Config) { c.Health = nil }, "Config.Health"},
		{"nobody allowed", func(c *Config) { c.AllowedUIDs = nil }, "socket.allowedUIDs"},
		{"negative cap", func(c *Config) { c.MaxInFlight = -1 }, "socket.maxInFlight"},
		{"negative timeout", func(c *Config) { c.RequestTimeout = -1 }, "socket.requestTimeout"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good
			tt.change(&cfg)
			if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New: %v, want an error with %q", err, tt.want)
			}
		})
	}
}

// run serves by hand, for tests that shut down themselves.
func run(t *testing.T, sealer *fakeSealer) (server *Server, path string, ran <-chan error) {
	t.Helper()
	server, err := New(Config{Sealer: sealer, Health: &fakeHealth{keyID: testKeyID}, AllowedUIDs: []uint32{uint32(os.Getuid())}})
	must(t, err)
	path = filepath.Join(tempDir(t), "kekd.sock")
	socket, err := Listen(path)
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- server.Run(socket) }()
	return server, path, done
}

// Requests in flight are served to their end, new clients are not, and the lock
// is held until the last one is done.
func TestShutdownDrains(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	server, path, ran := run(t, &fakeSealer{open: func(context.Context, kek.Sealed) ([]byte, error) {
		close(entered)
		<-release
		return seed, nil
	}})
	client := kmsapi.NewKeyManagementServiceClient(dial(t, path))
	result := make(chan error, 1)
	go func() { result <- call(t.Context(), client, "Decrypt") }()
	receive(t, "the Decrypt in the sealer", entered)

	stopped := make(chan error, 1)
	go func() { stopped <- server.Shutdown(t.Context()) }()
	eventually(t, "the socket file is gone", func() bool {
		_, err := os.Lstat(path)
		return os.IsNotExist(err)
	})
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("a new client was accepted")
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another kekd") {
		t.Errorf("a second kekd during the drain: %v", err)
	}
	select {
	case err := <-stopped:
		t.Fatalf("Shutdown did not wait: %v", err)
	default:
	}

	close(release)
	if err := receive(t, "the Decrypt's answer", result); err != nil {
		t.Errorf("Decrypt in flight: %v", err)
	}
	if err := receive(t, "Shutdown", stopped); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := receive(t, "Run", ran); err != nil {
		t.Errorf("Run: %v", err)
	}
	mustListen(t, path)
}

// A handler that hangs costs the drain deadline and nothing more.
func TestShutdownStopsHard(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	canceled := make(chan struct{})
	server, path, ran := run(t, &fakeSealer{open: func(ctx context.Context, _ kek.Sealed) ([]byte, error) {
		close(entered)
		<-ctx.Done()
		close(canceled)
		<-release // ignores it
		return nil, ctx.Err()
	}})
	defer close(release)
	client := kmsapi.NewKeyManagementServiceClient(dial(t, path))
	result := make(chan error, 1)
	go func() { result <- call(t.Context(), client, "Decrypt") }()
	receive(t, "the Decrypt in the sealer", entered)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	receive(t, "the handler's context to end", canceled)
	if code := status.Code(receive(t, "the Decrypt's answer", result)); code != codes.Unavailable {
		t.Errorf("Decrypt in flight: %v", code)
	}
	if err := receive(t, "Run", ran); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestShutdownBeforeRun(t *testing.T) {
	server, err := New(Config{Sealer: &fakeSealer{}, Health: &fakeHealth{}, AllowedUIDs: []uint32{0}})
	must(t, err)
	must(t, server.Shutdown(t.Context()))
	path := filepath.Join(tempDir(t), "kekd.sock")
	socket := mustListen(t, path)
	must(t, server.Run(socket))
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket stayed: %v", err)
	}
}

// Clients that connect before Run are answered by it.
func TestSocketQueuesBeforeRun(t *testing.T) {
	server, err := New(Config{Sealer: &fakeSealer{}, Health: &fakeHealth{keyID: testKeyID}, AllowedUIDs: []uint32{uint32(os.Getuid())}})
	must(t, err)
	path := filepath.Join(tempDir(t), "kekd.sock")
	socket := mustListen(t, path)
	client := kmsapi.NewKeyManagementServiceClient(dial(t, path))
	result := make(chan error, 1)
	go func() { result <- call(t.Context(), client, "Status") }()
	ran := make(chan error, 1)
	go func() { ran <- server.Run(socket) }()
	if err := receive(t, "the Status", result); err != nil {
		t.Errorf("Status: %v", err)
	}
	must(t, server.Shutdown(t.Context()))
	must(t, receive(t, "Run", ran))
}

// Everything at once, for the race detector: calls of all kinds, sockets that
// vanish, and a shutdown in the middle.
func TestConcurrency(t *testing.T) {
	r := start(t, quickWatch)
	var wg sync.WaitGroup
	for range 4 {
		client := r.client(t)
		must(t, call(t.Context(), client, "Status")) // connects while the socket is there
		for _, method := range []string{"Status", "Encrypt", "Decrypt"} {
			wg.Go(func() {
				for range 50 {
					if err := call(t.Context(), client, method); err != nil {
						t.Errorf("%s: %v", method, err)
					}
				}
			})
		}
	}
	wg.Go(func() {
		for range 5 {
			_ = os.Remove(r.path)
			eventually(t, "bound again", func() bool {
				_, err := os.Lstat(r.path)
				return err == nil
			})
		}
	})
	wg.Wait()
}

// What gRPC turns away before the service sees it is counted as arrived, so that it
// can be told by the difference.
func TestArrivalsCountWhatGRPCRefuses(t *testing.T) {
	r := start(t)
	conn := dial(t, r.path)
	client := kmsapi.NewKeyManagementServiceClient(conn)
	if _, err := client.Status(t.Context(), &kmsapi.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := conn.Invoke(t.Context(), "/v2.KeyManagementService/Nothing", &kmsapi.StatusRequest{}, &kmsapi.StatusResponse{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("an unknown method: %v", err)
	}
	big := &kmsapi.EncryptRequest{Plaintext: make([]byte, maxMessageSize+1)}
	if _, err := client.Encrypt(t.Context(), big); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message that is too large: %v", err)
	}
	requests, _, _, _ := r.tally.snapshot()
	if n := r.tally.arrivals(); n != 3 || len(requests) != 1 {
		t.Errorf("%d arrived and %v were served, want 3 and the Status", n, requests)
	}
}
