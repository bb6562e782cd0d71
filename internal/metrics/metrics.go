package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"kekd/internal/health"
	"kekd/internal/version"
)

// Metrics are all metrics of one kekd. All methods are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	plugin pluginMetrics
	cache  cacheMetrics
	hsm    hsmMetrics
	health healthMetrics
	ring   *ringCollector
	looks  ringMetrics
	audit  auditMetrics
	traces traceMetrics
}

// New makes the metrics and registers them in a registry of their own, together
// with those of the Go runtime and the process.
func New(build version.Info, clock func() time.Time) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		plugin:   newPluginMetrics(),
		cache:    newCacheMetrics(),
		hsm:      newHSMMetrics(),
		health:   newHealthMetrics(),
		ring:     newRingCollector(clock),
		looks:    newRingMetrics(),
		audit:    newAuditMetrics(),
		traces:   newTraceMetrics(),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "kekd_build_info",
		Help: "Always 1; the labels say which build this is.",
		ConstLabels: prometheus.Labels{
			"version": build.Version, "revision": build.Revision, "go_version": build.Go,
		},
	})
	info.Set(1)
	m.registry.MustRegister(info, m.ring,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.registry.MustRegister(m.plugin.all()...)
	m.registry.MustRegister(m.cache.all()...)
	m.registry.MustRegister(m.hsm.all()...)
	m.registry.MustRegister(m.health.all()...)
	m.registry.MustRegister(m.looks.all()...)
	m.registry.MustRegister(m.audit.all()...)
	m.registry.MustRegister(m.traces.all()...)
	m.HealthChanged("", string(health.Starting), "")
	return m
}

// CollectLog makes every scrape read how many lines of the log were lost so far. It
// must be called at most once.
func (m *Metrics) CollectLog(lost func() uint64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "kekd_log_lines_lost_total",
		Help: "Lines of the log that were lost because standard error took them too slowly or not at all.",
	}, func() float64 { return float64(lost()) }))
}

// Gatherer returns the registry for reading.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// durations are the buckets of all histograms of time, in seconds: a warm request
// takes tens of microseconds, a network HSM that fails over takes seconds.
func durations() []float64 {
	return []float64{
		10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6,
		1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3,
		1, 2.5, 5, 10,
	}
}

// Every histogram is a native one too, for a Prometheus that asks for it (protobuf
// with native histograms on); the text format carries the classic buckets alone.
const (
	// nativeFactor is by how much a bucket is wider than the one below it: quantiles
	// are within 5 % or so of the truth.
	nativeFactor = 1.1
	// nativeBuckets bounds the memory and the scrape: 10 µs to 10 s are 145 steps of
	// that factor. Above it the resolution is halved, or the histogram starts anew if
	// it is older than nativeReset.
	nativeBuckets = 160
	nativeReset   = time.Hour
)

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
}

func gauges(name, help string, labels ...string) *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
}

func histograms(name, help string, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: name, Help: help, Buckets: durations(),
		NativeHistogramBucketFactor:     nativeFactor,
		NativeHistogramMaxBucketNumber:  nativeBuckets,
		NativeHistogramMinResetDuration: nativeReset,
	}, labels)
}

// exemplars is what every histogram of ours is, though its type does not say so.
func exemplars(o prometheus.Observer) prometheus.ExemplarObserver {
	return o.(prometheus.ExemplarObserver)
}

// observe adds a time to a histogram, with an exemplar that leads to the trace if it
// was recorded.
func observe(h prometheus.ExemplarObserver, elapsed time.Duration, traceID string) {
	var exemplar prometheus.Labels // none
	if traceID != "" {
		exemplar = prometheus.Labels{"trace_id": traceID}
	}
	h.ObserveWithExemplar(elapsed.Seconds(), exemplar)
}

// seconds is a time as Prometheus spells it.
func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// truth is a boolean as Prometheus spells it.
func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
