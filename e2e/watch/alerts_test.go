package watch

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kekd/e2e/internal/harness"
)

const (
	// firesWithin bounds an alert, the slowest of which looks back a day.
	firesWithin = 4 * time.Minute
	// usual is how long all goes well first. The anomalies are compared with it.
	usual = 25 * time.Second
	// yesterdayMargin is for Prometheus to record what it then looks back at.
	yesterdayMargin = 10 * time.Second
)

// only is for whoever works on one scene.
var only = flag.String("scenes", "", "play these alone, a list with commas")

// scene is one thing that goes wrong, at daemons of a cluster of their own.
type scene struct {
	name  string
	nodes []*harness.Kekd
	// breaks does the harm. It ends with ctx, or earlier.
	breaks func(ctx context.Context, t *testing.T)
	// fires are the alerts that must come of it; there may be more, unless it is quiet.
	fires []string
	// pages are the causes for which somebody is woken. nil is not looked at.
	pages []string
	quiet bool
	// before are those of fires that fire from the start.
	before []string
}

// TestAlerts breaks kekds, one way each, and waits for the alerts.
func TestAlerts(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		work.Wait()
	})
	var scenes []*scene
	for _, make := range []func(*testing.T) *scene{
		healthy, outage, slow, refusedPIN, revoked, restarts, rotated, stuck, strangers, crowd, deaf, cold, down,
		fullTrail, unsignedTrail, lax, wornOut,
	} {
		if s := make(t); *only == "" || slices.Contains(strings.Split(*only, ","), s.name) {
			scenes = append(scenes, s)
		}
	}
	pages := newPager(t)
	alertmanager := harness.StartAlertmanager(t, pages.config(t))
	prometheus := harness.StartPrometheus(t, prometheusConfig(t, alertmanager.Address, scenes))
	fired := newLedger()
	work.Go(func() { fired.keep(ctx, prometheus) })

	// What is usual, and all of them known to Prometheus.
	begun := time.Now()
	harness.Eventually(t, soon+usual, "Prometheus has seen every node for a while", func(ctx context.Context) error {
		samples, err := prometheus.Query(ctx, `up{job="kekd"} == 1`)
		nodes := 0
		for _, s := range scenes {
			nodes += len(s.nodes)
		}
		if err == nil && len(samples) != nodes {
			err = fmt.Errorf("%d nodes are up, want %d", len(samples), nodes)
		}
		if err == nil && time.Since(begun) < usual {
			err = errors.New("not long enough")
		}
		return err
	})
	for _, s := range scenes {
		for _, alert := range fired.of(s.name) {
			if !slices.Contains(s.before, alert) {
				t.Errorf("%s: %s fires while all is well", s.name, alert)
			}
		}
	}

	broken := time.Now()
	for _, s := range scenes {
		if s.breaks != nil {
			work.Go(func() { s.breaks(ctx, t) })
		}
	}
	deadline := time.Now().Add(firesWithin)
	for _, s := range scenes {
		for _, alert := range s.fires {
			harness.Every(t.Context(), 100*time.Millisecond, func() bool {
				_, ok := fired.at(s.name, alert)
				return ok || time.Now().After(deadline)
			})
			if _, ok := fired.at(s.name, alert); !ok {
				t.Errorf("%s: %s does not fire within %v, only these do: %v", s.name, alert, firesWithin, fired.of(s.name))
			}
		}
		if s.pages != nil {
			want := slices.Clone(s.pages)
			if len(want) != 0 {
				harness.Eventually(t, soon, s.name+" pages", func(context.Context) error {
					if got := pages.causes(s.name); len(got) < len(want) {
						return fmt.Errorf("for %v, want %v", got, want)
					}
					return nil
				})
			}
			if got := pages.causes(s.name); !slices.Equal(got, want) {
				t.Errorf("%s pages for %v, want %v: one cause, one page", s.name, got, want)
			}
		}
		if got := fired.of(s.name); s.quiet && len(got) != 0 {
			t.Errorf("%s: %v fire, and nothing is wrong", s.name, got)
		}
	}

	// With all of that in it, every example of docs/metrics.md has an answer. One that
	// compares may well have none.
	for name, row := range catalogue(t) {
		if *only != "" {
			break // not all of it is there
		}
		samples, err := prometheus.Query(t.Context(), row.example)
		if err != nil {
			t.Errorf("the example of %s: %v", name, err)
		} else if len(samples) == 0 && !regexp.MustCompile(`[=<>]=|[<>]`).MatchString(row.example) {
			t.Errorf("the example of %s has no answer: %s", name, row.example)
		}
	}
	for _, s := range scenes {
		for _, alert := range fired.of(s.name) {
			at, _ := fired.at(s.name, alert)
			t.Logf("%-10s %-26s after %5.1f s", s.name, alert, at.Sub(broken).Seconds())
		}
		t.Logf("%-10s pages: %v", s.name, pages.causes(s.name))
	}
}

// ledger notes which alerts fired, and when first.
type ledger struct {
	mu    sync.Mutex
	fired map[[2]string]time.Time // by cluster and name
}

func newLedger() *ledger { return &ledger{fired: map[[2]string]time.Time{}} }

// keep looks twice a second until ctx ends.
func (l *ledger) keep(ctx context.Context, p *harness.Prometheus) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		samples, err := p.Query(ctx, `ALERTS{alertstate="firing"}`)
		if err == nil {
			l.mu.Lock()
			for _, s := range samples {
				key := [2]string{s.Metric["cluster"], s.Metric["alertname"]}
				if _, ok := l.fired[key]; !ok {
					l.fired[key] = time.Now()
				}
			}
			l.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (l *ledger) at(cluster, alert string) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.fired[[2]string{cluster, alert}]
	return at, ok
}

// of lists the alerts of a cluster in the order in which they fired.
func (l *ledger) of(cluster string) (alerts []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key := range l.fired {
		if key[0] == cluster {
			alerts = append(alerts, key[1])
		}
	}
	slices.SortFunc(alerts, func(a, b string) int {
		return l.fired[[2]string{cluster, a}].Compare(l.fired[[2]string{cluster, b}])
	})
	return alerts
}

// pager is what Alertmanager notifies.
type pager struct {
	server *httptest.Server
	mu     sync.Mutex
	paged  map[string]map[string]bool // causes by cluster
}

func newPager(t *testing.T) *pager {
	p := &pager{paged: map[string]map[string]bool{}}
	p.server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var n struct{ GroupLabels map[string]string }
		if err := json.NewDecoder(r.Body).Decode(&n); err != nil || r.URL.Path != "/page" {
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		cluster := n.GroupLabels["cluster"]
		if p.paged[cluster] == nil {
			p.paged[cluster] = map[string]bool{}
		}
		p.paged[cluster][n.GroupLabels["cause"]] = true
	}))
	t.Cleanup(p.server.Close)
	return p
}

// config is the example for Alertmanager with this receiver, made quicker.
func (p *pager) config(t *testing.T) string {
	t.Helper()
	text := readFile(t, "../../manifests/prometheus/alertmanager.yaml")
	for from, to := range map[string]string{
		"http://127.0.0.1:9095": p.server.URL, "group_wait: 30s": "group_wait: 3s", "group_interval: 5m": "group_interval: 2s",
	} {
		if !strings.Contains(text, from) {
			t.Fatalf("alertmanager.yaml lacks %q", from)
		}
		text = strings.ReplaceAll(text, from, to)
	}
	return write(t, t.TempDir(), "alertmanager.yaml", text)
}

func (p *pager) causes(cluster string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.paged[cluster]))
}

// prometheusConfig scrapes all nodes each second, under the rules made quicker.
func prometheusConfig(t *testing.T, alertmanager string, scenes []*scene) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `global: {scrape_interval: 1s, scrape_timeout: 900ms, evaluation_interval: 1s}
rule_files: [%q]
alerting: {alertmanagers: [{static_configs: [{targets: [%q]}]}]}
scrape_configs:
  - job_name: kekd
    static_configs:
`, harness.QuickRules(t)+"/*.yaml", alertmanager)
	for _, s := range scenes {
		for i, k := range s.nodes {
			fmt.Fprintf(&b, "      - {targets: [%q], labels: {cluster: %s, instance: cp-%d}}\n", strings.TrimPrefix(k.URL, "http://"), s.name, i+1)
		}
	}
	return write(t, t.TempDir(), "prometheus.yaml", b.String())
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// node is a daemon that is ready, and an API server that asks it four times a second.
func node(t *testing.T, token *harness.Token, o harness.KekdOptions) *harness.Kekd {
	t.Helper()
	return started(t, harness.NewKekd(t, token, o))
}

func started(t *testing.T, k *harness.Kekd) *harness.Kekd {
	t.Helper()
	k.StartReady(t)
	asked(t, k)
	return k
}

func asked(t *testing.T, k *harness.Kekd) {
	t.Helper()
	kms := k.KMS(t)
	harness.Background(t, 250*time.Millisecond, func(ctx context.Context) { _, _ = kms.Status(ctx) })
}

// seal encrypts a value.
func seal(t *testing.T, k *harness.Kekd) harness.Sealed {
	t.Helper()
	s, err := k.KMS(t).Encrypt(t.Context(), []byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ckaID is the CKA_ID in a key_id.
func ckaID(keyID string) string { return strings.Split(keyID, "/")[1] }

// healthy is a node with which nothing is wrong.
func healthy(t *testing.T) *scene {
	k := node(t, harness.NewToken(t), harness.KekdOptions{})
	k.CreateKey(t, time.Hour) // which is pending
	kms, s := k.KMS(t), seal(t, k)
	harness.Background(t, 2*time.Second, func(ctx context.Context) {
		_, _ = kms.Decrypt(ctx, s)
		_, _ = kms.Encrypt(ctx, []byte("x"))
	})
	return &scene{name: "healthy", nodes: []*harness.Kekd{k}, pages: []string{}, quiet: true}
}

// outage is a token that goes away for longer than the grace.
func outage(t *testing.T) *scene {
	k := node(t, harness.NewToken(t), harness.KekdOptions{OutageGrace: 15 * time.Second})
	return &scene{
		name: "outage", nodes: []*harness.Kekd{k},
		breaks: func(_ context.Context, t *testing.T) { k.Token.TakeAway(t) },
		fires: []string{
			"KekdCoasting", "KekdUnready", "KekdRingProblem", "KekdWorkerRestartLoop",
			"KekdAvailabilityBurnFast", "KekdAvailabilityBurnSlow",
		},
		pages: []string{"health"},
	}
}

// slow is an HSM that takes half a second for each operation, in direct mode: not so
// long that the probes, which wait for a session like everybody, give up after 5 s.
func slow(t *testing.T) *scene {
	token := harness.NewToken(t).WithFaults(t)
	k := node(t, token, harness.KekdOptions{Mode: "direct", Sessions: 2, MaxInFlight: 6})
	s := seal(t, k)
	return &scene{
		name: "slow", nodes: []*harness.Kekd{k},
		breaks: func(_ context.Context, t *testing.T) {
			token.Faults(t, "C_Decrypt ms=450", "C_Encrypt ms=450")
			for range 12 {
				kms := k.KMS(t)
				harness.Background(t, 100*time.Millisecond, func(ctx context.Context) { _, _ = kms.Decrypt(ctx, s) })
			}
		},
		fires: []string{
			"KekdHSMSlow", "KekdHSMSessionsSaturated", "KekdRequestsThrottled",
			"KekdLatencyBurnFast", "KekdLatencyBurnSlow", "KekdAvailabilityBurnFast",
		},
		pages: []string{"budget"},
	}
}

// refusedPIN is a wrong PIN that a new worker finds.
func refusedPIN(t *testing.T) *scene {
	k := node(t, harness.NewToken(t), harness.KekdOptions{})
	return &scene{
		name: "pin", nodes: []*harness.Kekd{k},
		breaks: func(_ context.Context, t *testing.T) {
			if err := os.WriteFile(k.Token.PINFile, []byte("0000"), 0o600); err != nil {
				t.Error(err)
			}
			k.KillWorker(t)
		},
		fires: []string{"KekdPINLatched", "KekdUnready"},
		pages: []string{"pin"},
	}
}

// revoked is a primary that somebody deletes with another tool.
func revoked(t *testing.T) *scene {
	k := node(t, harness.NewToken(t), harness.KekdOptions{})
	id := ckaID(seal(t, k).KeyID)
	return &scene{
		name: "revoked", nodes: []*harness.Kekd{k},
		breaks: func(ctx context.Context, t *testing.T) {
			otherTool(ctx, t, k, "--delete-object", "--type", "secrkey", "--id", id)
		},
		fires: []string{"KekdRevoked"}, pages: []string{"health"},
	}
}

// otherTool has pkcs11-tool do something to the token.
func otherTool(ctx context.Context, t *testing.T, k *harness.Kekd, args ...string) {
	cmd := exec.CommandContext(ctx, "pkcs11-tool", append([]string{
		"--module", k.Token.Module, "--token-label", k.Token.Label, "--login", "--pin", readFile(t, k.Token.PINFile),
	}, args...)...)
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+k.Token.Conf)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("pkcs11-tool %v: %v\n%s", args, err, out)
	}
}

// restarts is a worker that dies again and again.
func restarts(t *testing.T) *scene {
	k := node(t, harness.NewToken(t), harness.KekdOptions{})
	return &scene{
		name: "restarts", nodes: []*harness.Kekd{k},
		breaks: func(ctx context.Context, _ *testing.T) {
			harness.Every(ctx, 300*time.Millisecond, func() bool {
				for _, pid := range k.Workers() {
					_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone already
				}
				return false
			})
		},
		fires: []string{"KekdWorkerRestartLoop"},
	}
}

// rotated is a primary that is too old, and replaced while one node does not see the
// token. Somebody goes on to read what stands under the old one.
func rotated(t *testing.T) *scene {
	token := harness.NewToken(t)
	o := harness.KekdOptions{MaxAge: time.Second}
	k := node(t, token, o)
	other := harness.NewSibling(t, token.View(t), o)
	other.StartReady(t)
	kms, old := k.KMS(t), seal(t, k)
	return &scene{
		name: "rotated", nodes: []*harness.Kekd{k, other},
		breaks: func(_ context.Context, t *testing.T) {
			other.Token.TakeAway(t)
			k.CreateKey(t, 2*time.Second)
			harness.Background(t, 2*time.Second, func(ctx context.Context) { _, _ = kms.Decrypt(ctx, old) })
		},
		fires: []string{"KekdRotationOverdue", "KekdNodesDiverge", "KekdCoasting", "KekdRetiredKeyInUse"},
		pages: []string{"health"}, before: []string{"KekdRotationOverdue"},
	}
}

// stuck is a new key that kekd may not use when its time has come.
func stuck(t *testing.T) *scene {
	token := harness.NewToken(t).WithFaults(t)
	k := node(t, token, harness.KekdOptions{})
	return &scene{
		name: "stuck", nodes: []*harness.Kekd{k},
		breaks: func(_ context.Context, t *testing.T) {
			k.CreateKey(t, 4*time.Second)
			token.Faults(t, "C_EncryptInit rv=0x68") // CKR_KEY_FUNCTION_NOT_PERMITTED
		},
		fires: []string{"KekdRotationFailing", "KekdRingProblem"}, pages: []string{"health"},
	}
}

// connect opens a connection as a program does that is no gRPC client.
func connect(ctx context.Context, k *harness.Kekd) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", k.Socket)
}

// strangers is a user who is not on the list. Here it is the list that lacks the test's
// own user.
func strangers(t *testing.T) *scene {
	k := harness.NewKekd(t, harness.NewToken(t), harness.KekdOptions{AllowedUID: os.Getuid() + 1})
	k.StartReady(t)
	return &scene{
		name: "strangers", nodes: []*harness.Kekd{k},
		breaks: func(ctx context.Context, _ *testing.T) {
			harness.Every(ctx, 200*time.Millisecond, func() bool {
				if c, err := connect(ctx, k); err == nil {
					_ = c.Close()
				}
				return false
			})
		},
		fires: []string{"KekdCallersRefused", "KekdCallersRefusedSpike"}, pages: []string{"callers"},
	}
}

// crowd is a client that opens connections and forgets them.
func crowd(t *testing.T) *scene {
	k := node(t, harness.NewToken(t), harness.KekdOptions{})
	return &scene{
		name: "crowd", nodes: []*harness.Kekd{k},
		breaks: func(ctx context.Context, _ *testing.T) {
			for round := 0; round < 15 && ctx.Err() == nil; round++ {
				var held []net.Conn
				for range 1500 {
					if c, err := connect(ctx, k); err == nil {
						held = append(held, c)
					}
				}
				harness.Every(ctx, 3*time.Second, func() bool { return true })
				for _, c := range held {
					_ = c.Close()
				}
			}
		},
		fires: []string{"KekdConnectionsRefused"},
	}
}

// deaf is a daemon whose log is read no more.
func deaf(t *testing.T) *scene {
	k := harness.NewKekd(t, harness.NewToken(t), harness.KekdOptions{})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(io.Discard, r) })
	t.Cleanup(func() {
		_ = r.Close()
		reading.Wait()
	})
	k.LogTo(w)
	k.StartReady(t)
	_ = w.Close() // the daemon alone has it now
	asked(t, k)
	kms := k.KMS(t)
	harness.Background(t, 200*time.Millisecond, func(ctx context.Context) { _, _ = kms.Encrypt(ctx, []byte("x")) })
	return &scene{
		name: "deaf", nodes: []*harness.Kekd{k},
		breaks: func(context.Context, *testing.T) { _ = r.Close() },
		fires:  []string{"KekdLogLinesLost"}, pages: []string{},
	}
}

// cold is somebody who reads, all of a sudden, what no cache has.
func cold(t *testing.T) *scene {
	k := harness.NewKekd(t, harness.NewToken(t), harness.KekdOptions{CacheSize: 1})
	var sealed []harness.Sealed
	for range 3 { // each start has a seed of its own
		k.StartReady(t)
		sealed = append(sealed, seal(t, k))
		k.Stop(t)
	}
	k.StartReady(t)
	asked(t, k)
	kms := k.KMS(t)
	return &scene{
		name: "cold", nodes: []*harness.Kekd{k},
		breaks: func(ctx context.Context, t *testing.T) {
			select { // nothing is unusual where there is no yesterday
			case <-ctx.Done():
			case <-time.After(25*time.Hour/harness.Quicker - usual + yesterdayMargin):
			}
			i := 0
			harness.Background(t, 100*time.Millisecond, func(ctx context.Context) {
				_, _ = kms.Decrypt(ctx, sealed[i%len(sealed)])
				i++
			})
		},
		fires: []string{"KekdColdUnwrapSpike", "KekdDecryptSpike"}, pages: []string{},
	}
}

// down is a daemon that is not there any more.
func down(t *testing.T) *scene {
	k := node(t, harness.NewToken(t), harness.KekdOptions{})
	return &scene{
		name: "down", nodes: []*harness.Kekd{k},
		breaks: func(_ context.Context, t *testing.T) { k.Stop(t) },
		fires:  []string{"KekdDown"}, pages: []string{"down"},
	}
}

// The crowd needs more descriptors than some systems give at first.
func TestMain(m *testing.M) {
	flag.Parse()
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil {
		files.Cur = files.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &files) // the crowd is smaller then
	}
	os.Exit(m.Run())
}
