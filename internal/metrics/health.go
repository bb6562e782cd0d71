package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kekd/internal/health"
)

type healthMetrics struct {
	healthy     prometheus.Gauge
	state       *prometheus.GaugeVec
	transitions *prometheus.CounterVec
	lastSuccess prometheus.Gauge
}

func newHealthMetrics() healthMetrics {
	h := healthMetrics{
		healthy: gauge("kekd_healthy",
			"1 while Status says ok (state ready or coasting)."),
		state: gauges("kekd_health_state",
			"1 for the state that kekd is in, 0 for the others.", "state"),
		transitions: counters("kekd_health_transitions_total",
			"Changes of the health state, by the state entered.", "to"),
		lastSuccess: gauge("kekd_last_probe_success_timestamp_seconds",
			"When the HSM last proved to work; 0 if never."),
	}
	for _, s := range health.States() {
		h.transitions.WithLabelValues(string(s))
	}
	return h
}

func (h *healthMetrics) all() []prometheus.Collector {
	return []prometheus.Collector{h.healthy, h.state, h.transitions, h.lastSuccess}
}

// HealthChanged implements health.Observer. from is empty for the first state. The
// reason is for /status and the log.
func (m *Metrics) HealthChanged(from, to, _ string) {
	for _, s := range health.States() {
		m.health.state.WithLabelValues(string(s)).Set(truth(string(s) == to))
	}
	m.health.healthy.Set(truth(health.State(to).Serves()))
	if from != "" {
		m.health.transitions.WithLabelValues(to).Inc()
	}
}

// CollectGrace makes every scrape read when coasting ends, zero in any other state.
// read must be quick and safe for concurrent use; that it judges the health anew is
// welcome, since time alone may have changed it. It must be called at most once.
func (m *Metrics) CollectGrace(read func() time.Time) {
	m.registry.MustRegister(&graceCollector{read: read})
}

// graceCollector has no series while nothing is running out: a time in the past
// would have to be compared away in every query.
type graceCollector struct{ read func() time.Time }

var coastingEndsDesc = prometheus.NewDesc("kekd_coasting_ends_timestamp_seconds",
	"When coasting ends and kekd becomes unready, unless the HSM recovers; absent in any other state.", nil, nil)

// Describe implements prometheus.Collector.
func (*graceCollector) Describe(ch chan<- *prometheus.Desc) { ch <- coastingEndsDesc }

// Collect implements prometheus.Collector.
func (c *graceCollector) Collect(ch chan<- prometheus.Metric) {
	if end := c.read(); !end.IsZero() {
		ch <- prometheus.MustNewConstMetric(coastingEndsDesc, prometheus.GaugeValue, seconds(end))
	}
}

// HealthSucceeded implements health.Observer.
func (m *Metrics) HealthSucceeded(at time.Time) { m.health.lastSuccess.Set(seconds(at)) }
