package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"

	"kekd/internal/health"
	"kekd/internal/kek"
	"kekd/internal/version"
)

var update = flag.Bool("update", false, "write testdata/status.json anew")

var at = time.Date(2026, 11, 2, 3, 4, 5, 0, time.UTC)

type source struct{ status Status }

func (s source) Report() health.Report { return s.status.Health }
func (s source) Status() Status        { return s.status }
func (source) Refresh(context.Context) {}

func registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "kekd_healthy", Help: "x"})
	g.Set(1)
	r.MustRegister(g)
	return r
}

func get(t *testing.T, h http.Handler, method, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, http.NoBody))
	return w
}

func report(state health.State, reason string) source {
	return source{Status{Health: health.Report{State: state, Reason: reason}}}
}

func TestPaths(t *testing.T) {
	const down = "the HSM is unavailable"
	tests := []struct {
		name, method, path string
		source             source
		code               int
		contentType, body  string
	}{
		{"live when starting", "GET", "/livez", report(health.Starting, "x"), 200, "text/plain; charset=utf-8", "ok\n"},
		{"live when unready", "GET", "/livez", report(health.Unready, down), 200, "text/plain; charset=utf-8", "ok\n"},
		{"starting", "GET", "/readyz", report(health.Starting, "kekd has not used the HSM yet"), 503, "text/plain; charset=utf-8", "starting: kekd has not used the HSM yet\n"},
		{"ready", "GET", "/readyz", report(health.Ready, ""), 200, "text/plain; charset=utf-8", "ready\n"},
		{"coasting", "GET", "/readyz", report(health.Coasting, down), 200, "text/plain; charset=utf-8", "coasting: " + down + "\n"},
		{"unready", "GET", "/readyz", report(health.Unready, down), 503, "text/plain; charset=utf-8", "unready: " + down + "\n"},
		{"revoked", "GET", "/readyz", report(health.Revoked, "gone"), 503, "text/plain; charset=utf-8", "revoked: gone\n"},
		{"index", "GET", "/", source{}, 200, "text/plain; charset=utf-8", index},
		{"head", "HEAD", "/livez", source{}, 200, "text/plain; charset=utf-8", "ok\n"}, // the server drops the body
		{"refresh needs post", "GET", "/refresh", source{}, 405, "text/plain; charset=utf-8", "Method Not Allowed\n"},
		{"post", "POST", "/status", source{}, 405, "text/plain; charset=utf-8", "Method Not Allowed\n"},
		{"delete", "DELETE", "/readyz", source{}, 405, "text/plain; charset=utf-8", "Method Not Allowed\n"},
		{"put", "PUT", "/metrics", source{}, 405, "text/plain; charset=utf-8", "Method Not Allowed\n"},
		{"unknown", "GET", "/readyz/x", source{}, 404, "text/plain; charset=utf-8", "404 page not found\n"},
		{"profiling", "GET", "/debug/pprof/", source{}, 404, "text/plain; charset=utf-8", "404 page not found\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := get(t, NewHandler(tt.source, registry(), zap.NewNop()), tt.method, tt.path)
			if w.Code != tt.code || w.Body.String() != tt.body || w.Header().Get("Content-Type") != tt.contentType {
				t.Errorf("%s %s = %d %q %q, want %d %q %q", tt.method, tt.path,
					w.Code, w.Header().Get("Content-Type"), w.Body, tt.code, tt.contentType, tt.body)
			}
			if w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("Cache-Control") != "no-store" {
				t.Errorf("headers = %v, want nosniff and no-store", w.Header())
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	w := get(t, NewHandler(source{}, registry(), zap.NewNop()), "GET", "/metrics")
	if w.Code != 200 || !strings.Contains(w.Body.String(), "\nkekd_healthy 1\n") {
		t.Errorf("/metrics = %d %s", w.Code, w.Body)
	}
}

// Who asks for OpenMetrics gets it, for the sake of exemplars.
func TestOpenMetrics(t *testing.T) {
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", http.NoBody)
	r.Header.Set("Accept", "application/openmetrics-text;version=1.0.0")
	NewHandler(source{}, registry(), zap.NewNop()).ServeHTTP(w, r)
	if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "application/openmetrics-text") || !strings.HasSuffix(w.Body.String(), "\n# EOF\n") {
		t.Errorf("/metrics = %d %s %s", w.Code, w.Header().Get("Content-Type"), w.Body)
	}
}

func TestMetricsFailure(t *testing.T) {
	broken := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return nil, errors.New("broken") })
	w := get(t, NewHandler(source{}, broken, zap.NewNop()), "GET", "/metrics")
	if w.Code != 500 {
		t.Errorf("/metrics with a broken registry = %d, want 500", w.Code)
	}
}

func yes() *bool { b := true; return &b }

// fullStatus has a value in every field.
func fullStatus() Status {
	ring := &kek.Ring{Label: "k8s-kek", Keys: []kek.Info{
		{
			Ring: "k8s-kek", ID: "\x01old", CheckValue: kek.CheckValue{1, 2, 3}, State: kek.Scheduled,
			Activation: at.Add(-time.Hour), DestroyAfter: at.Add(24 * time.Hour),
			Attributes: kek.Attributes{Label: "k8s-kek/destroy-after-2026-11-03"},
		},
		{
			Ring: "k8s-kek", ID: "\x01new", CheckValue: kek.CheckValue{4, 5, 6}, State: kek.Primary, Activation: at,
			Attributes: kek.Attributes{
				Label: "k8s-kek", Encrypt: yes(), Decrypt: yes(), Sensitive: yes(), Extractable: new(bool),
				AlwaysSensitive: yes(), NeverExtractable: yes(), Local: yes(), Bits: 256,
			},
		},
	}}
	keys := NewKeyRing(ring, at)
	keys.Keys[0].Problem = "no mechanism works with key 016f6c64"
	keys.Keys[1].Proven, keys.Keys[1].Mechanism = true, "aes-gcm/caller-iv"
	keys.Keys[1].LastUsed = at
	return Status{
		Time: at,
		Health: health.Report{
			State: health.Coasting, Reason: "the HSM is unavailable", Since: at, LastSuccess: at,
			CoastingUntil: at.Add(10 * time.Minute), KeyID: ring.Keys[1].KeyID(),
		},
		Version: version.Info{Version: "v1.0.0", Revision: "abc", Time: "2026-11-02T03:04:05Z", Go: "go1.26.0"},
		Seeds: Seeds{
			Mode: "seeded", Mechanism: "aes-gcm/caller-iv", Created: at, Uses: 12, MaxUses: 1048576, DirectUses: 3,
			Cached: 4, Capacity: 4096, Waiting: 1, RememberedFailures: 2, BreakerOpen: true,
		},
		KeyRing: keys,
		Policy:  []string{"key k8s-kek/01/040506 is not local (keyRing.policy.require)"},
		Token: &Token{
			Label: "kekd", Serial: "0123", Manufacturer: "SoftHSM project", Model: "SoftHSM v2",
			Firmware: "2.6", Library: "Implementation of PKCS11", Slot: 7, WorkerPID: 4711,
		},
		Node: "0123456789abcdef0123456789abcdef", UseRecorded: at.Add(-time.Hour),
		Refresh: Duration(10 * time.Second), OutageGrace: Duration(10 * time.Minute),
	}
}

// The JSON is a contract with kekctl and with scripts.
func TestStatusGolden(t *testing.T) {
	const golden = "testdata/status.json"
	w := get(t, NewHandler(source{fullStatus()}, registry(), zap.NewNop()), "GET", "/status")
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("/status = %d %v", w.Code, w.Header())
	}
	if *update {
		if err := os.WriteFile(golden, w.Body.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), w.Body.String()); diff != "" {
		t.Errorf("/status (-want +got):\n%s", diff)
	}
	var back Status
	dec := json.NewDecoder(bytes.NewReader(want))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fullStatus(), back); diff != "" {
		t.Errorf("what kekctl reads (-want +got):\n%s", diff)
	}
}

// refreshed changes its status with a look, which takes until a context ends.
type refreshed struct{ source }

func (r *refreshed) Refresh(ctx context.Context) {
	<-ctx.Done()
	r.status.RingProblem = "looked"
}

// The answer is what is known after the look, and a look that takes too long does
// not hold it up.
func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		w := get(t, NewHandler(&refreshed{}, registry(), zap.NewNop()), "POST", "/refresh")
		var s Status
		if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		if w.Code != 200 || s.RingProblem != "looked" || time.Since(begun) != refreshTimeout {
			t.Errorf("/refresh = %d %s after %s, want what the look found after %s", w.Code, w.Body, time.Since(begun), refreshTimeout)
		}
	})
}

// Before anything is known, what is not known is left out.
func TestStatusStarting(t *testing.T) {
	s := source{Status{Time: at, Health: health.Report{State: health.Starting, Reason: "x", Since: at}, Seeds: Seeds{Mode: "seeded"}}}
	w := get(t, NewHandler(s, registry(), zap.NewNop()), "GET", "/status")
	for _, absent := range []string{"keyRing", "token", "created", "lastSuccess", "coastingUntil", "0001-01-01"} {
		if strings.Contains(w.Body.String(), absent) {
			t.Errorf("/status when starting has %q: %s", absent, w.Body)
		}
	}
}
