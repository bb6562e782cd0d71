package metrics

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
)

var update = flag.Bool("update", false, "write the table in docs/metrics.md anew")

const (
	manual     = "../../docs/metrics.md"
	tableBegin = "<!-- table: go test ./internal/metrics -run TestCatalogue -update -->\n"
	tableEnd   = "<!-- end of table -->\n"
)

// docs/metrics.md lists every metric as the registry has it, and no other.
func TestCatalogue(t *testing.T) {
	var b strings.Builder
	b.WriteString("| Metric | Type | Labels | Meaning |\n| --- | --- | --- | --- |\n")
	for _, row := range catalogue(t, exercised()) {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", row.name, row.kind, row.labels, row.help)
	}
	page, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(page), tableBegin)
	table, tail, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatalf("docs/metrics.md has no marks for the table")
	}
	if *update {
		page := head + tableBegin + b.String() + tableEnd + tail
		if err := os.WriteFile(manual, []byte(page), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(b.String(), table); diff != "" {
		t.Errorf("docs/metrics.md is not what the registry has; run this test with -update (-want +got):\n%s", diff)
	}
}

// Every metric that the text of docs/metrics.md uses exists.
func TestCatalogueText(t *testing.T) {
	page, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	var known []string
	for _, row := range catalogue(t, exercised()) {
		known = append(known, row.name)
	}
	words := strings.FieldsFunc(string(page), func(r rune) bool {
		return r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9')
	})
	for _, word := range words {
		if !strings.HasPrefix(word, "kekd_") {
			continue
		}
		name := word
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			name = strings.TrimSuffix(name, suffix)
		}
		if !slices.Contains(known, name) {
			t.Errorf("docs/metrics.md names %s, which does not exist", word)
		}
	}
}

type row struct{ name, kind, labels, help string }

// catalogue lists kekd's own metrics; the Go runtime's are not ours to document.
func catalogue(t *testing.T, m *Metrics) []row {
	t.Helper()
	families, err := m.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "kekd_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+l.GetName()+"`")
		}
		rows = append(rows, row{
			f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(labels, ", "), f.GetHelp(),
		})
	}
	return rows
}

// seriesText is a series as {label=value,…} value, a histogram as count in sum.
func seriesText(f *dto.MetricFamily, m *dto.Metric) string {
	var labels []string
	for _, l := range m.GetLabel() {
		labels = append(labels, l.GetName()+"="+l.GetValue())
	}
	text := "{" + strings.Join(labels, ",") + "} "
	switch f.GetType() {
	case dto.MetricType_COUNTER:
		return text + fmt.Sprint(m.GetCounter().GetValue())
	case dto.MetricType_HISTOGRAM:
		return text + fmt.Sprintf("%d in %v", m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum())
	default:
		return text + fmt.Sprint(m.GetGauge().GetValue())
	}
}

func sorted(s ...string) []string {
	slices.Sort(s)
	return s
}
