package history

import (
	"sort"
	"time"
)

// Reading is the history as it was read. It is the reader's own.
type Reading struct {
	Now Now
	// Samples are in order of time, an Interval apart; the last is Now's.
	Samples []Sample
	// Bounds are the upper bounds of Series.Within, in seconds.
	Bounds []float64
	// Uses is how often each key opened something, by hash of its key_id.
	Uses map[string]Growth
	// Records are those of the audit trail.
	Records Growth
	// Changes are the latest first.
	Changes []Change
}

// Span is what happened between two samples. Its Sample holds differences.
type Span struct {
	// Elapsed is its length; 0 if there are no two samples.
	Elapsed time.Duration
	Sample  Sample
}

// Last returns the span up to now that is as long as asked, or as there are samples.
func (r *Reading) Last(d time.Duration) Span {
	if len(r.Samples) == 0 {
		return Span{}
	}
	last := r.Samples[len(r.Samples)-1]
	// The timer that takes samples is never early, but up to a moment late.
	first := sort.Search(len(r.Samples)-1, func(i int) bool { return last.At.Sub(r.Samples[i].At) <= d+Interval/2 })
	return between(r.Samples[first], last)
}

// Split returns n spans of a width that end now, oldest first. Those without two
// samples are empty.
func (r *Reading) Split(n int, width time.Duration) []Span {
	spans := make([]Span, n)
	if len(r.Samples) == 0 {
		return spans
	}
	end := r.Samples[len(r.Samples)-1].At
	// before returns the last sample that is not after a time.
	before := func(t time.Time) int {
		return sort.Search(len(r.Samples), func(i int) bool { return r.Samples[i].At.After(t) }) - 1
	}
	for i := range spans {
		to := end.Add(-time.Duration(n-1-i) * width)
		first, last := before(to.Add(-width)), before(to)
		if first < 0 && last >= 0 && r.Samples[0].At.After(to.Add(-width)) {
			first = 0 // the first span is as long as there are samples
		}
		if first >= 0 && first < last {
			spans[i] = between(r.Samples[first], r.Samples[last])
		}
	}
	return spans
}

func between(a, b Sample) Span {
	return Span{
		Elapsed: b.At.Sub(a.At),
		Sample: Sample{
			At: b.At, State: b.State,
			Encrypt: b.Encrypt.since(a.Encrypt), Decrypt: b.Decrypt.since(a.Decrypt),
			Unwrap: b.Unwrap.since(a.Unwrap), HSM: b.HSM.since(a.HSM),
			Hits: less(b.Hits, a.Hits), Misses: less(b.Misses, a.Misses), Remembered: less(b.Remembered, a.Remembered),
		},
	}
}

func (s Series) since(before Series) Series {
	d := Series{Ended: less(s.Ended, before.Ended), Failed: less(s.Failed, before.Failed), Timed: less(s.Timed, before.Timed)}
	for i := range d.Within {
		d.Within[i] = less(s.Within[i], before.Within[i])
	}
	return d
}

// less is a-b, and 0 where a counter went backwards, which none should.
func less(a, b uint64) uint64 {
	if a < b {
		return 0
	}
	return a - b
}

// PerSecond is a rate; 0 for an empty span.
func (s Span) PerSecond(n uint64) float64 {
	if s.Elapsed <= 0 {
		return 0
	}
	return float64(n) / s.Elapsed.Seconds()
}

// Quantile estimates the time within which a share of the operations ended, 0 < q < 1,
// as Prometheus does: as if they were spread evenly in their bucket. What lies above
// the last bound counts as that. ok is false if there were none.
func (s Series) Quantile(q float64, bounds []float64) (d time.Duration, ok bool) {
	if s.Timed == 0 || len(bounds) == 0 || len(bounds) > maxBuckets {
		return 0, false
	}
	rank := q * float64(s.Timed)
	lower, below := 0.0, 0.0
	for i, upper := range bounds {
		within := float64(s.Within[i])
		if within >= rank {
			return seconds(lower + (upper-lower)*(rank-below)/(within-below)), true
		}
		lower, below = upper, within
	}
	return seconds(lower), true
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
