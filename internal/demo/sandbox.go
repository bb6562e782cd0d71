package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"
)

// sandbox is a SoftHSM token and the files of kekds that share it.
type sandbox struct {
	root         string
	kekd, kekctl string
}

const (
	tokenLabel = "kekd"
	// demoPIN protects a token that is thrown away.
	demoPIN    = "123456"
	demoModule = "/usr/lib/softhsm/libsofthsm2.so"
)

func newSandbox(ctx context.Context, root, kekd, kekctl string) (*sandbox, error) {
	b := &sandbox{root: root}
	for path, to := range map[string]*string{kekd: &b.kekd, kekctl: &b.kekctl} {
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		*to = abs
	}
	if err := os.MkdirAll(b.path("tokens"), 0o700); err != nil {
		return nil, err
	}
	conf := "directories.tokendir = " + b.path("tokens") + "\nobjectstore.backend = file\nlog.level = ERROR\n"
	for name, content := range map[string]string{"softhsm2.conf": conf, "pin": demoPIN + "\n"} {
		if err := os.WriteFile(b.path(name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	cmd := exec.CommandContext(ctx, "softhsm2-util", "--init-token", "--free", "--label", tokenLabel, "--so-pin", "87654321", "--pin", demoPIN)
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+b.path("softhsm2.conf"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make a SoftHSM token: %w: %s", err, out)
	}
	return b, nil
}

func (b *sandbox) path(name string) string { return filepath.Join(b.root, name) }

// daemon is a running kekd.
type daemon struct {
	config, socket, http string
	client               kmsapi.KeyManagementServiceClient
	conn                 *grpc.ClientConn
	cmd                  *exec.Cmd
	log                  bytes.Buffer // read after the process ended
	ended                chan error
}

// configure writes the configuration of a kekd and returns it, not started yet.
func (b *sandbox) configure(ctx context.Context, name, mode string) (*daemon, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &daemon{config: b.path(name + ".yaml"), socket: b.path(name + ".sock"), http: l.Addr().String()}
	if err := l.Close(); err != nil {
		return nil, err
	}
	text := fmt.Sprintf(`socket:   {path: %s, allowedUIDs: [%d]}
http:     {address: %q}
stateDir: %s
hsm:
  module: %s
  token:  {label: %s}
  pinFile: %s
  env:    {SOFTHSM2_CONF: %s}
keyRing:  {label: k8s-kek, refresh: 1s}
seeds:    {mode: %s, lockMemory: false}
`, d.socket, os.Getuid(), d.http, b.path(name+"-state"), demoModule, tokenLabel, b.path("pin"), b.path("softhsm2.conf"), mode)
	return d, os.WriteFile(d.config, []byte(text), 0o600)
}

// start runs the daemon until stop, and waits until it is ready.
func (b *sandbox) start(ctx context.Context, d *daemon) error {
	// Not CommandContext: the daemon is stopped in good order.
	d.cmd = exec.Command(b.kekd, "serve", "--config", d.config) //nolint:noctx,gosec // G204: the binary that was asked for
	d.cmd.Stderr = &d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C reaches it through stop
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.ended = make(chan error, 1)
	go func() { d.ended <- d.cmd.Wait() }()
	conn, err := grpc.NewClient("unix://"+d.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return errors.Join(err, d.stop())
	}
	d.conn, d.client = conn, kmsapi.NewKeyManagementServiceClient(conn)
	limited, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		_, err := d.client.Status(limited, &kmsapi.StatusRequest{})
		if err == nil {
			return nil
		}
		select {
		case <-limited.Done():
			stopped := d.stop()
			return fmt.Errorf("kekd is not ready: %w\n%s", errors.Join(err, stopped), d.log.String())
		case ended := <-d.ended:
			d.ended <- ended
			return fmt.Errorf("kekd ended: %w\n%s", ended, d.log.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stop ends the daemon and waits for it.
func (d *daemon) stop() error {
	if d.conn != nil {
		_ = d.conn.Close() // nothing is lost
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may be gone already
	select {
	case err := <-d.ended:
		return err
	case <-time.After(15 * time.Second):
		_ = d.cmd.Process.Kill()
		return errors.New("kekd did not stop and was killed")
	}
}

// ctl runs kekctl and returns what it prints.
func (b *sandbox) ctl(ctx context.Context, d *daemon, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, b.kekctl, append([]string{"--config", d.config}, args...)...) //nolint:gosec // G204: the binary that was asked for
	var out, notes bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &notes
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kekctl %s: %w: %s", strings.Join(args, " "), err, notes.String())
	}
	return out.String(), nil
}
