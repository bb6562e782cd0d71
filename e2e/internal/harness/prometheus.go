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
	"strconv"
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

// Series is one of a query's answer.
type Series struct {
	// Metric are its labels.
	Metric map[string]string
	// Values are its values in the order of time; an instant query has one.
	Values []float64
}

// Query asks Prometheus for the present value of an expression.
func (p *Prometheus) Query(ctx context.Context, expr string) ([]Series, error) {
	return p.query(ctx, "query", url.Values{"query": {expr}})
}

// QueryRange asks for the values of an expression since a time, a step apart.
func (p *Prometheus) QueryRange(ctx context.Context, expr string, since time.Time, step time.Duration) ([]Series, error) {
	return p.query(ctx, "query_range", url.Values{
		"query": {expr}, "start": {seconds(since)}, "end": {seconds(time.Now())}, "step": {step.String()},
	})
}

// LabelValues lists the values that a label has among the series that a selector
// matches, of all time.
func (p *Prometheus) LabelValues(ctx context.Context, selector, label string) ([]string, error) {
	var values []string
	return values, p.ask(ctx, "label/"+label+"/values", url.Values{"match[]": {selector}}, &values)
}

func seconds(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64) }

func (p *Prometheus) query(ctx context.Context, kind string, args url.Values) ([]Series, error) {
	var data struct {
		ResultType string
		Result     json.RawMessage
	}
	if err := p.ask(ctx, kind, args, &data); err != nil {
		return nil, err
	}
	if data.ResultType == "scalar" {
		v, err := value(data.Result)
		return []Series{{Values: []float64{v}}}, err
	}
	var result []struct {
		Metric map[string]string
		Value  json.RawMessage
		Values []json.RawMessage
	}
	if err := json.Unmarshal(data.Result, &result); err != nil {
		return nil, fmt.Errorf("%s of a %s: %w", kind, data.ResultType, err)
	}
	answer := make([]Series, len(result))
	for i, r := range result {
		answer[i].Metric = r.Metric
		if r.Value != nil {
			r.Values = append(r.Values, r.Value)
		}
		for _, raw := range r.Values {
			v, err := value(raw)
			if err != nil {
				return nil, err
			}
			answer[i].Values = append(answer[i].Values, v)
		}
	}
	return answer, nil
}

// value reads [time, "number"].
func value(raw json.RawMessage) (float64, error) {
	var at float64
	var number string
	if err := json.Unmarshal(raw, &[]any{&at, &number}); err != nil {
		return 0, fmt.Errorf("a value of Prometheus: %w", err)
	}
	return strconv.ParseFloat(number, 64)
}

// ask reads the data of an answer of the HTTP API, version 1.
func (p *Prometheus) ask(ctx context.Context, path string, args url.Values, data any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+"/api/v1/"+path+"?"+args.Encode(), http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s %v: %s: %w", path, args, resp.Status, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s %v: %s", path, args, answer.Error)
	}
	return json.Unmarshal(answer.Data, data)
}
