package gameday

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kekd/e2e/internal/harness"
)

var promqlBlock = regexp.MustCompile("(?ms)^ *```promql\n(.*?)^ *```$")

// The queries of the pages, which no shell runs, are understood by a real Prometheus, and
// ask for nothing that kekd or the recording rules do not have.
func TestQueries(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yaml")
	if err := os.WriteFile(config, []byte("scrape_configs: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	prometheus := harness.StartPrometheus(t, config)
	known := readFiles(t, "../../docs/metrics.md", "../../manifests/prometheus/rules/*.yaml")
	names, err := pages()
	if err != nil {
		t.Fatal(err)
	}
	queries := 0
	for _, name := range names {
		for _, block := range promqlBlock.FindAllStringSubmatch(readFiles(t, filepath.Join(runbooks, name+".md")), -1) {
			for query := range strings.Lines(block[1]) {
				query = strings.TrimSpace(query)
				queries++
				if _, err := prometheus.Query(t.Context(), query); err != nil {
					t.Errorf("%s: %s: %v", name, query, err)
				}
				for _, metric := range regexp.MustCompile(`\bkekd[_:][a-z0-9_:]+`).FindAllString(query, -1) {
					if !strings.Contains(known, metric) {
						t.Errorf("%s: nothing is called %s", name, metric)
					}
				}
			}
		}
	}
	if queries < 15 {
		t.Errorf("the pages have %d queries: are they read right?", queries)
	}
	t.Logf("%d queries", queries)
}

// readFiles returns what the files hold that match the patterns.
func readFiles(t *testing.T, patterns ...string) string {
	t.Helper()
	var b strings.Builder
	for _, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatalf("%s: %v %v", pattern, paths, err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b.Write(text)
		}
	}
	return b.String()
}

// The index names every page and every alert.
func TestIndex(t *testing.T) {
	index := readFiles(t, filepath.Join(runbooks, "README.md"))
	names, err := pages()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !strings.Contains(index, "("+name+".md)") {
			t.Errorf("the index lacks %s.md", name)
		}
	}
	alerts := regexp.MustCompile(`(?m)- alert: (\w+)$`).FindAllStringSubmatch(readFiles(t, "../../manifests/prometheus/alerts/*.yaml"), -1)
	if len(alerts) < 20 {
		t.Fatalf("%d alerts: are they read right?", len(alerts))
	}
	for _, alert := range alerts {
		if !strings.Contains(index, "`"+alert[1]+"`") {
			t.Errorf("the index lacks %s", alert[1])
		}
	}
}
