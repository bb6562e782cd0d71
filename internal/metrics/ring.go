package metrics

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kekd/internal/kek"
	"kekd/internal/keypolicy"
)

var (
	keyInfoDesc = prometheus.NewDesc("kekd_key_info",
		"Always 1; one for each key on the ring, with its state.", []string{"key_id_hash", "state"}, nil)
	activationDesc = prometheus.NewDesc("kekd_key_activation_timestamp_seconds",
		"When a key took over, or will; one for each key on the ring that says so, which one of another tool does not.", []string{"key_id_hash"}, nil)
	primarySinceDesc = prometheus.NewDesc("kekd_primary_key_since_timestamp_seconds",
		"When the primary KEK was activated; absent without one, or if another tool made it.", nil, nil)
	nextActivationDesc = prometheus.NewDesc("kekd_next_key_activation_timestamp_seconds",
		"When the next pending KEK takes over; absent without one.", nil, nil)
	ringReadDesc = prometheus.NewDesc("kekd_key_ring_read_timestamp_seconds",
		"When the key ring was last read off the token; absent before the first time.", nil, nil)
)

// ringCollector shows the last ring it was given. It makes its metrics from one
// snapshot when it is scraped, so that no scrape sees a key in two states or in
// none.
type ringCollector struct {
	clock  func() time.Time
	latest atomic.Pointer[ringReading]
}

type ringReading struct {
	ring *kek.Ring
	at   time.Time
}

func newRingCollector(clock func() time.Time) *ringCollector { return &ringCollector{clock: clock} }

// SetRing reports the ring as it was just read off the token.
func (m *Metrics) SetRing(r *kek.Ring) {
	m.ring.latest.Store(&ringReading{ring: r, at: m.ring.clock()})
	onRing := make(map[string]bool, len(r.Keys))
	for _, k := range r.Keys {
		onRing[k.KeyID()] = true
	}
	m.cache.keep(onRing)
}

// Describe implements prometheus.Collector.
func (*ringCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{keyInfoDesc, activationDesc, primarySinceDesc, nextActivationDesc, ringReadDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *ringCollector) Collect(ch chan<- prometheus.Metric) {
	reading := c.latest.Load()
	if reading == nil {
		return
	}
	send := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	send(ringReadDesc, seconds(reading.at))

	var next time.Time
	seen := map[string]bool{}
	for _, k := range reading.ring.Keys {
		// Two objects on the token may have one id by an operator's accident. One
		// series twice would fail the whole scrape.
		hash := kek.KeyIDHash(k.KeyID())
		if seen[hash] {
			continue
		}
		seen[hash] = true
		send(keyInfoDesc, 1, hash, k.State.String())
		if !k.Activation.IsZero() {
			send(activationDesc, seconds(k.Activation), hash)
		}
		if k.State == kek.Pending && (next.IsZero() || k.Activation.Before(next)) {
			next = k.Activation
		}
	}
	if !next.IsZero() {
		send(nextActivationDesc, seconds(next))
	}
	if primary, ok := reading.ring.Primary(); ok && !primary.Activation.IsZero() {
		send(primarySinceDesc, seconds(primary.Activation))
	}
}

// ringMetrics are set rather than collected: they describe looks, not a ring.
type ringMetrics struct {
	problem    prometheus.Gauge
	violations *prometheus.GaugeVec
}

func newRingMetrics() ringMetrics {
	m := ringMetrics{
		problem: gauge("kekd_key_ring_problem",
			"1 while the last look at the key ring did not end with a primary in use; /status says why."),
		violations: gauges("kekd_key_policy_violations",
			"Ways in which the key ring is not as keyRing.policy demands, by rule.", "rule"),
	}
	for _, r := range keypolicy.Rules() {
		m.violations.WithLabelValues(string(r))
	}
	return m
}

func (m *ringMetrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.problem, m.violations}
}

// RingLooked implements rotation.Observer.
func (m *Metrics) RingLooked(err error) { m.looks.problem.Set(truth(err != nil)) }

// SetPolicy implements rotation.Observer.
func (m *Metrics) SetPolicy(violations []keypolicy.Violation) {
	for _, r := range keypolicy.Rules() {
		n := 0
		for _, v := range violations {
			if v.Rule == r {
				n++
			}
		}
		m.looks.violations.WithLabelValues(string(r)).Set(float64(n))
	}
}
