package main

import (
	"net"
	"os"

	"go.uber.org/zap"

	"kekd/internal/history"
	"kekd/internal/httpapi"
	"kekd/internal/keypolicy"
	"kekd/internal/metrics"
	"kekd/internal/statuspage"
)

func newHistory(m *metrics.Metrics, log *zap.Logger) *history.Recorder {
	return history.New(history.Config{Gatherer: m.Gatherer(), Clock: now, Logger: log.Named("history")})
}

// pageOptions are what the HTTP endpoint has for browsers.
func (d *daemon) pageOptions() []httpapi.Option {
	node, err := os.Hostname()
	if err != nil {
		node = "" // the page goes without
	}
	page := statuspage.New(statuspage.Config{
		Status: d.Status, History: d.history.Read, Clock: now, Logger: d.log.Named("page"),
		Facts: statuspage.Facts{
			Node: node, Started: d.started, Ring: d.cfg.KeyRing.Label, Refresh: d.cfg.KeyRing.Refresh,
			Grace: d.cfg.Health.OutageGrace, SeedMaxAge: d.cfg.Seeds.MaxAge, Audit: d.cfg.Audit.Dir != "",
		},
	})
	options := []httpapi.Option{httpapi.WithPage(page)}
	if a, ok := d.http.Addr().(*net.TCPAddr); ok && a.IP.IsLoopback() {
		options = append(options, httpapi.Local())
	}
	return options
}

// What follows is told to the metrics and the history. Where more has to be done,
// the observer's method is in serve.go.

// HealthChanged implements health.Observer.
func (o *observer) HealthChanged(from, to, reason string) {
	o.Metrics.HealthChanged(from, to, reason)
	o.history.HealthChanged(from, to, reason)
}

// RingLooked implements rotation.Observer.
func (o *observer) RingLooked(err error) {
	o.Metrics.RingLooked(err)
	o.history.RingLooked(err)
}

// SetPolicy implements rotation.Observer.
func (o *observer) SetPolicy(violations []keypolicy.Violation) {
	o.Metrics.SetPolicy(violations)
	o.history.SetPolicy(violations)
}

// Rotated implements rotation.Observer.
func (o *observer) Rotated(err error) {
	o.Metrics.Rotated(err)
	o.history.Rotated(err)
}

// Renewed implements rotation.Observer.
func (o *observer) Renewed(err error) {
	o.Metrics.Renewed(err)
	o.history.Renewed(err)
}

// HSMWorkerStartFailed implements hsm.Observer.
func (o *observer) HSMWorkerStartFailed(reason string) {
	o.Metrics.HSMWorkerStartFailed(reason)
	o.history.HSMWorkerStartFailed(reason)
}

// HSMLatched implements hsm.Observer.
func (o *observer) HSMLatched(latched bool) {
	o.Metrics.HSMLatched(latched)
	o.history.HSMLatched(latched)
}

// AuditFailing implements audit.Observer.
func (o *observer) AuditFailing(part string, failing bool) {
	o.Metrics.AuditFailing(part, failing)
	o.history.AuditFailing(part, failing)
}
