package tracing

import (
	"fmt"
	"testing"

	"kekd/e2e/internal/harness"
)

// BenchmarkTracing measures four daemons side by side: tracing off, twice, one request in
// a hundred recorded, and all. The collector is this process.
func BenchmarkTracing(b *testing.B) {
	r := newReceiver(b)
	r.forget = true
	at := fmt.Sprintf("endpoint: %q", "http://"+r.address)
	all := &harness.Contender{Name: "all", Options: harness.KekdOptions{Tracing: "{" + at + "}"}}
	table := harness.SideBySide(b, "Recorded", []*harness.Contender{
		{Name: "off"},
		{Name: "off, a second daemon"},
		{Name: "one in a hundred", Options: harness.KekdOptions{Tracing: "{" + at + ", sampleRatio: 0.01}"}},
		all,
	})
	recorded := all.Kekd().Metrics(b)
	table += fmt.Sprintf(" With all recorded %.0f spans were exported and %.0f dropped.\n",
		recorded.Sum("kekd_trace_spans_total", map[string]string{"result": "exported"}),
		recorded.Sum("kekd_trace_spans_total", map[string]string{"result": "dropped"}))
	fmt.Print("\n" + table)
	update(b, "overhead", table)
}
