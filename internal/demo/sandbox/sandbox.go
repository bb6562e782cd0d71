// Package sandbox runs kekds on a SoftHSM token of their own, below a directory
// that is thrown away. It is for make run and make bench.
package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"
)

const (
	// TokenLabel is the token's label, and Ring the label of its keys.
	TokenLabel = "kekd"
	Ring       = "k8s-kek"
	// PIN protects a token that is thrown away.
	PIN = "123456"
	// Module is where Debian's softhsm2 package puts its module.
	Module = "/usr/lib/softhsm/libsofthsm2.so"
)

// readyTimeout is how long a daemon may take until it answers.
const readyTimeout = 15 * time.Second

// Sandbox is a SoftHSM token and the files of kekds that share it.
type Sandbox struct {
	root         string
	kekd, kekctl string // binaries
}

// New makes root anew, and a token in it. kekd and kekctl are the binaries to run.
func New(ctx context.Context, root, kekd, kekctl string) (*Sandbox, error) {
	b := &Sandbox{}
	for path, to := range map[string]*string{root: &b.root, kekd: &b.kekd, kekctl: &b.kekctl} {
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		*to = abs
	}
	if err := os.RemoveAll(b.root); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.Path("tokens"), 0o700); err != nil {
		return nil, err
	}
	conf := "directories.tokendir = " + b.Path("tokens") + "\nobjectstore.backend = file\nlog.level = ERROR\n"
	for name, content := range map[string]string{"softhsm2.conf": conf, "pin": PIN + "\n"} {
		if err := os.WriteFile(b.Path(name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	cmd := exec.CommandContext(ctx, "softhsm2-util", "--init-token", "--free", "--label", TokenLabel, "--so-pin", "87654321", "--pin", PIN)
	cmd.Env = append(os.Environ(), b.Env()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make a SoftHSM token: %w: %s", err, out)
	}
	return b, nil
}

// Path is a file of the sandbox.
func (b *Sandbox) Path(name string) string { return filepath.Join(b.root, name) }

// Env is what SoftHSM needs in the environment to find the token.
func (b *Sandbox) Env() []string { return []string{"SOFTHSM2_CONF=" + b.Path("softhsm2.conf")} }

// Settings are what differs between the kekds of a sandbox.
type Settings struct {
	// Mode is seeds.mode.
	Mode string
	// Module is the PKCS#11 module to load; empty means SoftHSM's own.
	Module string
	// Env is added to the environment of the worker, as NAME=VALUE.
	Env []string
	// Sessions and CacheSize are hsm.sessions and seeds.cacheSize; 0 means kekd's
	// defaults.
	Sessions, CacheSize int
	// Refresh is keyRing.refresh; 0 means a second.
	Refresh time.Duration
}

// Daemon is a kekd.
type Daemon struct {
	// Config is its configuration file, Socket its socket, and HTTP the address of
	// its endpoint.
	Config, Socket, HTTP string
	// Client is there once the daemon is ready.
	Client kmsapi.KeyManagementServiceClient

	kekd  string
	conn  *grpc.ClientConn
	cmd   *exec.Cmd
	log   bytes.Buffer // read after the process ended
	ended chan error
}

// Configure writes the configuration of a kekd and returns it, not started yet.
func (b *Sandbox) Configure(ctx context.Context, name string, s Settings) (*Daemon, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &Daemon{kekd: b.kekd, Config: b.Path(name + ".yaml"), Socket: b.Path(name + ".sock"), HTTP: l.Addr().String()}
	if err := l.Close(); err != nil {
		return nil, err
	}
	if s.Module == "" {
		s.Module = Module
	}
	if s.Refresh == 0 {
		s.Refresh = time.Second
	}
	var text strings.Builder
	fmt.Fprintf(&text, "socket:   {path: %s, allowedUIDs: [%d]}\nhttp:     {address: %q}\nstateDir: %s\n",
		d.Socket, os.Getuid(), d.HTTP, b.Path(name+"-state"))
	fmt.Fprintf(&text, "hsm:\n  module: %s\n  token:  {label: %s}\n  pinFile: %s\n", s.Module, TokenLabel, b.Path("pin"))
	if s.Sessions > 0 {
		fmt.Fprintf(&text, "  sessions: %d\n", s.Sessions)
	}
	text.WriteString("  env:\n")
	for _, env := range slices.Concat(b.Env(), s.Env) {
		key, value, _ := strings.Cut(env, "=")
		fmt.Fprintf(&text, "    %s: %q\n", key, value)
	}
	fmt.Fprintf(&text, "keyRing:  {label: %s, refresh: %s}\nseeds:\n  mode: %s\n  lockMemory: false\n", Ring, s.Refresh, s.Mode)
	if s.CacheSize > 0 {
		fmt.Fprintf(&text, "  cacheSize: %d\n", s.CacheSize)
	}
	return d, os.WriteFile(d.Config, []byte(text.String()), 0o600)
}

// Launch starts the process and does not wait for it to be ready. It can be
// started again after Stop.
func (d *Daemon) Launch() error {
	// Not CommandContext: the daemon is stopped in good order.
	d.cmd = exec.Command(d.kekd, "serve", "--config", d.Config) //nolint:noctx,gosec // G204: the binary that was asked for
	d.log.Reset()
	d.cmd.Stderr = &d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C reaches it through Stop
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.ended = make(chan error, 1)
	go func(cmd *exec.Cmd, ended chan<- error) { ended <- cmd.Wait() }(d.cmd, d.ended)
	return nil
}

// Start launches the daemon and waits until it is ready. A daemon that does not
// get so is stopped.
func (d *Daemon) Start(ctx context.Context) error {
	if err := d.Launch(); err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix://"+d.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return errors.Join(err, d.Stop())
	}
	d.conn, d.Client = conn, kmsapi.NewKeyManagementServiceClient(conn)
	limited, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		_, err := d.Client.Status(limited, &kmsapi.StatusRequest{})
		if err == nil {
			return nil
		}
		select {
		case <-limited.Done():
			stopped := d.Stop()
			return fmt.Errorf("kekd is not ready: %w\n%s", errors.Join(err, stopped), d.log.String())
		case ended := <-d.ended:
			d.ended <- ended
			return fmt.Errorf("kekd ended: %w\n%s", ended, d.log.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// PID is the daemon's process id.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Wait returns an error when the daemon ended, or nil when ctx did.
func (d *Daemon) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-d.ended:
		d.ended <- err
		return fmt.Errorf("kekd ended: %w\n%s", err, d.log.String())
	}
}

// Stop ends the daemon and waits for it.
func (d *Daemon) Stop() error {
	if d.conn != nil {
		_ = d.conn.Close() // nothing is lost
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may be gone already
	select {
	case err := <-d.ended:
		return err
	case <-time.After(15 * time.Second):
		_ = d.cmd.Process.Kill()
		return errors.Join(errors.New("kekd did not stop and was killed"), <-d.ended)
	}
}

// Operations reads how many HSM operations there were, by kind.
func (d *Daemon) Operations(ctx context.Context) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.HTTP+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read /metrics: %w", err)
	}
	ops := make(map[string]float64)
	for _, m := range families["kekd_hsm_operations_total"].GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == "op" {
				ops[l.GetValue()] += m.GetCounter().GetValue()
			}
		}
	}
	return ops, nil
}

// Ctl runs kekctl and returns what it prints.
func (b *Sandbox) Ctl(ctx context.Context, d *Daemon, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, b.kekctl, append([]string{"--config", d.Config}, args...)...) //nolint:gosec // G204: the binary that was asked for
	var out, notes bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &notes
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kekctl %s: %w: %s", strings.Join(args, " "), err, notes.String())
	}
	return out.String(), nil
}

// CtlPath is the kekctl that Ctl runs.
func (b *Sandbox) CtlPath() string { return b.kekctl }
