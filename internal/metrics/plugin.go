package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

type pluginMetrics struct {
	arrived   prometheus.Counter
	requests  *prometheus.CounterVec
	durations *prometheus.HistogramVec
	inFlight  prometheus.Gauge
	refused   prometheus.Counter
	tooMany   prometheus.Counter
	panics    prometheus.Counter

	// byMethod keeps what a request that succeeds adds to, so that it costs no hash
	// of its labels. It is not written after newPluginMetrics.
	byMethod map[string]methodMetrics
}

// methodMetrics are those of one method.
type methodMetrics struct {
	ok       prometheus.Counter
	duration prometheus.ExemplarObserver
}

func newPluginMetrics() pluginMetrics {
	p := pluginMetrics{
		arrived: counter("kekd_grpc_requests_arrived_total",
			"Requests whose headers came. Those that kekd_grpc_requests_total never counts were turned away by gRPC itself (unknown method, too large, undecodable) or given up by their client."),
		requests: counters("kekd_grpc_requests_total",
			"KMS v2 requests that ended, by method and gRPC code; verify is one of kekctl verify that failed as it was meant to.", "method", "code"),
		durations: histograms("kekd_grpc_request_duration_seconds",
			"Time that KMS v2 requests took, by method.", "method"),
		inFlight: gauge("kekd_grpc_requests_in_flight",
			"Encrypt and Decrypt requests that are being served."),
		refused: counter("kekd_callers_refused_total",
			"Connections closed because the caller's user id is not in socket.allowedUIDs."),
		tooMany: counter("kekd_connections_refused_total",
			"Connections of allowed callers closed because 1,024 were open."),
		panics: counter("kekd_panics_total",
			"Requests that ended in a panic; each is a bug."),
		byMethod: make(map[string]methodMetrics),
	}
	for _, method := range methods {
		// A counter that appears with its first failure hides it: Prometheus sees no
		// increase from nothing to one.
		for _, code := range failures {
			p.requests.WithLabelValues(method, code.String())
		}
		p.byMethod[method] = methodMetrics{
			ok:       p.requests.WithLabelValues(method, codes.OK.String()),
			duration: exemplars(p.durations.WithLabelValues(method)),
		}
	}
	return p
}

func (p *pluginMetrics) all() []prometheus.Collector {
	return []prometheus.Collector{p.arrived, p.requests, p.durations, p.inFlight, p.refused, p.tooMany, p.panics}
}

// Arrived implements plugin.Observer.
func (m *Metrics) Arrived() { m.plugin.arrived.Inc() }

// Request implements plugin.Observer.
func (m *Metrics) Request(method string, code codes.Code, elapsed time.Duration, traceID string) {
	if known, ok := m.plugin.byMethod[method]; ok && code == codes.OK {
		known.ok.Inc()
		observe(known.duration, elapsed, traceID)
		return
	}
	method = closed(method, methods)
	text := code.String()
	if code > codes.Unauthenticated {
		text = other
	}
	m.plugin.requests.WithLabelValues(method, text).Inc()
	observe(exemplars(m.plugin.durations.WithLabelValues(method)), elapsed, traceID)
}

// Verified implements plugin.Observer.
func (m *Metrics) Verified(method string) {
	m.plugin.requests.WithLabelValues(closed(method, methods), verify).Inc()
}

// InFlight implements plugin.Observer.
func (m *Metrics) InFlight(delta int) { m.plugin.inFlight.Add(float64(delta)) }

// Refused implements plugin.Observer. The uid is in the log: any process of the
// node could make a time series of its own.
func (m *Metrics) Refused(uint32) { m.plugin.refused.Inc() }

// TooMany implements plugin.Observer.
func (m *Metrics) TooMany() { m.plugin.tooMany.Inc() }

// Panic implements plugin.Observer.
func (m *Metrics) Panic() { m.plugin.panics.Inc() }
