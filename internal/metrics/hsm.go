package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type hsmMetrics struct {
	operations *prometheus.CounterVec
	durations  *prometheus.HistogramVec
	restarts   *prometheus.CounterVec
	failed     *prometheus.CounterVec
	sessions   *prometheus.GaugeVec
	limit      prometheus.Gauge
	latched    prometheus.Gauge
}

func newHSMMetrics() hsmMetrics {
	h := hsmMetrics{
		operations: counters("kekd_hsm_operations_total",
			"Operations of the HSM that ended, by operation and result; unavailable is one that was not tried because no worker runs, verify one that kekctl verify spoilt.", "op", "result"),
		durations: histograms("kekd_hsm_operation_duration_seconds",
			"Time that operations of the HSM took, waiting included, by operation.", "op"),
		restarts: counters("kekd_hsm_worker_restarts_total",
			"Worker processes that came to an end other than by a stop, by reason.", "reason"),
		failed: counters("kekd_hsm_worker_start_failures_total",
			"Worker processes that did not come up, by reason; kekd tries again within a second while anybody asks.", "reason"),
		limit: gauge("kekd_hsm_sessions_limit",
			"PKCS#11 sessions that may be in use at once (hsm.sessions, or fewer if the token gives fewer); 0 before the first operation."),
		sessions: gauges("kekd_hsm_sessions",
			"PKCS#11 sessions in use, and calls that wait for one.", "state"),
		latched: gauge("kekd_hsm_pin_latched",
			"1 while the token's refusal of the PIN keeps kekd from trying it again."),
	}
	for _, op := range []string{"wrap", "unwrap"} {
		h.operations.WithLabelValues(op, "ok")
		h.durations.WithLabelValues(op)
	}
	h.restarts.WithLabelValues("died")
	for _, reason := range []string{"token", "pin", "setup"} {
		h.failed.WithLabelValues(reason)
	}
	h.sessions.WithLabelValues("in_use")
	h.sessions.WithLabelValues("waiting")
	return h
}

func (h *hsmMetrics) all() []prometheus.Collector {
	return []prometheus.Collector{h.operations, h.durations, h.restarts, h.failed, h.sessions, h.limit, h.latched}
}

// HSMOperation implements hsm.Observer.
func (m *Metrics) HSMOperation(op, result string, elapsed time.Duration, traceID string) {
	op = closed(op, hsmOperations)
	m.hsm.operations.WithLabelValues(op, closed(result, opResults)).Inc()
	observe(exemplars(m.hsm.durations.WithLabelValues(op)), elapsed, traceID)
}

// HSMWorkerRestart implements hsm.Observer.
func (m *Metrics) HSMWorkerRestart(reason string) {
	m.hsm.restarts.WithLabelValues(closed(reason, restartReasons)).Inc()
}

// HSMWorkerStartFailed implements hsm.Observer.
func (m *Metrics) HSMWorkerStartFailed(reason string) {
	m.hsm.failed.WithLabelValues(closed(reason, hsmResults)).Inc()
}

// HSMSessions implements hsm.Observer.
func (m *Metrics) HSMSessions(inUse, limit, waiting int) {
	m.hsm.limit.Set(float64(limit))
	m.hsm.sessions.WithLabelValues("in_use").Set(float64(inUse))
	m.hsm.sessions.WithLabelValues("waiting").Set(float64(waiting))
}

// HSMLatched implements hsm.Observer.
func (m *Metrics) HSMLatched(latched bool) { m.hsm.latched.Set(truth(latched)) }
