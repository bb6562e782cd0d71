package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kekd/internal/kek"
)

type cacheMetrics struct {
	requests  *prometheus.CounterVec
	evictions *prometheus.CounterVec
	decrypts  *prometheus.CounterVec
	breaker   prometheus.Gauge
	rotations *prometheus.CounterVec
	renewals  *prometheus.CounterVec

	// byResult keeps the counters of requests, so that a Decrypt costs no hash. It is
	// not written after newCacheMetrics.
	byResult map[string]prometheus.Counter
	// opened keeps the counter of each key_id, a prometheus.Counter, so that a
	// Decrypt costs no hash. It grows no further than the ring has keys.
	opened *sync.Map
}

func newCacheMetrics() cacheMetrics {
	c := cacheMetrics{
		requests: counters("kekd_seed_cache_requests_total",
			"Decrypts by what the seed cache had: hit, miss (the HSM was asked), remembered (a recent refusal of the HSM) or verify (damaged input of kekctl verify).", "result"),
		evictions: counters("kekd_seed_cache_evictions_total",
			"Seeds wiped from the cache, by reason.", "reason"),
		decrypts: counters("kekd_decrypts_total",
			"Values decrypted, by the key_id they were encrypted under; shows when an old key is idle.", "key_id_hash"),
		breaker: gauge("kekd_hsm_breaker_open",
			"1 while requests that need the HSM fail at once because it did not answer lately."),
		rotations: counters("kekd_rotations_total",
			"Times that a KEK was to replace another for Encrypt, by result; a start is none.", "result"),
		renewals: counters("kekd_seed_renewals_total",
			"Times that a new seed was to replace the one in use under the same KEK, by result.", "result"),
		byResult: make(map[string]prometheus.Counter),
		opened:   &sync.Map{},
	}
	for _, result := range cacheResults {
		c.byResult[result] = c.requests.WithLabelValues(result)
	}
	for _, reason := range evictions {
		c.evictions.WithLabelValues(reason)
	}
	for _, vec := range []*prometheus.CounterVec{c.rotations, c.renewals} {
		vec.WithLabelValues("ok")
		vec.WithLabelValues("error")
	}
	return c
}

func (c *cacheMetrics) all() []prometheus.Collector {
	return []prometheus.Collector{c.requests, c.evictions, c.decrypts, c.breaker, c.rotations, c.renewals}
}

// CacheRequest implements keycache.Observer.
func (m *Metrics) CacheRequest(result string) {
	if c, ok := m.cache.byResult[result]; ok {
		c.Inc()
		return
	}
	m.cache.requests.WithLabelValues(other).Inc()
}

// CacheEviction implements keycache.Observer.
func (m *Metrics) CacheEviction(reason string) {
	m.cache.evictions.WithLabelValues(closed(reason, evictions)).Inc()
}

// Opened implements keycache.Observer. The key must be on the ring.
func (m *Metrics) Opened(keyID string) {
	m.cache.counter(keyID).Inc()
}

// counter is the one that counts the Decrypts under a key_id.
func (c *cacheMetrics) counter(keyID string) prometheus.Counter {
	n, ok := c.opened.Load(keyID)
	if !ok {
		n, _ = c.opened.LoadOrStore(keyID, c.decrypts.WithLabelValues(kek.KeyIDHash(keyID)))
	}
	return n.(prometheus.Counter)
}

// keep has a counter for each key on the ring, so that an idle one shows as such, and
// drops those of the keys that are not on it any more. A request
// under way may still count for one; it is forgotten at the next look.
func (c *cacheMetrics) keep(onRing map[string]bool) {
	for id := range onRing {
		c.counter(id)
	}
	c.opened.Range(func(keyID, _ any) bool {
		if id := keyID.(string); !onRing[id] {
			c.opened.Delete(id)
			c.decrypts.DeleteLabelValues(kek.KeyIDHash(id))
		}
		return true
	})
}

// Breaker implements keycache.Observer.
func (m *Metrics) Breaker(open bool) { m.cache.breaker.Set(truth(open)) }

// Rotated counts an attempt to replace the KEK that encrypts by another.
func (m *Metrics) Rotated(err error) { m.cache.rotations.WithLabelValues(resultOf(err)).Inc() }

// Renewed counts an attempt to replace the seed under the same KEK.
func (m *Metrics) Renewed(err error) { m.cache.renewals.WithLabelValues(resultOf(err)).Inc() }

// Seeds is what the seed cache holds at one moment.
type Seeds struct {
	// Cached is how many unwrapped seeds are kept, of at most Capacity.
	Cached, Capacity int
	// Waiting is how many requests are with the HSM.
	Waiting int
	// Remembered is how many refusals of the HSM are remembered.
	Remembered int
	// Created is when the seed in use was made; zero if there is none.
	Created time.Time
	// Uses is how often it encrypted.
	Uses uint64
	// DirectUses is how often the KEK encrypted in direct mode.
	DirectUses uint64
}

// CollectSeeds makes every scrape read the seed cache through read, which must be
// quick and safe for concurrent use. It must be called at most once.
func (m *Metrics) CollectSeeds(read func() Seeds) {
	m.registry.MustRegister(&seedCollector{read: read})
}

// seedCollector reads the seed cache when it is scraped: a gauge that is kept up
// to date by events would drift from it.
type seedCollector struct{ read func() Seeds }

var (
	cachedDesc     = prometheus.NewDesc("kekd_seed_cache_entries", "Unwrapped seeds that are kept.", nil, nil)
	capacityDesc   = prometheus.NewDesc("kekd_seed_cache_capacity", "Unwrapped seeds that are kept at most (seeds.cacheSize).", nil, nil)
	waitingDesc    = prometheus.NewDesc("kekd_hsm_requests_waiting", "Wraps and unwraps that are with the HSM or wait for it.", nil, nil)
	rememberedDesc = prometheus.NewDesc("kekd_remembered_failures", "Refusals of the HSM that are remembered for a moment.", nil, nil)
	createdDesc    = prometheus.NewDesc("kekd_seed_created_timestamp_seconds", "When the seed that encrypts was made; absent without one.", nil, nil)
	usesDesc       = prometheus.NewDesc("kekd_seed_uses", "How often the seed that encrypts was used; it is renewed at 80% of seeds.maxUses.", nil, nil)
	directUsesDesc = prometheus.NewDesc("kekd_direct_uses", "How often the KEK encrypted in direct mode on this node; rotate long before 2^32.", nil, nil)
)

// Describe implements prometheus.Collector.
func (*seedCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{cachedDesc, capacityDesc, waitingDesc, rememberedDesc, createdDesc, usesDesc, directUsesDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *seedCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.read()
	send := func(d *prometheus.Desc, v float64) { ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	send(cachedDesc, float64(s.Cached))
	send(capacityDesc, float64(s.Capacity))
	send(waitingDesc, float64(s.Waiting))
	send(rememberedDesc, float64(s.Remembered))
	send(directUsesDesc, float64(s.DirectUses))
	if !s.Created.IsZero() {
		send(createdDesc, seconds(s.Created))
		send(usesDesc, float64(s.Uses))
	}
}
