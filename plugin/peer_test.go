package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"kekd/internal/kek"
)

// dialAs connects with another uid, which root may do for a single thread.
func dialAs(t *testing.T, path string, uid int) net.Conn {
	t.Helper()
	type result struct {
		conn net.Conn
		err  error
	}
	dialed := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			dialed <- result{err: fmt.Errorf("setresuid: %w", errno)}
			return
		}
		conn, err := net.Dial("unix", path)
		dialed <- result{conn, err}
	}()
	r := <-dialed
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = r.conn.Close() })
	return r.conn
}

func TestUIDAllowList(t *testing.T) {
	self := uint32(os.Getuid())
	type row struct {
		name    string
		allowed []uint32
		caller  uint32
		ok      bool
	}
	tests := []row{
		{"own uid allowed", []uint32{4242, self}, self, true},
		{"own uid not allowed", []uint32{self + 1}, self, false},
	}
	if os.Geteuid() == 0 {
		tests = append(tests,
			row{"foreign uid not allowed", []uint32{self}, 65534, false},
			row{"foreign uid allowed", []uint32{65534}, 65534, true},
			row{"root is not special", []uint32{65534}, 0, false})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := start(t, func(c *Config, _ *Server) { c.AllowedUIDs = tt.allowed })
			// The file's mode would keep the others out as well.
			must(t, os.Chmod(filepath.Dir(r.path), 0o755))
			must(t, os.Chmod(r.path, 0o666))
			client := r.client(t, grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
				if tt.caller == self {
					return net.Dial("unix", r.path)
				}
				return dialAs(t, r.path, int(tt.caller)), nil
			}))
			err := call(t.Context(), client, "Status")
			_, _, refused, _ := r.tally.snapshot()
			if tt.ok {
				if err != nil || len(refused) != 0 {
					t.Errorf("Status: %v; refused %v", err, refused)
				}
				return
			}
			if status.Code(err) != codes.Unavailable {
				t.Errorf("Status: %v, want Unavailable", err)
			}
			if len(refused) == 0 || refused[0] != tt.caller {
				t.Errorf("refused %v, want %d", refused, tt.caller)
			}
			lines := r.logs.FilterMessage("caller refused, its uid is not in socket.allowedUIDs").All()
			if len(lines) == 0 || lines[0].Level != zap.WarnLevel || lines[0].ContextMap()["peer_uid"] != tt.caller {
				t.Errorf("log is %v", lines)
			}
			if requests, _, _, _ := r.tally.snapshot(); len(requests) != 0 {
				t.Errorf("requests got through: %v", requests)
			}
		})
	}
}

// A refused caller gets not a byte, and none of its own is read.
func TestRefusedCallerGetsNothing(t *testing.T) {
	r := start(t, func(c *Config, _ *Server) { c.AllowedUIDs = []uint32{uint32(os.Getuid()) + 1} })
	conn, err := net.Dial("unix", r.path)
	must(t, err)
	defer func() { _ = conn.Close() }()
	must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, _ = conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) // may already be closed
	got, err := io.ReadAll(conn)
	// Closing with unread bytes resets the connection.
	if len(got) != 0 || (err != nil && !errors.Is(err, syscall.ECONNRESET)) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestRefusalsDoNotFloodTheLog(t *testing.T) {
	r := start(t, func(c *Config, _ *Server) { c.AllowedUIDs = []uint32{uint32(os.Getuid()) + 1} })
	for range 3 * throttleLines {
		conn, err := net.Dial("unix", r.path)
		must(t, err)
		must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
		if _, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a refused caller is still connected")
		}
		_ = conn.Close()
	}
	_, _, refused, _ := r.tally.snapshot()
	if n := r.logs.Len(); len(refused) != 3*throttleLines || n != throttleLines {
		t.Errorf("%d refused and %d lines, want %d and %d", len(refused), n, 3*throttleLines, throttleLines)
	}
}

func TestPeerInfoReachesHandlers(t *testing.T) {
	r := start(t)
	infos := make(chan PeerInfo, 1)
	r.sealer.open = func(ctx context.Context, _ kek.Sealed) ([]byte, error) {
		if p, ok := peer.FromContext(ctx); ok {
			if info, ok := p.AuthInfo.(PeerInfo); ok {
				infos <- info
			}
		}
		return seed, nil
	}
	if err := call(t.Context(), r.client(t), "Decrypt"); err != nil {
		t.Fatal(err)
	}
	got := receive(t, "the peer's credentials", infos)
	want := PeerInfo{CommonAuthInfo: got.CommonAuthInfo, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), PID: int32(os.Getpid())}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("peer (-want +got):\n%s", diff)
	}
}

func TestPeerOfOtherConnections(t *testing.T) {
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	c := &peerCredentials{refused: func(PeerInfo) { t.Error("reported as a refused uid") }}
	if _, _, err := c.ServerHandshake(a); err == nil {
		t.Error("a pipe passed")
	}
	if _, _, err := c.Clone().ClientHandshake(t.Context(), "", a); err == nil {
		t.Error("the client's side passed")
	}
}
