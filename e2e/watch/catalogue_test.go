package watch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"kekd/e2e/internal/harness"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The running daemon has what docs/metrics.md lists: names, types, labels, meaning.
func TestCatalogueIsTheDaemons(t *testing.T) {
	t.Parallel()
	k, token := coasting(t)
	if _, err := k.KMS(t).Encrypt(t.Context(), []byte("x")); err != nil {
		t.Fatal(err)
	}
	token.TakeAway(t)
	harness.Eventually(t, soon, "kekd coasts", func(context.Context) error {
		if k.Metrics(t).Sum("kekd_health_state", map[string]string{"state": "coasting"}) != 1 {
			return errors.New("it does not")
		}
		return nil
	})
	rows, found := catalogue(t), k.Metrics(t)
	for name, f := range found {
		if isOthers(name) {
			continue
		}
		row, ok := rows[name]
		if !ok {
			t.Errorf("docs/metrics.md lacks %s", name)
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		got := family{strings.ToLower(f.GetType().String()), strings.Join(labels, ","), f.GetHelp(), row.example}
		if got != row {
			t.Errorf("%s is\n%+v, in docs/metrics.md\n%+v", name, got, row)
		}
	}
	for name := range rows {
		if _, ok := found[name]; !ok {
			t.Errorf("docs/metrics.md has %s, the daemon has not", name)
		}
	}

	_, text, err := k.Get(t.Context(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	lint := exec.CommandContext(t.Context(), harness.WatcherBinary(t, "promtool"), "check", "metrics")
	lint.Stdin = strings.NewReader(text + "\n")
	if out, err := lint.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) != 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// isOthers tells whether a metric is of the Go runtime or the process.
func isOthers(name string) bool {
	return strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") || strings.HasPrefix(name, "promhttp_")
}

// Callers choose the key_id, so they must not make time series with it.
func TestKeyIDsMakeNoSeries(t *testing.T) {
	t.Parallel()
	const ids = 1000
	k, _ := coasting(t)
	kms := k.KMS(t)
	sealed, err := kms.Encrypt(t.Context(), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(from, to int) {
		for i := from; i < to; i++ {
			odd := sealed
			odd.KeyID = fmt.Sprintf("k8s-kek/01%016x%016x/%06x", i, i, i)
			if _, err := kms.Decrypt(t.Context(), odd); err == nil {
				t.Fatalf("a ciphertext opens under the key_id %s", odd.KeyID)
			}
		}
	}
	count := func() (series int) {
		for name, f := range k.Metrics(t) {
			if !isOthers(name) {
				series += len(f.GetMetric())
			}
		}
		return series
	}
	ask(0, 1) // whose code is a new one
	before := count()
	ask(1, ids)
	if after := count(); after != before {
		t.Errorf("%d key ids made %d time series of %d", ids, after, before)
	}
	t.Logf("%d time series, before and after %d key ids", before, ids)
	if before > 300 {
		t.Errorf("a daemon at rest has %d time series, want 300 at most", before)
	}
}
