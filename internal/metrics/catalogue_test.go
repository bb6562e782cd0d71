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
	"google.golang.org/grpc/codes"

	"kekd/internal/health"
	"kekd/internal/kek"
	"kekd/internal/keypolicy"
)

var update = flag.Bool("update", false, "write the table in docs/metrics.md anew")

const (
	manual     = "../../docs/metrics.md"
	tableBegin = "<!-- table: go test ./internal/metrics -run TestCatalogue -update -->\n"
	tableEnd   = "<!-- end of table -->\n"

	valuesBegin = "<!-- values: go test ./internal/metrics -run TestLabelValues -update -->\n"
	valuesEnd   = "<!-- end of values -->\n"
)

// docs/metrics.md lists every metric as the registry has it, and no other.
func TestCatalogue(t *testing.T) {
	var b strings.Builder
	b.WriteString("| Metric | Type | Unit | Labels | Meaning | Example |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, row := range catalogue(t, exercised()) {
		example, ok := examples[row.name]
		if !ok || !strings.Contains(example, row.name) {
			t.Errorf("%s has no example that uses it: %q", row.name, example)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | `%s` |\n", row.name, row.kind, unit(row.name), row.labels, row.help,
			strings.ReplaceAll(example, "|", `\|`))
	}
	holdTable(t, tableBegin, tableEnd, b.String())
}

// holdTable compares what stands between two marks of docs/metrics.md, or writes it.
func holdTable(t *testing.T, begin, end, want string) {
	t.Helper()
	page, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(page), begin)
	table, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("docs/metrics.md lacks %q or %q", begin, end)
	}
	if *update {
		if err := os.WriteFile(manual, []byte(head+begin+want+end+tail), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, table); diff != "" {
		t.Errorf("docs/metrics.md is not what the registry has; run this test with -update (-want +got):\n%s", diff)
	}
}

// labelValues are the closed sets. A label that is not here says which key or which
// build it is.
func labelValues() []struct {
	metric, label string
	values        []string
} {
	grpcCodes := make([]string, 0, codes.Unauthenticated+1)
	for c := codes.OK; c <= codes.Unauthenticated; c++ {
		grpcCodes = append(grpcCodes, c.String())
	}
	var keyStates, healthStates, rules []string
	for _, s := range []kek.State{kek.Pending, kek.Primary, kek.Retired, kek.Disabled, kek.Scheduled} {
		keyStates = append(keyStates, s.String())
	}
	for _, s := range health.States() {
		healthStates = append(healthStates, string(s))
	}
	for _, r := range keypolicy.Rules() {
		rules = append(rules, string(r))
	}
	worked := []string{"ok", "error"}
	return []struct {
		metric, label string
		values        []string
	}{
		{"kekd_audit_failing", "part", auditParts},
		{"kekd_grpc_request_duration_seconds", "method", methods},
		{"kekd_grpc_requests_total", "code", append(grpcCodes, verify, other)},
		{"kekd_grpc_requests_total", "method", methods},
		{"kekd_health_state", "state", healthStates},
		{"kekd_health_transitions_total", "to", healthStates},
		{"kekd_hsm_operation_duration_seconds", "op", hsmOperations},
		{"kekd_hsm_operations_total", "op", hsmOperations},
		{"kekd_hsm_operations_total", "result", opResults},
		{"kekd_hsm_sessions", "state", []string{"in_use", "waiting"}},
		{"kekd_hsm_worker_restarts_total", "reason", restartReasons},
		{"kekd_hsm_worker_start_failures_total", "reason", hsmResults},
		{"kekd_key_info", "state", keyStates},
		{"kekd_key_policy_violations", "rule", rules},
		{"kekd_rotations_total", "result", worked},
		{"kekd_seed_cache_evictions_total", "reason", evictions},
		{"kekd_seed_cache_requests_total", "result", cacheResults},
		{"kekd_seed_renewals_total", "result", worked},
		{"kekd_trace_spans_total", "result", spanResults},
	}
}

// docs/metrics.md lists the values of every label that has a fixed set of them, and
// what the metrics report is on the list.
func TestLabelValues(t *testing.T) {
	var b strings.Builder
	b.WriteString("| Metric | Label | Values |\n| --- | --- | --- |\n")
	listed := map[[2]string][]string{}
	for _, l := range labelValues() {
		fmt.Fprintf(&b, "| `%s` | `%s` | `%s` |\n", l.metric, l.label, strings.Join(l.values, "`, `"))
		listed[[2]string{l.metric, l.label}] = l.values
	}
	holdTable(t, valuesBegin, valuesEnd, b.String())

	families, err := exercised().Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	open := []string{"key_id_hash", "version", "revision", "go_version"}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if !strings.HasPrefix(f.GetName(), "kekd_") || slices.Contains(open, l.GetName()) {
					continue
				}
				at := [2]string{f.GetName(), l.GetName()}
				if !slices.Contains(listed[at], l.GetValue()) {
					t.Errorf("%s reports %s=%q, which is not among %q", at[0], at[1], l.GetValue(), listed[at])
				}
			}
		}
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

// unit is what a metric counts in. Prometheus has it in the name.
func unit(name string) string {
	switch {
	case strings.HasSuffix(name, "_timestamp_seconds"):
		return "seconds since 1970"
	case strings.HasSuffix(name, "_seconds"):
		return "seconds"
	}
	return "1"
}

// examples has a query for each metric. e2e/watch asks a real Prometheus each of
// them, as docs/metrics.md has it.
var examples = map[string]string{
	"kekd_audit_failing":                           `kekd_audit_failing == 1`,
	"kekd_audit_last_checkpoint_sequence":          `kekd_audit_last_checkpoint_sequence`,
	"kekd_audit_last_checkpoint_timestamp_seconds": `time() - kekd_audit_last_checkpoint_timestamp_seconds`,
	"kekd_audit_records_lost_total":                `increase(kekd_audit_records_lost_total[1h])`,
	"kekd_audit_records_total":                     `rate(kekd_audit_records_total[5m])`,
	"kekd_build_info":                              `count by (version) (kekd_build_info)`,
	"kekd_callers_refused_total":                   `increase(kekd_callers_refused_total[1h])`,
	"kekd_coasting_ends_timestamp_seconds":         `kekd_coasting_ends_timestamp_seconds - time()`,
	"kekd_connections_refused_total":               `increase(kekd_connections_refused_total[1h])`,
	"kekd_decrypts_total":                          `sum by (key_id_hash) (rate(kekd_decrypts_total[5m]))`,
	"kekd_direct_uses":                             `kekd_direct_uses / 2^32`,
	"kekd_grpc_request_duration_seconds":           `histogram_quantile(0.99, sum by (le, method) (rate(kekd_grpc_request_duration_seconds_bucket[5m])))`,
	"kekd_grpc_requests_arrived_total":             `sum by (instance) (increase(kekd_grpc_requests_arrived_total[1h])) - sum by (instance) (increase(kekd_grpc_requests_total[1h]))`,
	"kekd_grpc_requests_in_flight":                 `max_over_time(kekd_grpc_requests_in_flight[5m])`,
	"kekd_grpc_requests_total":                     `sum by (method, code) (rate(kekd_grpc_requests_total[5m]))`,
	"kekd_health_state":                            `kekd_health_state == 1`,
	"kekd_health_transitions_total":                `sum by (to) (increase(kekd_health_transitions_total[1d]))`,
	"kekd_healthy":                                 `avg_over_time(kekd_healthy[30d])`,
	"kekd_hsm_breaker_open":                        `max_over_time(kekd_hsm_breaker_open[5m])`,
	"kekd_hsm_operation_duration_seconds":          `histogram_quantile(0.95, sum by (le, op) (rate(kekd_hsm_operation_duration_seconds_bucket[5m])))`,
	"kekd_hsm_operations_total":                    `sum by (op, result) (rate(kekd_hsm_operations_total[5m]))`,
	"kekd_hsm_pin_latched":                         `kekd_hsm_pin_latched == 1`,
	"kekd_hsm_requests_waiting":                    `max_over_time(kekd_hsm_requests_waiting[5m])`,
	"kekd_hsm_sessions":                            `kekd_hsm_sessions{state="in_use"} / ignoring (state) kekd_hsm_sessions_limit`,
	"kekd_hsm_sessions_limit":                      `kekd_hsm_sessions_limit`,
	"kekd_hsm_worker_restarts_total":               `sum by (reason) (increase(kekd_hsm_worker_restarts_total[1h]))`,
	"kekd_hsm_worker_start_failures_total":         `sum by (reason) (increase(kekd_hsm_worker_start_failures_total[1h]))`,
	"kekd_key_activation_timestamp_seconds":        `(time() - max by (key_id_hash) (kekd_key_activation_timestamp_seconds)) / 86400`,
	"kekd_key_info":                                `count by (state) (kekd_key_info)`,
	"kekd_key_policy_violations":                   `kekd_key_policy_violations > 0`,
	"kekd_key_ring_problem":                        `kekd_key_ring_problem == 1`,
	"kekd_key_ring_read_timestamp_seconds":         `time() - kekd_key_ring_read_timestamp_seconds`,
	"kekd_last_probe_success_timestamp_seconds":    `time() - kekd_last_probe_success_timestamp_seconds`,
	"kekd_log_lines_lost_total":                    `increase(kekd_log_lines_lost_total[1h])`,
	"kekd_next_key_activation_timestamp_seconds":   `kekd_next_key_activation_timestamp_seconds - time()`,
	"kekd_panics_total":                            `increase(kekd_panics_total[1h])`,
	"kekd_primary_key_since_timestamp_seconds":     `(time() - kekd_primary_key_since_timestamp_seconds) / 86400`,
	"kekd_remembered_failures":                     `kekd_remembered_failures`,
	"kekd_rotations_total":                         `sum by (result) (increase(kekd_rotations_total[1d]))`,
	"kekd_seed_cache_capacity":                     `kekd_seed_cache_entries / kekd_seed_cache_capacity`,
	"kekd_seed_cache_entries":                      `kekd_seed_cache_entries`,
	"kekd_seed_cache_evictions_total":              `sum by (reason) (rate(kekd_seed_cache_evictions_total[5m]))`,
	"kekd_seed_cache_requests_total":               `sum by (result) (rate(kekd_seed_cache_requests_total[5m]))`,
	"kekd_seed_created_timestamp_seconds":          `time() - kekd_seed_created_timestamp_seconds`,
	"kekd_seed_renewals_total":                     `sum by (result) (increase(kekd_seed_renewals_total[1d]))`,
	"kekd_seed_uses":                               `kekd_seed_uses`,
	"kekd_trace_spans_total":                       `sum by (result) (rate(kekd_trace_spans_total[5m]))`,
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
