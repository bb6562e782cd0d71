package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestSumCounter(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		text    string
		sum     float64
		samples int
		err     string
	}{
		{"nothing", "", 0, 0, ""},
		{"comments", "# HELP ops_total Operations.\n# TYPE ops_total counter\n", 0, 0, ""},
		{"without labels", "ops_total 7\n", 7, 1, ""},
		{"with labels", "ops_total{op=\"a\",result=\"ok\"} 3\nops_total{op=\"b\",result=\"ok\"} 4\n", 7, 2, ""},
		{"a large value", "ops_total 1.5e+06\n", 1.5e6, 1, ""},
		{"a timestamp", "ops_total{op=\"a\"} 3 1790000000000\n", 3, 1, ""},
		{"braces and quotes in a label", `ops_total{op="} 9 \"{",x="\\"} 5`, 5, 1, ""},
		{"other metrics", "my_ops_total 1\nops_total_sum 2\nops_total_created 3\nops 4\nops_total 5\n", 5, 1, ""},
		{"no value", "ops_total{op=\"a\"}\n", 0, 0, "has no value"},
		{"labels without an end", "ops_total{op=\"a\n", 0, 0, "has no value"},
		{"too many values", "ops_total 1 2 3\n", 0, 0, "has no value"},
		{"no number", "ops_total many\n", 0, 0, "invalid syntax"},
		{"a line without an end", strings.Repeat("x", 2<<20), 0, 0, "token too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			sum, samples, err := sumCounter(strings.NewReader(tt.text), "ops_total")
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want %q in it", err, tt.err)
				}
				return
			}
			if err != nil || sum != tt.sum || samples != tt.samples {
				t.Errorf("got %v of %d samples, %v; want %v of %d", sum, samples, err, tt.sum, tt.samples)
			}
		})
	}
}

func TestCounterReaderRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		handler http.HandlerFunc
		want    string
	}{
		{"a page without the counter", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("other_total 1\n")) }, "has no metric ops_total; name the counter"},
		{"an error page", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) }, "answered 403 Forbidden"},
		{"a page that is no text format", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ops_total x\n")) }, "invalid syntax"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(tt.handler)
			defer server.Close()
			r := counterReader{client: server.Client(), url: server.URL, metric: "ops_total"}
			if _, err := r.read(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
		})
	}
}

func FuzzSumCounter(f *testing.F) {
	for _, seed := range []string{"ops_total 1\n", `ops_total{op="a\"}"} 2 3`, "ops_total{", "ops_total\t1", "# ops_total 1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		sum, samples, err := sumCounter(strings.NewReader(text), "ops_total")
		if (err != nil || samples == 0) && sum != 0 {
			t.Errorf("sum %v of %d samples, %v", sum, samples, err)
		}
	})
}
