// Package dashboards asks a real Prometheus every query of manifests/grafana.
//
// Three kekds on one token live through all that the dashboards show: decrypts, warm and
// cold, damaged ciphertexts, callers who are refused, a worker that dies, a rotation, a
// key to come, alerts, an audit trail, and an HSM that one of them does not see any more.
// Then each panel, annotation and variable must have an answer, for all nodes and for
// one, with the rules of manifests/prometheus made quicker (harness.QuickRules).
package dashboards

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/grafana"
	"kekd/e2e/internal/harness"
)

const (
	// soon bounds what takes no more than seconds on a busy machine.
	soon = 60 * time.Second
	// answeredWithin bounds the time until every query has an answer. The slowest is a
	// table of the alerts that fired, minute by minute.
	answeredWithin = 150 * time.Second
)

// TestEveryQueryHasAnAnswer lets three nodes live through everything, and asks.
func TestEveryQueryHasAnAnswer(t *testing.T) {
	begun := time.Now()
	nodes := start(t)
	prometheus := harness.StartPrometheus(t, config(t, nodes))
	harness.Eventually(t, soon, "Prometheus has seen every node at rest", func(ctx context.Context) error {
		series, err := prometheus.Query(ctx, `sum_over_time(up{job="kekd"}[1m]) >= 2`)
		if err == nil && len(series) != len(nodes) {
			err = fmt.Errorf("%d of %d", len(series), len(nodes))
		}
		return err
	})
	live(t, nodes)

	asked := questions(t)
	harness.Eventually(t, answeredWithin, "every query has an answer", func(ctx context.Context) error {
		var missing strings.Builder
		for _, q := range asked {
			if q.series != 0 {
				continue
			}
			if err := q.ask(ctx, prometheus, begun); err != nil {
				fmt.Fprintf(&missing, "\n%s, %s, node %s: %v\n\t%s", q.dashboard, q.Of, q.node, err, q.expr)
			}
		}
		if missing.Len() != 0 {
			return errors.New(missing.String())
		}
		return nil
	})
	for _, q := range asked {
		t.Logf("%-10s node %-4s %3d series  %s: %s", q.dashboard, q.node, q.series, q.Of, q.Expr)
	}
	t.Logf("%d questions after %.0f s", len(asked), time.Since(begun).Seconds())

	// What no series has is seen not to have one.
	for _, expr := range []string{`kekd_health_state{state="redy"}`, `kekd_healthy / 0 * 0`} {
		wrong := question{Query: grafana.Query{Instant: true}, expr: expr}
		if err := wrong.ask(t.Context(), prometheus, begun); err == nil {
			t.Errorf("%s passes for an answer", expr)
		}
	}
}

// start starts three nodes on one token. The last lets nobody in, who could only be the
// test itself.
func start(t *testing.T) []*harness.Kekd {
	token := harness.NewToken(t)
	o := harness.KekdOptions{Audit: "continue"}
	second := harness.NewKekd(t, token, o)
	second.Command(t, "audit", "key", "create", "--yes")
	first := harness.NewSibling(t, token.View(t), o)
	o.AllowedUID = os.Getuid() + 1
	nodes := []*harness.Kekd{first, second, harness.NewSibling(t, token, o)}
	for _, k := range nodes {
		k.StartReady(t)
	}
	return nodes
}

// config scrapes the nodes each second, under the quick rules.
func config(t *testing.T, nodes []*harness.Kekd) string {
	var b strings.Builder
	fmt.Fprintf(&b, `global: {scrape_interval: 1s, scrape_timeout: 900ms, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
  - job_name: kekd
    static_configs:
`, harness.QuickRules(t)+"/*.yaml")
	for i, k := range nodes {
		fmt.Fprintf(&b, "      - {targets: [%q], labels: {cluster: east, instance: cp-%d}}\n", strings.TrimPrefix(k.URL, "http://"), i+1)
	}
	path := filepath.Join(t.TempDir(), "prometheus.yaml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// live lets happen what the dashboards are there to show. It returns when the first node
// coasts; the callers go on.
func live(t *testing.T, nodes []*harness.Kekd) {
	first, second, closed := nodes[0], nodes[1], nodes[2]
	plaintext := []byte("0123456789abcdef0123456789abcdef")
	foreign, err := second.KMS(t).Encrypt(t.Context(), plaintext)
	if err != nil {
		t.Fatal(err)
	}
	damaged := foreign
	damaged.Ciphertext = append(slices.Clone(foreign.Ciphertext[:len(foreign.Ciphertext)-1]), foreign.Ciphertext[len(foreign.Ciphertext)-1]^1)
	for _, k := range []*harness.Kekd{first, second} {
		kms := k.KMS(t)
		harness.Background(t, 250*time.Millisecond, func(ctx context.Context) {
			_, _ = kms.Status(ctx)
			_, _ = kms.Encrypt(ctx, plaintext)
			_, _ = kms.Decrypt(ctx, foreign) // cold on the first node, once
			_, _ = kms.Decrypt(ctx, damaged)
		})
	}
	harness.Background(t, 200*time.Millisecond, func(ctx context.Context) {
		if c, err := new(net.Dialer).DialContext(ctx, "unix", closed.Socket); err == nil {
			_ = c.Close()
		}
	})

	second.KillWorker(t)
	second.CreateKey(t, 3*time.Second)
	harness.Eventually(t, soon, "the nodes take over the new key", func(ctx context.Context) error {
		for i, k := range []*harness.Kekd{first, second} {
			if id, err := k.KMS(t).Status(ctx); err != nil || id == foreign.KeyID {
				return fmt.Errorf("node %d has %s, %w", i+1, id, err)
			}
		}
		return nil
	})
	second.CreateKey(t, time.Hour)
	harness.Eventually(t, soon, "the first node knows of the key to come", func(context.Context) error {
		if first.Metrics(t).Sum("kekd_key_info", map[string]string{"state": "pending"}) != 1 {
			return errors.New("it does not")
		}
		return nil
	})
	first.Token.TakeAway(t)
	harness.Eventually(t, soon, "the first node coasts", func(context.Context) error {
		if first.Metrics(t).Sum("kekd_health_state", map[string]string{"state": "coasting"}) != 1 {
			return errors.New("it does not")
		}
		return nil
	})
}

// question is a query with its variables chosen.
type question struct {
	grafana.Query

	dashboard, node, expr string
	label                 string // of label_values
	series                int    // that the last answer had
}

// questions are those of all dashboards, for all clusters and nodes and for one each.
func questions(t *testing.T) (all []*question) {
	paths, err := filepath.Glob("../../manifests/grafana/*.json")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	for _, path := range paths {
		d, err := grafana.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		queries, err := d.Queries()
		if err != nil {
			t.Fatal(err)
		}
		for _, chosen := range []map[string]string{
			{"cluster": ".*", "job": "kekd", "node": ".*"},
			{"cluster": "east", "job": "kekd", "node": "cp-1"},
		} {
			for _, q := range queries {
				ask := &question{Query: q, dashboard: strings.TrimSuffix(filepath.Base(path), ".json"), node: chosen["node"]}
				text := q.Expr
				if q.Variable {
					if text, ask.label, err = q.LabelValues(); err != nil {
						t.Fatal(err)
					}
				}
				chosen["__rate_interval"], chosen["__range"] = "10s", "2m"
				if ask.expr, err = grafana.Interpolate(text, chosen); err != nil {
					t.Fatalf("%s: %v", q.Of, err)
				}
				all = append(all, ask)
			}
		}
	}
	return all
}

// ask wants one series at least with a number in it.
func (q *question) ask(ctx context.Context, p *harness.Prometheus, since time.Time) error {
	if q.Variable {
		values, err := p.LabelValues(ctx, q.expr, q.label)
		if q.series = len(values); err == nil && q.series == 0 {
			err = errors.New("no value to choose")
		}
		return err
	}
	var series []harness.Series
	var err error
	if q.Instant {
		series, err = p.Query(ctx, q.expr)
	} else {
		series, err = p.QueryRange(ctx, q.expr, since, time.Second)
	}
	if err != nil {
		return err
	}
	for _, s := range series {
		if slices.ContainsFunc(s.Values, func(v float64) bool { return !math.IsNaN(v) }) {
			q.series++
		}
	}
	if q.series == 0 {
		return fmt.Errorf("%d series, none with a number", len(series))
	}
	return nil
}
