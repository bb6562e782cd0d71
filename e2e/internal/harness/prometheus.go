package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// watcherReadyWithin bounds the start of Prometheus and Alertmanager.
const watcherReadyWithin = 30 * time.Second

// WatcherBinary returns the path of prometheus, promtool, prometheus-alertmanager or
// amtool: as Debian's packages prometheus and prometheus-alertmanager install them.
func WatcherBinary(tb testing.TB, name string) string {
	tb.Helper()
	if dir := os.Getenv("KEKD_PROMETHEUS_BIN"); dir != "" {
		name = filepath.Join(dir, name)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		tb.Fatalf("%v: run `make deps-watch`, or set KEKD_PROMETHEUS_BIN to the directory that has it", err)
	}
	return path
}

// Prometheus is a real one, whose data go with the test.
type Prometheus struct {
	// URL is where it answers, without a path.
	URL string

	service *service
}

// StartPrometheus starts Prometheus with a configuration file and waits until it is
// ready.
func StartPrometheus(tb testing.TB, config string) *Prometheus {
	tb.Helper()
	address := freeAddresses(tb, 1)[0]
	p := &Prometheus{URL: "http://" + address}
	p.service = newService(tb, "prometheus", WatcherBinary(tb, "prometheus"), []string{
		"--config.file=" + config, "--web.listen-address=" + address,
		"--storage.tsdb.path=" + filepath.Join(shortDir(tb), "data"),
		// An alert that fires before the Alertmanager is known is not sent for a minute.
		"--rules.alert.resend-delay=5s",
	}, nil)
	p.service.start(tb)
	awaitWatcher(tb, p.service, p.URL)
	return p
}

// Alertmanager is a real one, without peers.
type Alertmanager struct {
	// Address is host and port.
	Address string

	service *service
}

// StartAlertmanager starts Alertmanager with a configuration file and waits until it
// is ready.
func StartAlertmanager(tb testing.TB, config string) *Alertmanager {
	tb.Helper()
	a := &Alertmanager{Address: freeAddresses(tb, 1)[0]}
	a.service = newService(tb, "alertmanager", WatcherBinary(tb, "prometheus-alertmanager"), []string{
		"--config.file=" + config, "--web.listen-address=" + a.Address, "--cluster.listen-address=",
		"--storage.path=" + filepath.Join(shortDir(tb), "data"),
	}, nil)
	a.service.start(tb)
	awaitWatcher(tb, a.service, "http://"+a.Address)
	return a
}

func awaitWatcher(tb testing.TB, s *service, base string) {
	tb.Helper()
	Eventually(tb, watcherReadyWithin, s.name+" is ready", func(ctx context.Context) error {
		if err := s.alive(); err != nil {
			return err
		}
		code, body, err := get(ctx, http.DefaultClient, base+"/-/ready")
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("/-/ready: %d %s", code, body)
		}
		return err
	})
}

// Sample is one series of an instant query, without its value.
type Sample struct {
	Metric map[string]string `json:"metric"`
}

// Query asks Prometheus for the present value of an expression.
func (p *Prometheus) Query(ctx context.Context, expr string) ([]Sample, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+"/api/v1/query?query="+url.QueryEscape(expr), http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Status, Error string
		Data          struct{ Result []Sample }
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, fmt.Errorf("query %s: %s: %w", expr, resp.Status, err)
	}
	if answer.Status != "success" {
		return nil, fmt.Errorf("query %s: %s", expr, answer.Error)
	}
	return answer.Data.Result, nil
}
