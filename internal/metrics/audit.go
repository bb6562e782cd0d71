package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type auditMetrics struct {
	written, lost prometheus.Counter
	signed        prometheus.Gauge
	sequence      prometheus.Gauge
	failing       *prometheus.GaugeVec
}

func newAuditMetrics() auditMetrics {
	a := auditMetrics{
		written: counter("kekd_audit_records_total",
			"Records that were written to the audit trail."),
		lost: counter("kekd_audit_records_lost_total",
			"Records that could not be written to the audit trail; the trail says so where they are missing."),
		signed: gauge("kekd_audit_last_checkpoint_timestamp_seconds",
			"When the last signature of the audit trail was asked for; 0 before the first one, and while audit.dir is not set."),
		sequence: gauge("kekd_audit_last_checkpoint_sequence",
			"The last line of the audit trail that is signed."),
		failing: gauges("kekd_audit_failing",
			"1 while a part of the audit trail fails: write (the files), sign (the key on the token), forward (syslog or journald), memory (the state directory), trail (broken or rolled back when kekd started).", "part"),
	}
	for _, part := range auditParts {
		a.failing.WithLabelValues(part)
	}
	return a
}

func (a *auditMetrics) all() []prometheus.Collector {
	return []prometheus.Collector{a.written, a.lost, a.signed, a.sequence, a.failing}
}

// AuditRecords implements audit.Observer.
func (m *Metrics) AuditRecords(written, lost uint64) {
	m.audit.written.Add(float64(written))
	m.audit.lost.Add(float64(lost))
}

// AuditCheckpoint implements audit.Observer.
func (m *Metrics) AuditCheckpoint(at time.Time, seq uint64) {
	m.audit.signed.Set(seconds(at))
	m.audit.sequence.Set(float64(seq))
}

// AuditFailing implements audit.Observer.
func (m *Metrics) AuditFailing(part string, failing bool) {
	m.audit.failing.WithLabelValues(closed(part, auditParts)).Set(truth(failing))
}
