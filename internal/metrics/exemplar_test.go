package metrics

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"google.golang.org/grpc/codes"
)

// A time that was measured in a recorded trace carries its id, in the bucket that it
// falls into, and no other does.
func TestExemplars(t *testing.T) {
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	m := newMetrics()
	m.Request("Decrypt", codes.OK, 30*time.Microsecond, id)
	m.Request("Decrypt", codes.OK, 2*time.Millisecond, "")
	m.Request("Encrypt", codes.Unavailable, 3*time.Second, id)
	m.HSMOperation("unwrap", "ok", 4*time.Millisecond, id)
	families, err := m.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToOpenMetrics(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for line := range strings.Lines(b.String()) {
		if sample, exemplar, ok := strings.Cut(line, " # "); ok {
			labels, rest, _ := strings.Cut(exemplar, " ")
			value, _, _ := strings.Cut(rest, " ")
			name, _, _ := strings.Cut(sample, " ")
			got = append(got, name+" "+labels+" "+value)
		}
	}
	want := []string{
		`kekd_grpc_request_duration_seconds_bucket{method="Decrypt",le="5e-05"} {trace_id="` + id + `"} 3e-05`,
		`kekd_grpc_request_duration_seconds_bucket{method="Encrypt",le="5.0"} {trace_id="` + id + `"} 3.0`,
		`kekd_hsm_operation_duration_seconds_bucket{op="unwrap",le="0.005"} {trace_id="` + id + `"} 0.004`,
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("exemplars:\n%s\nwant:\n%s", g, w)
	}
}
