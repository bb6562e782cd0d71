package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"
)

const (
	// kekdReadyWithin bounds the time from the start of kekd to a proven key.
	kekdReadyWithin = 20 * time.Second
	// kekdStopsWithin bounds kekd's graceful stop.
	kekdStopsWithin = 20 * time.Second
)

// KekdOptions are the settings that tests vary. Zero means the value that the
// tests use by default, not kekd's own default.
type KekdOptions struct {
	Mode          string        // seeds.mode, default seeded
	Refresh       time.Duration // keyRing.refresh, default 1s
	ProbeInterval time.Duration // health.probeInterval, default 1s
	OutageGrace   time.Duration // health.outageGrace, default 10m
	MaxAge        time.Duration // keyRing.policy.maxAge, default 0s
	Sessions      int           // hsm.sessions, default 4
	CallTimeout   time.Duration // hsm.callTimeout, default 10s
	CacheSize     int           // seeds.cacheSize, default 4096
	MaxInFlight   int           // socket.maxInFlight, default 256
	LogLevel      string        // log.level, default debug
	Audit         string        // audit.onFailure, default no audit trail
	AllowedUID    int           // the one of socket.allowedUIDs, default the test's own
	Tracing       string        // the section tracing as YAML on one line, default no traces
	Cluster       string        // the section cluster as YAML on one line, default none
}

// Kekd is a daemon on a token. Several on one token are the nodes of a cluster.
type Kekd struct {
	// Socket is the path of the KMS v2 socket. It stays over restarts.
	Socket string
	// URL is the HTTP endpoint, without a path. It stays over restarts.
	URL string
	// Token is the HSM.
	Token *Token
	// Ring is the ring's label.
	Ring string

	config  string
	service *service
	confine *Confinement // nil: as the test itself
}

// kekdConfig is the configuration file; the values are JSON strings, which YAML
// reads as they are.
var kekdConfig = template.Must(template.New("kekd.yaml").Parse(`socket:
  path: {{printf "%q" .Socket}}
  allowedUIDs: [{{.Options.AllowedUID}}]
  maxInFlight: {{.Options.MaxInFlight}}
http:
  address: {{printf "%q" .Address}}
stateDir: {{printf "%q" .StateDir}}
hsm:
  module: {{printf "%q" .Token.Module}}
  token:
    label: {{printf "%q" .Token.Label}}
  pinFile: {{printf "%q" .Token.PINFile}}
  sessions: {{.Options.Sessions}}
  callTimeout: {{.Options.CallTimeout}}
  env:
{{- range $name, $value := .Token.Env}}
    {{$name}}: {{printf "%q" $value}}
{{- end}}
keyRing:
  label: {{printf "%q" .Ring}}
  refresh: {{.Options.Refresh}}
  policy: {maxAge: {{.Options.MaxAge}}}
seeds:
  mode: {{.Options.Mode}}
  cacheSize: {{.Options.CacheSize}}
  # A machine of a developer or of CI may not let an unprivileged user lock memory.
  lockMemory: {{.LockMemory}}
health:
  probeInterval: {{.Options.ProbeInterval}}
  outageGrace: {{.Options.OutageGrace}}
log:
  level: {{.Options.LogLevel}}
  format: json
{{- if .Options.Audit}}
audit:
  dir: {{printf "%q" .AuditDir}}
  onFailure: {{.Options.Audit}}
  checkpointEvery: 1s
{{- end}}
{{- if .Options.Tracing}}
tracing: {{.Options.Tracing}}
{{- end}}
{{- if .Options.Cluster}}
cluster: {{.Options.Cluster}}
{{- end}}
`))

// NewKekd configures a daemon on a token, with a new KEK on it, and does not
// start it.
func NewKekd(tb testing.TB, token *Token, options KekdOptions) *Kekd {
	tb.Helper()
	k := NewSibling(tb, token, options)
	k.CreateKey(tb, 0)
	return k
}

// NewSibling configures another daemon on the ring of a token that has KEKs
// already, as another node of the cluster, and does not start it.
func NewSibling(tb testing.TB, token *Token, options KekdOptions) *Kekd {
	tb.Helper()
	dir := shortDir(tb)
	k := &Kekd{
		Socket: filepath.Join(dir, "run", "kekd.sock"),
		URL:    "http://" + freeAddresses(tb, 1)[0],
		Token:  token,
		Ring:   "k8s-kek",
		config: filepath.Join(dir, "kekd.yaml"),
	}
	for _, sub := range []string{"run", "state"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			tb.Fatalf("make a directory for kekd: %v", err)
		}
	}
	k.Configure(tb, options)
	k.service = newService(tb, "kekd", KekdBinary(tb), []string{"serve", "--config", k.config}, nil)
	tb.Cleanup(func() {
		if k.service.logged(token.pin) {
			tb.Error("the log of kekd holds the PIN")
		}
	})
	return k
}

// SetClock sets how far the daemon's clock is ahead of the machine's; it takes
// effect with the next start. Only a binary of its own can have a wrong clock.
func (k *Kekd) SetClock(tb testing.TB, ahead time.Duration) {
	tb.Helper()
	if k.confine != nil {
		tb.Fatal("a confined kekd has the machine's clock")
	}
	k.service.path, k.service.env = KekdBinary(tb), nil
	if ahead != 0 {
		k.service.path, k.service.env = clockBinary(tb), []string{"KEKD_E2E_CLOCK_OFFSET=" + ahead.String()}
	}
}

// CreateKey creates a KEK on the ring, which becomes the primary after a time of
// whole seconds: at least two beside a key that was just made, since activation
// times must differ.
func (k *Kekd) CreateKey(tb testing.TB, activateIn time.Duration) {
	tb.Helper()
	k.Command(tb, "key", "create", "--yes", "--activate-in", activateIn.String())
}

// AuditDir is the directory of the audit trail, which is there if KekdOptions.Audit
// is set and the daemon was started.
func (k *Kekd) AuditDir() string { return filepath.Join(filepath.Dir(k.config), "audit") }

// Configure writes the configuration anew; it takes effect with the next start.
func (k *Kekd) Configure(tb testing.TB, options KekdOptions) {
	tb.Helper()
	setDefault(&options.Mode, "seeded")
	setDefault(&options.Refresh, time.Second)
	setDefault(&options.ProbeInterval, time.Second)
	setDefault(&options.OutageGrace, 10*time.Minute)
	setDefault(&options.Sessions, 4)
	setDefault(&options.CallTimeout, 10*time.Second)
	setDefault(&options.CacheSize, 4096)
	setDefault(&options.MaxInFlight, 256)
	setDefault(&options.LogLevel, "debug")
	setDefault(&options.AllowedUID, os.Getuid())
	var text bytes.Buffer
	if err := kekdConfig.Execute(&text, map[string]any{
		"Socket":     k.Socket,
		"Address":    strings.TrimPrefix(k.URL, "http://"),
		"AuditDir":   k.AuditDir(),
		"StateDir":   filepath.Join(filepath.Dir(k.config), "state"),
		"Token":      k.Token,
		"Ring":       k.Ring,
		"Options":    options,
		"LockMemory": os.Getuid() == 0,
	}); err != nil {
		tb.Fatalf("write the configuration of kekd: %v", err)
	}
	writeFile(tb, k.config, text.String())
	k.own(tb)
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// Start starts the daemon without waiting for anything.
func (k *Kekd) Start(tb testing.TB) {
	tb.Helper()
	k.service.start(tb)
}

// StartReady starts the daemon and waits until it is ready.
func (k *Kekd) StartReady(tb testing.TB) {
	tb.Helper()
	k.Start(tb)
	k.WaitReady(tb, kekdReadyWithin)
}

// Kill ends the daemon with SIGKILL and requires that its HSM worker goes too.
func (k *Kekd) Kill(tb testing.TB) {
	tb.Helper()
	k.service.kill(tb)
}

// Stop ends the daemon with SIGTERM, requires status 0 and returns the time
// that it took.
func (k *Kekd) Stop(tb testing.TB) time.Duration {
	tb.Helper()
	return k.service.stop(tb, kekdStopsWithin)
}

// Running tells whether the daemon was started and has not ended.
func (k *Kekd) Running() bool { return k.service.running() }

// Halt stops the daemon in its tracks with SIGSTOP, and returns when all its threads
// stand still, which takes a moment longer than the signal. Resume lets it go on.
func (k *Kekd) Halt(tb testing.TB) {
	tb.Helper()
	k.service.signal(tb, syscall.SIGSTOP)
	Eventually(tb, killedWithin, "kekd stands still", func(context.Context) error { return k.service.halted() })
}

// Resume undoes Halt.
func (k *Kekd) Resume(tb testing.TB) {
	tb.Helper()
	k.service.signal(tb, syscall.SIGCONT)
}

// KillWorker ends the daemon's HSM worker process with SIGKILL, as a crash of
// the PKCS#11 module would.
func (k *Kekd) KillWorker(tb testing.TB) {
	tb.Helper()
	pids := k.service.children()
	if len(pids) == 0 {
		tb.Fatal("kekd has no worker process")
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			tb.Fatalf("kill the worker: %v", err)
		}
	}
}

// Ready asks /readyz; the error holds the reason.
func (k *Kekd) Ready(ctx context.Context) error {
	if err := k.service.alive(); err != nil {
		return err
	}
	status, body, err := get(ctx, http.DefaultClient, k.URL+"/readyz")
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("/readyz of kekd: %d %s", status, body)
	}
	return nil
}

// WaitReady waits until the daemon is ready and returns how long that took.
func (k *Kekd) WaitReady(tb testing.TB, within time.Duration) time.Duration {
	tb.Helper()
	return Eventually(tb, within, "kekd becomes ready", k.Ready)
}

// WaitUnready waits until the daemon says that it is not ready and returns the
// reason.
func (k *Kekd) WaitUnready(tb testing.TB, within time.Duration) string {
	tb.Helper()
	var reason string
	Eventually(tb, within, "kekd becomes unready", func(ctx context.Context) error {
		if err := k.service.alive(); err != nil {
			return err
		}
		status, body, err := get(ctx, http.DefaultClient, k.URL+"/readyz")
		if err != nil {
			return err
		}
		if status != http.StatusServiceUnavailable {
			return fmt.Errorf("/readyz of kekd: %d %s, want 503", status, body)
		}
		reason = body
		return nil
	})
	return reason
}

// KekdStatus is the part of the daemon's /status that tests look at.
type KekdStatus struct {
	// RingProblem is why the last look at the ring found no key to use.
	RingProblem string
	KeyRing     struct {
		Keys []struct {
			KeyID, State string
			Proven       bool
		}
	}
}

// Status reads the daemon's /status.
func (k *Kekd) Status(ctx context.Context) (KekdStatus, error) {
	code, body, err := get(ctx, http.DefaultClient, k.URL+"/status")
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("/status of kekd: %d %s", code, body)
	}
	if err != nil {
		return KekdStatus{}, err
	}
	var s KekdStatus
	err = json.Unmarshal([]byte(body), &s)
	return s, err
}

// State is the state of a key as the daemon knows it: "unproven" for a pending key
// that it has not proven yet, "gone" for one that its ring lacks.
func (s KekdStatus) State(keyID string) string {
	for _, k := range s.KeyRing.Keys {
		switch {
		case k.KeyID == keyID && k.State == "pending" && !k.Proven:
			return "unproven"
		case k.KeyID == keyID:
			return k.State
		}
	}
	return "gone"
}

// LogLines counts what the daemon has logged so far, over all its starts.
func (k *Kekd) LogLines(tb testing.TB) int {
	tb.Helper()
	b, err := os.ReadFile(k.service.log)
	if err != nil {
		tb.Fatalf("read the log of kekd: %v", err)
	}
	return bytes.Count(b, []byte{'\n'})
}

// Metrics reads the daemon's metrics.
func (k *Kekd) Metrics(tb testing.TB) Metrics {
	tb.Helper()
	m, err := scrape(tb.Context(), http.DefaultClient, k.URL+"/metrics")
	if err != nil {
		tb.Fatalf("read the metrics of kekd: %v", err)
	}
	return m
}

// get returns the status and the body, cut to 64 KiB, of a GET request.
func get(ctx context.Context, client *http.Client, url string) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, "", fmt.Errorf("make the request: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return 0, "", fmt.Errorf("read the response of %s: %w", url, err)
	}
	return resp.StatusCode, string(bytes.TrimSpace(b)), nil
}
