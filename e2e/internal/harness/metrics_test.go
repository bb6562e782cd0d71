package harness

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const exposition = `# TYPE ops_total counter
ops_total{op="wrap",result="ok"} 2
ops_total{op="unwrap",result="ok"} 3
ops_total{op="unwrap",result="failed"} 4
# TYPE seconds histogram
seconds_bucket{method="a",le="1"} 5
seconds_bucket{method="a",le="+Inf"} 7
seconds_sum{method="a"} 100
seconds_count{method="a"} 7
# TYPE entries gauge
entries 9
`

func TestMetrics(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, exposition)
	}))
	defer server.Close()
	m, err := scrape(t.Context(), server.Client(), server.URL)
	if err != nil {
		t.Fatal(err)
	}
	sums := []struct {
		name   string
		metric string
		labels map[string]string
		want   float64
	}{
		{"all of a counter", "ops_total", nil, 9},
		{"one label", "ops_total", map[string]string{"op": "unwrap"}, 7},
		{"two labels", "ops_total", map[string]string{"op": "unwrap", "result": "failed"}, 4},
		{"no such value", "ops_total", map[string]string{"op": "sign"}, 0},
		{"no such label", "ops_total", map[string]string{"key": "1"}, 0},
		{"no such metric", "other", nil, 0},
		{"count of a histogram", "seconds", map[string]string{"method": "a"}, 7},
		{"gauge", "entries", nil, 9},
	}
	for _, tc := range sums {
		t.Run(tc.name, func(t *testing.T) {
			if got := m.Sum(tc.metric, tc.labels); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
	want := map[string]float64{"wrap": 2, "unwrap": 7}
	if diff := cmp.Diff(want, m.By("ops_total", "op")); diff != "" {
		t.Errorf("by op (-want +got):\n%s", diff)
	}
}
