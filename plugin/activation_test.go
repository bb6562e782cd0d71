package plugin

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	kmsapi "k8s.io/kms/apis/v2"
)

// childActivated serves the socket that it was passed until its stdin ends.
func childActivated(socket *Socket) int {
	server, err := New(Config{
		Sealer: &fakeSealer{}, Health: &fakeHealth{keyID: testKeyID}, AllowedUIDs: []uint32{uint32(os.Getuid())},
	})
	if err != nil {
		fmt.Println("refused:", err)
		return 1
	}
	ran := make(chan error, 1)
	go func() { ran <- server.Run(socket) }()
	fmt.Printf("serving systemd=%v LISTEN_FDS=%q\n", socket.systemd, os.Getenv("LISTEN_FDS"))
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	if err := server.Shutdown(context.Background()); err != nil {
		return 1
	}
	if err := <-ran; err != nil {
		return 1
	}
	return 0
}

// activatedChild starts a child as systemd does, passing the files from
// descriptor 3 on.
func activatedChild(t *testing.T, path string, files ...*os.File) *child {
	t.Helper()
	// LISTEN_PID must be the child's own pid, which the shell knows and keeps.
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `LISTEN_PID=$$ exec "$0"`, os.Args[0])
	cmd.Env = []string{fmt.Sprintf("LISTEN_FDS=%d", len(files))}
	cmd.ExtraFiles = files
	return startChild(t, cmd, "activated", path)
}

// passed makes a socket at path as systemd would and returns its descriptor.
func passed(t *testing.T, path string, mode os.FileMode) *os.File {
	t.Helper()
	l := foreignListener(t, path)
	must(t, os.Chmod(path, mode))
	f, err := l.File()
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestSystemdSocket(t *testing.T) {
	path := filepath.Join(tempDir(t), "kekd.sock")
	f := passed(t, path, 0o660)
	kekd := activatedChild(t, path, f)
	if want := `serving systemd=true LISTEN_FDS=""`; kekd.said != want {
		t.Fatalf("child said %q, want %q", kekd.said, want)
	}
	client := kmsapi.NewKeyManagementServiceClient(dial(t, path))
	if err := call(t.Context(), client, "Encrypt"); err != nil {
		t.Errorf("Encrypt: %v", err)
	}
	if _, err := os.Stat(path + lockSuffix); !os.IsNotExist(err) {
		t.Errorf("a lock beside systemd's socket: %v", err)
	}

	// A stop leaves the socket to systemd: clients queue until the next start.
	kekd.stop()
	if err := kekd.cmd.Wait(); err != nil {
		t.Errorf("the child's end: %v", err)
	}
	queued, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("nobody listens between two runs: %v", err)
	}
	_ = queued.Close()
}

func TestSystemdSocketRefused(t *testing.T) {
	tests := []struct {
		name  string
		files func(t *testing.T, path string) []*os.File
		want  []string
	}{
		{"another path", func(t *testing.T, path string) []*os.File {
			return []*os.File{passed(t, path+".other", 0o600)}
		}, []string{"systemd passes unix socket PATH.other instead of PATH", "ListenStream=PATH"}},
		{"two sockets", func(t *testing.T, path string) []*os.File {
			return []*os.File{passed(t, path, 0o600), passed(t, path+".other", 0o600)}
		}, []string{"systemd passes 2 sockets", "keep one ListenStream="}},
		{"no listener", func(t *testing.T, path string) []*os.File {
			f, err := os.Create(path)
			must(t, err)
			t.Cleanup(func() { _ = f.Close() })
			return []*os.File{f}
		}, []string{"take over systemd's socket", "ListenStream=PATH"}},
		{"open to everybody", func(t *testing.T, path string) []*os.File {
			return []*os.File{passed(t, path, 0o666)}
		}, []string{"mode 0666, open to everybody", "SocketMode=0600"}},
		{"removed meanwhile", func(t *testing.T, path string) []*os.File {
			f := passed(t, path, 0o600)
			must(t, os.Remove(path))
			return []*os.File{f}
		}, []string{"look at systemd's socket", "systemctl restart kekd.socket"}},
		{"replaced by a file", func(t *testing.T, path string) []*os.File {
			f := passed(t, path, 0o600)
			must(t, os.Remove(path))
			must(t, os.WriteFile(path, nil, 0o600))
			return []*os.File{f}
		}, []string{"no longer systemd's socket", "systemctl restart kekd.socket"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(tempDir(t), "kekd.sock")
			said := activatedChild(t, path, tt.files(t, path)...).said
			for _, want := range append(tt.want, "refused: socket.path: ") {
				if want = strings.ReplaceAll(want, "PATH", path); !strings.Contains(said, want) {
					t.Errorf("child said %q, which misses %q", said, want)
				}
			}
		})
	}
}

func TestSystemdSocketIsNotBoundAgain(t *testing.T) {
	path := filepath.Join(tempDir(t), "kekd.sock")
	s := &Socket{path: path, systemd: true, listener: foreignListener(t, path)}
	var err error
	s.at, err = inodeOf(path)
	must(t, err)
	if rebound, err := s.tend(); rebound || err != nil {
		t.Errorf("untouched: %v, %v", rebound, err)
	}
	must(t, os.Remove(path))
	if rebound, err := s.tend(); rebound || err == nil || !strings.Contains(err.Error(), "systemctl restart kekd.socket") {
		t.Errorf("vanished: %v, %v", rebound, err)
	}
	must(t, s.Close())
}
