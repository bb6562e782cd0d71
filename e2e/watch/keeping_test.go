package watch

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// The scenes of what is kept: the audit trail, the policy for keys, the count of uses.

// busy is a signed audit trail that somebody fills.
func busy(t *testing.T, k *harness.Kekd) {
	t.Helper()
	kms := started(t, k).KMS(t)
	harness.Background(t, 200*time.Millisecond, func(ctx context.Context) { _, _ = kms.Encrypt(ctx, []byte("x")) })
}

// fullTrail is an audit trail whose disk is full.
func fullTrail(t *testing.T) *scene {
	k := harness.NewKekd(t, harness.NewToken(t), harness.KekdOptions{Audit: "continue"})
	k.Command(t, "audit", "key", "create", "--yes")
	k.AuditDisk(t)
	busy(t, k)
	return &scene{
		name: "full-trail", nodes: []*harness.Kekd{k},
		breaks: func(_ context.Context, t *testing.T) { k.FillAudit(t) },
		fires:  []string{"KekdAuditFailing", "KekdAuditRecordsLost"}, pages: []string{"audit"},
	}
}

// unsignedTrail is an audit trail whose key somebody deletes with another tool.
func unsignedTrail(t *testing.T) *scene {
	k := harness.NewKekd(t, harness.NewToken(t), harness.KekdOptions{Audit: "continue"})
	k.Command(t, "audit", "key", "create", "--yes")
	busy(t, k)
	return &scene{
		name: "unsigned", nodes: []*harness.Kekd{k},
		breaks: func(ctx context.Context, t *testing.T) {
			otherTool(ctx, t, k, "--delete-object", "--type", "privkey", "--label", k.Ring+" (audit)")
		},
		fires: []string{"KekdAuditFailing", "KekdAuditCheckpointStale"}, pages: []string{"audit"},
	}
}

// lax is a key that somebody adds to the ring with another tool, and that may leave the
// token.
func lax(t *testing.T) *scene {
	k := harness.NewKekd(t, harness.NewToken(t), harness.KekdOptions{})
	replaceInConfig(t, k, "policy: {", "policy: {require: [non-extractable], ")
	started(t, k)
	return &scene{
		name: "lax", nodes: []*harness.Kekd{k},
		breaks: func(ctx context.Context, t *testing.T) {
			otherTool(ctx, t, k, "--keygen", "--key-type", "AES:32", "--label", k.Ring, "--id", "0102", "--extractable")
		},
		fires: []string{"KekdKeyPolicyViolated"}, pages: []string{},
	}
}

// wornOut is a key that was used for half of what AES-GCM allows, without seeds.
func wornOut(t *testing.T) *scene {
	k := harness.NewKekd(t, harness.NewToken(t), harness.KekdOptions{Mode: "direct"})
	id := ckaID(seal(t, started(t, k)).KeyID)
	k.Stop(t)
	counts, err := json.Marshal(map[string]any{"uses": map[string]uint64{id: 1<<31 + 1}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(filepath.Dir(k.ConfigFile()), "state"), "direct-uses.json", string(counts))
	started(t, k)
	return &scene{
		name: "worn-out", nodes: []*harness.Kekd{k},
		fires: []string{"KekdDirectUsesHigh"}, pages: []string{}, before: []string{"KekdDirectUsesHigh"},
	}
}

// replaceInConfig changes the configuration of a daemon that is not started yet.
func replaceInConfig(t *testing.T, k *harness.Kekd, from, to string) {
	t.Helper()
	config := readFile(t, k.ConfigFile())
	if !strings.Contains(config, from) {
		t.Fatalf("the configuration lacks %q", from)
	}
	if err := os.WriteFile(k.ConfigFile(), []byte(strings.Replace(config, from, to, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestMissing: where Prometheus knows no kekd at all, one alert is left that says so.
func TestMissing(t *testing.T) {
	pages := newPager(t)
	alertmanager := harness.StartAlertmanager(t, pages.config(t))
	prometheus := harness.StartPrometheus(t, prometheusConfig(t, alertmanager.Address, nil))
	harness.Eventually(t, soon, "KekdMissing fires and somebody is paged", func(ctx context.Context) error {
		samples, err := prometheus.Query(ctx, `ALERTS{alertstate="firing", alertname="KekdMissing"}`)
		if got := pages.causes(""); err == nil && (len(samples) != 1 || !slices.Equal(got, []string{"down"})) {
			err = fmt.Errorf("%d alerts, pages for %v", len(samples), got)
		}
		return err
	})
}
