package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsv2 "k8s.io/kms/apis/v2"

	"kekd/internal/kek"
)

// noopCommand is the argument that makes this program the no-op server.
const noopCommand = "-serve-noop"

const (
	noopName    = "no-op"
	controlName = "control"
)

// noopOverhead is what the no-op adds to a plaintext, in bytes: as much as
// kekd's envelope, version 1, with a seed wrapped by AES-GCM under a key that
// kekd made. So both move the same number of bytes.
//
//	header 2+1 ‖ CKA_ID 1+17 ‖ check value 3 ‖ wrapped seed 2+60 ‖ salt 32 ‖ nonce 12 ‖ tag 16
const noopOverhead = 3 + 18 + 3 + 62 + 32 + 12 + 16

// noopService is a KMS v2 plugin that keeps nothing secret: its ciphertext is
// the plaintext behind noopOverhead zeros.
type noopService struct {
	kmsv2.UnimplementedKeyManagementServiceServer
	keyID string
}

func newNoopService() *noopService {
	id := make([]byte, 17)
	return &noopService{keyID: kek.KeyID("k8s-kek", kek.ID(id), kek.CheckValue{})}
}

func (s *noopService) Status(context.Context, *kmsv2.StatusRequest) (*kmsv2.StatusResponse, error) {
	return &kmsv2.StatusResponse{Version: "v2", Healthz: "ok", KeyId: s.keyID}, nil
}

func (s *noopService) Encrypt(_ context.Context, req *kmsv2.EncryptRequest) (*kmsv2.EncryptResponse, error) {
	ciphertext := make([]byte, noopOverhead, noopOverhead+len(req.GetPlaintext()))
	return &kmsv2.EncryptResponse{Ciphertext: append(ciphertext, req.GetPlaintext()...), KeyId: s.keyID}, nil
}

func (s *noopService) Decrypt(_ context.Context, req *kmsv2.DecryptRequest) (*kmsv2.DecryptResponse, error) {
	if len(req.GetCiphertext()) < noopOverhead {
		return nil, status.Error(codes.InvalidArgument, "the ciphertext is too short")
	}
	return &kmsv2.DecryptResponse{Plaintext: req.GetCiphertext()[noopOverhead:]}, nil
}

// noopListener is the file descriptor on which the no-op server finds its
// listening socket: the first after stdin, stdout and stderr.
const noopListener = 3

// serveNoop serves the no-op plugin with grpc-go's defaults until stdin ends,
// which it does with the parent process, however that ends.
func serveNoop(stdin io.Reader) error {
	listener, err := net.FileListener(os.NewFile(noopListener, "listener"))
	if err != nil {
		return fmt.Errorf("take over the listening socket: %w", err)
	}
	server := grpc.NewServer()
	kmsv2.RegisterKeyManagementServiceServer(server, newNoopService())
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		server.Stop()
	}()
	return server.Serve(listener)
}

// startNoop runs this program again as a no-op server with a socket in dir.
// The socket is bound here and handed over, so that a client need not wait for
// it. The caller calls stop, which ends the server and waits for it.
func startNoop(dir, name string, stderr io.Writer) (socket string, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, fmt.Errorf("find the own program: %w", err)
	}
	socket = filepath.Join(dir, name+".sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return "", nil, fmt.Errorf("listen for the no-op server: %w", err)
	}
	// Only the server's copy shall live on; closing ours must not remove the socket.
	listener.SetUnlinkOnClose(false)
	defer func() { _ = listener.Close() }()
	file, err := listener.File()
	if err != nil {
		return "", nil, fmt.Errorf("hand over the listening socket: %w", err)
	}
	defer func() { _ = file.Close() }()

	cmd := exec.Command(self, noopCommand) //nolint:gosec // G204: it is this program
	cmd.Stderr = stderr
	cmd.ExtraFiles = []*os.File{file}
	// A Ctrl-C at the terminal is for the parent, who ends the server by stop.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return "", nil, fmt.Errorf("prepare the no-op server: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return "", nil, fmt.Errorf("start the no-op server: %w", err)
	}
	stop = func() {
		_ = stdin.Close()
		kill := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		if err := cmd.Wait(); err != nil {
			printf(stderr, "bench: warning: the %s server ended with: %v\n", name, err)
		}
	}
	return socket, stop, nil
}
