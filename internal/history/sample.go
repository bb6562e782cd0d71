package history

import (
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"kekd/internal/health"
)

// maxBuckets is how many buckets a Series has room for, that of infinity aside.
const maxBuckets = 20

// Series are operations of one kind, counted from the start of kekd.
type Series struct {
	// Ended are all, Failed those of them that did not end well.
	Ended, Failed uint64
	// Timed are those whose time was taken.
	Timed uint64
	// Within counts those that took no longer than each of the bounds.
	Within [maxBuckets]uint64
}

// Sample is a moment.
type Sample struct {
	At time.Time
	// State is the health; empty if it is unknown.
	State health.State
	// Encrypt and Decrypt are the requests.
	Encrypt, Decrypt Series
	// Unwrap is the HSM's work for Decrypts whose seed was cold, HSM all its work.
	Unwrap, HSM Series
	// Hits, Misses and Remembered are Decrypts by what the seed cache had.
	Hits, Misses, Remembered uint64
}

// Now is a moment with what is not kept of it. Counts are from the start of kekd.
type Now struct {
	Sample Sample
	// InFlight are requests being served.
	InFlight uint64
	// SessionsInUse of at most SessionsLimit, which is 0 before the first operation,
	// and calls that wait for one.
	SessionsInUse, SessionsLimit, SessionsWaiting uint64
	// PINLatched: the token refused the PIN, and it is not tried again.
	PINLatched bool
	// WorkerRestarts and WorkerStartsFailed count worker processes.
	WorkerRestarts, WorkerStartsFailed uint64
	// Evictions are seeds that were wiped from the cache.
	Evictions uint64
	// Rotations and Renewals that worked, and those that failed.
	Rotations, RotationsFailed, Renewals, RenewalsFailed uint64
	// AuditRecords are records written, AuditLost those that could not be.
	AuditRecords, AuditLost uint64
	// AuditSigned is when the trail was last signed, up to the line AuditSequence;
	// zero if never.
	AuditSigned   time.Time
	AuditSequence uint64
	// AuditFailing are the parts of the trail that fail now.
	AuditFailing []string
	// CallersRefused and ConnectionsRefused are connections that were closed.
	CallersRefused, ConnectionsRefused uint64
	// Panics are bugs, LogLinesLost lines that nobody took.
	Panics, LogLinesLost uint64
}

// gathered is what was read from the registry.
type gathered struct {
	now    Now
	bounds []float64
	opened map[string]uint64 // by key_id_hash
}

// gather reads the registry.
func gather(from prometheus.Gatherer, at time.Time) (gathered, error) {
	g := gathered{now: Now{Sample: Sample{At: at}}, opened: map[string]uint64{}}
	families, err := from.Gather()
	if err != nil {
		return g, err
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if err := g.add(f.GetName(), m); err != nil {
				return g, err
			}
		}
	}
	return g, nil
}

// add takes in one metric, if it is among those that matter.
func (g *gathered) add(name string, m *dto.Metric) error {
	n, s := &g.now, &g.now.Sample
	switch name {
	case "kekd_health_state":
		if value(m) == 1 {
			s.State = health.State(label(m, "state"))
		}
	case "kekd_grpc_requests_total":
		if series := s.ofMethod(label(m, "method")); series != nil {
			series.count(value(m), slices.Contains([]string{"OK", "verify"}, label(m, "code")))
		}
	case "kekd_grpc_request_duration_seconds":
		if series := s.ofMethod(label(m, "method")); series != nil {
			return g.time(series, m.GetHistogram())
		}
	case "kekd_hsm_operations_total":
		ok := slices.Contains([]string{"ok", "verify"}, label(m, "result"))
		s.HSM.count(value(m), ok)
		if label(m, "op") == "unwrap" {
			s.Unwrap.count(value(m), ok)
		}
	case "kekd_hsm_operation_duration_seconds":
		if label(m, "op") == "unwrap" {
			if err := g.time(&s.Unwrap, m.GetHistogram()); err != nil {
				return err
			}
		}
		return g.time(&s.HSM, m.GetHistogram())
	case "kekd_seed_cache_requests_total":
		switch label(m, "result") {
		case "hit":
			s.Hits = value(m)
		case "miss":
			s.Misses = value(m)
		case "remembered":
			s.Remembered = value(m)
		}
	case "kekd_decrypts_total":
		g.opened[label(m, "key_id_hash")] = value(m)
	case "kekd_audit_failing":
		if value(m) != 0 {
			n.AuditFailing = append(n.AuditFailing, label(m, "part"))
		}
	case "kekd_audit_last_checkpoint_timestamp_seconds":
		if seconds := m.GetGauge().GetValue(); seconds > 0 {
			n.AuditSigned = time.UnixMilli(int64(seconds * 1e3))
		}
	case "kekd_hsm_pin_latched":
		n.PINLatched = value(m) != 0
	default:
		if total := n.total(name, m); total != nil {
			*total += value(m)
		}
	}
	return nil
}

// total is where all metrics of a family are added up; nil for one that does not
// matter.
func (n *Now) total(name string, m *dto.Metric) *uint64 {
	switch name {
	case "kekd_grpc_requests_in_flight":
		return &n.InFlight
	case "kekd_hsm_sessions":
		if label(m, "state") == "waiting" {
			return &n.SessionsWaiting
		}
		return &n.SessionsInUse
	case "kekd_hsm_sessions_limit":
		return &n.SessionsLimit
	case "kekd_hsm_worker_restarts_total":
		return &n.WorkerRestarts
	case "kekd_hsm_worker_start_failures_total":
		return &n.WorkerStartsFailed
	case "kekd_seed_cache_evictions_total":
		return &n.Evictions
	case "kekd_rotations_total":
		if label(m, "result") == "ok" {
			return &n.Rotations
		}
		return &n.RotationsFailed
	case "kekd_seed_renewals_total":
		if label(m, "result") == "ok" {
			return &n.Renewals
		}
		return &n.RenewalsFailed
	case "kekd_audit_records_total":
		return &n.AuditRecords
	case "kekd_audit_records_lost_total":
		return &n.AuditLost
	case "kekd_audit_last_checkpoint_sequence":
		return &n.AuditSequence
	case "kekd_callers_refused_total":
		return &n.CallersRefused
	case "kekd_connections_refused_total":
		return &n.ConnectionsRefused
	case "kekd_panics_total":
		return &n.Panics
	case "kekd_log_lines_lost_total":
		return &n.LogLinesLost
	}
	return nil
}

func (s *Sample) ofMethod(method string) *Series {
	switch method {
	case "Encrypt":
		return &s.Encrypt
	case "Decrypt":
		return &s.Decrypt
	}
	return nil
}

// count adds n operations that ended alike.
func (s *Series) count(n uint64, ok bool) {
	s.Ended += n
	if !ok {
		s.Failed += n
	}
}

// time adds a histogram, whose bounds must be those of all others.
func (g *gathered) time(s *Series, h *dto.Histogram) error {
	bounds := make([]float64, 0, maxBuckets)
	for _, b := range h.GetBucket() {
		if len(bounds) == maxBuckets {
			return fmt.Errorf("a histogram has more than %d buckets", maxBuckets)
		}
		s.Within[len(bounds)] += b.GetCumulativeCount()
		bounds = append(bounds, b.GetUpperBound())
	}
	if g.bounds == nil {
		g.bounds = bounds
	} else if !slices.Equal(g.bounds, bounds) {
		return fmt.Errorf("two histograms have the buckets %v and %v", g.bounds, bounds)
	}
	s.Timed += h.GetSampleCount()
	return nil
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// value is that of a counter or a gauge of whole things.
func value(m *dto.Metric) uint64 {
	v := m.GetGauge().GetValue()
	if c := m.GetCounter(); c != nil {
		v = c.GetValue()
	}
	return uint64(max(v, 0))
}
