package history

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"kekd/internal/kek"
)

const (
	// Interval is the time between two samples.
	Interval = 10 * time.Second
	// Window is how far the samples go back.
	Window = time.Hour
	// maxSamples are those of a Window, both ends included.
	maxSamples = int(Window/Interval) + 1
)

// Config is what a Recorder needs. All fields are required.
type Config struct {
	// Gatherer is the registry of the metrics.
	Gatherer prometheus.Gatherer
	Clock    func() time.Time
	Logger   *zap.Logger
}

// Recorder keeps the history. All methods are safe for concurrent use. Those that
// report a change take a short lock and call nobody.
type Recorder struct {
	cfg Config

	// gathering is held from the clock's reading to the sample's end, so that samples
	// are in order. mu must not be held while it is taken, nor while the registry is
	// read: reading it may find that time alone has changed the health, which is
	// reported here.
	gathering sync.Mutex

	mu sync.Mutex
	// samples are in order of time, maxSamples at most. Guarded by mu.
	samples []Sample
	// bounds are those of the histograms. Guarded by mu.
	bounds []float64
	// uses is how often each key opened something, by hash of its key_id, for the keys
	// that the registry has. Replaced, never changed. Guarded by mu.
	uses map[string]Growth
	// records are those of the audit trail. Guarded by mu.
	records Growth
	// broken: the last sample could not be taken. Guarded by mu.
	broken bool
	// changes are kept by group. Guarded by mu.
	changes [groups][]Change

	// What was last reported, to tell changes from repetitions. Guarded by mu.
	keys     map[kek.ID]keySeen // nil before the first ring
	problem  bool
	policy   []string
	latched  bool
	breaker  bool
	failing  map[string]bool
	unseeded bool // the last seed could not be made
}

// New returns a Recorder without samples.
func New(cfg Config) *Recorder {
	return &Recorder{cfg: cfg, samples: make([]Sample, 0, maxSamples), failing: map[string]bool{}}
}

// Run takes a sample at once and every Interval until ctx ends.
func (r *Recorder) Run(ctx context.Context) {
	ticker := time.NewTicker(Interval)
	defer ticker.Stop()
	for {
		r.sample()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// sample adds a sample. What can't be read is left out, and logged once.
func (r *Recorder) sample() {
	r.gathering.Lock()
	defer r.gathering.Unlock()
	at := r.cfg.Clock()
	g, err := gather(r.cfg.Gatherer, at)

	r.mu.Lock()
	known := r.broken
	r.broken = err != nil
	if err == nil {
		r.keep(g)
	}
	r.mu.Unlock()
	if err != nil && !known {
		r.cfg.Logger.Error("the status page has a gap, for the metrics cannot be read", zap.Error(err))
	}
}

// keep adds what was gathered. The caller holds mu.
func (r *Recorder) keep(g gathered) {
	at := g.now.Sample.At
	if n := len(r.samples); n > 0 && at.Before(r.samples[n-1].At) {
		// The clock was set back: what is older can't be told from what is newer.
		r.samples = r.samples[:0]
	}
	old := 0
	for old < len(r.samples) && (at.Sub(r.samples[old].At) > Window || len(r.samples)-old >= maxSamples) {
		old++
	}
	// In place: the memory stays what it was at the start.
	r.samples = append(slices.Delete(r.samples, 0, old), g.now.Sample)
	if g.bounds != nil {
		r.bounds = g.bounds
	}
	r.uses = usesAfter(r.uses, g.opened, at)
	r.records = r.records.after(g.now.AuditRecords, at)
}

// Growth is a count and when it grew.
type Growth struct {
	// Count is from the start of kekd.
	Count uint64
	// Last is when it was last seen to have grown, at most an Interval late; zero if it
	// never has.
	Last time.Time
}

// after is the growth when the count was read again.
func (g Growth) after(n uint64, at time.Time) Growth {
	if n != g.Count {
		g.Last = at
	}
	g.Count = n
	return g
}

// usesAfter returns the uses after all counters were read again.
func usesAfter(before map[string]Growth, counts map[string]uint64, at time.Time) map[string]Growth {
	after := make(map[string]Growth, len(counts))
	for hash, n := range counts {
		after[hash] = before[hash].after(n, at)
	}
	return after
}

// Read returns the history, with a sample of this moment at its end, which is not
// kept. The error is why the metrics can't be read; the rest is there.
func (r *Recorder) Read() (Reading, error) {
	r.gathering.Lock()
	g, err := gather(r.cfg.Gatherer, r.cfg.Clock())
	r.gathering.Unlock()

	r.mu.Lock()
	defer r.mu.Unlock()
	reading := Reading{Now: g.now, Samples: slices.Clone(r.samples), Bounds: r.bounds, Uses: r.uses, Records: r.records, Changes: r.latest()}
	if err != nil {
		return reading, fmt.Errorf("read the metrics: %w", err)
	}
	if g.bounds != nil {
		reading.Bounds = g.bounds
	}
	if n := len(reading.Samples); n > 0 && g.now.Sample.At.Before(reading.Samples[n-1].At) {
		reading.Samples = nil // the clock was set back
	}
	reading.Samples = append(reading.Samples, g.now.Sample)
	reading.Uses = usesAfter(r.uses, g.opened, g.now.Sample.At)
	reading.Records = r.records.after(g.now.AuditRecords, g.now.Sample.At)
	return reading, nil
}
