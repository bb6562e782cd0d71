package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const (
	noopName    = "no-op"
	controlName = "control"
)

// child is a running plugin of package plugins.
type child struct {
	socket string
	pid    int
	// stop ends the process and waits for it. It must be called once.
	stop func()
}

// startPlugin runs a plugin's binary with a socket in dir. The socket is bound
// here and handed over, so that a client need not wait for it.
func startPlugin(binary string, args, env []string, dir, name string, stderr io.Writer) (*child, error) {
	socket := filepath.Join(dir, name+".sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the %s plugin: %w", name, err)
	}
	// Only the plugin's copy shall live on; closing ours must not remove the socket.
	listener.SetUnlinkOnClose(false)
	defer func() { _ = listener.Close() }()
	file, err := listener.File()
	if err != nil {
		return nil, fmt.Errorf("hand over the listening socket: %w", err)
	}
	defer func() { _ = file.Close() }()

	cmd := exec.Command(binary, args...) //nolint:gosec,noctx // G204: the binary that was asked for; it is stopped in good order
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = stderr
	cmd.ExtraFiles = []*os.File{file}
	// A Ctrl-C at the terminal is for the parent, who ends the plugin by stop.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("prepare the %s plugin: %w", name, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the %s plugin: %w; go build -o DIR ./internal/bench ./internal/bench/cmd/... makes it", name, err)
	}
	return &child{socket: socket, pid: cmd.Process.Pid, stop: func() {
		_ = stdin.Close()
		kill := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		if err := cmd.Wait(); err != nil {
			printf(stderr, "bench: warning: the %s plugin ended with: %v\n", name, err)
		}
		_ = os.Remove(socket)
	}}, nil
}

// sibling is a program that was built beside this one.
func sibling(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}
