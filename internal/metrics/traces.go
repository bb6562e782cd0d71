package metrics

import "github.com/prometheus/client_golang/prometheus"

type traceMetrics struct{ spans *prometheus.CounterVec }

func newTraceMetrics() traceMetrics {
	t := traceMetrics{spans: counters("kekd_trace_spans_total",
		"Spans that were recorded, by what became of them: exported, failed (the collector did not take them in time, or refused some of a batch) or dropped (too many were waiting); 0 while tracing.endpoint is not set.", "result")}
	for _, result := range spanResults {
		t.spans.WithLabelValues(result)
	}
	return t
}

func (t *traceMetrics) all() []prometheus.Collector { return []prometheus.Collector{t.spans} }

// TraceSpans implements otlp.Observer.
func (m *Metrics) TraceSpans(result string, n int) {
	m.traces.spans.WithLabelValues(closed(result, spanResults)).Add(float64(n))
}
