package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"kekd/internal/health"
)

// Source answers from memory. Its methods are called concurrently.
type Source interface {
	// Report returns the health.
	Report() health.Report
	// Status returns everything.
	Status() Status
	// Refresh has the key ring looked at now, and returns when that is done or ctx
	// ends. What came of it shows in Status.
	Refresh(ctx context.Context)
}

const (
	// maxScrapes bounds the scrapes of /metrics at once, as each takes memory.
	maxScrapes    = 4
	scrapeTimeout = 5 * time.Second
	// refreshTimeout is how long /refresh waits for the HSM.
	refreshTimeout = 2 * time.Second
)

// index is what / says to programs, and to all where there is no page.
const index = `kekd
/         for browsers: how kekd is, in one page
/livez    is the process alive
/readyz   may Kubernetes write
/status   health, key ring, seeds, token, version (JSON)
/refresh  POST: look at the key ring now, then as /status
/metrics  for Prometheus
`

// Option changes what NewHandler returns.
type Option func(*options)

type options struct {
	page  http.Handler // nil for none
	local bool
}

// WithPage has a page for people at /. Whoever does not ask for text/html by name
// gets the list of paths there still.
func WithPage(page http.Handler) Option { return func(o *options) { o.page = page } }

// Local refuses requests whose Host is the name of somebody's web site, see the
// package's documentation. It is for an endpoint on loopback.
func Local() Option { return func(o *options) { o.local = true } }

// NewHandler returns the handler of all paths.
func NewHandler(source Source, gatherer prometheus.Gatherer, log *zap.Logger, opts ...Option) http.Handler {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	guard := func(next http.HandlerFunc) http.HandlerFunc { return next }
	if o.local {
		guard = localOnly
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", guard(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Vary", "Accept")
		if o.page != nil && wantsHTML(r) {
			o.page.ServeHTTP(w, r)
			return
		}
		text(w, http.StatusOK, index)
	}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		text(w, http.StatusOK, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		ready(w, source.Report())
	})
	mux.HandleFunc("GET /status", guard(func(w http.ResponseWriter, _ *http.Request) {
		status(w, source.Status(), log)
	}))
	mux.HandleFunc("POST /refresh", guard(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), refreshTimeout)
		defer cancel()
		source.Refresh(ctx)
		status(w, source.Status(), log)
	}))
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{
		ErrorLog:            zap.NewStdLog(log),
		MaxRequestsInFlight: maxScrapes,
		EnableOpenMetrics:   true, // which has exemplars; the plain text has none
		Timeout:             scrapeTimeout,
	}))
	return withHeaders(mux)
}

// withHeaders sets what every answer carries.
func withHeaders(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// ready says whether kube-apiserver gets what it needs, and why not.
func ready(w http.ResponseWriter, r health.Report) {
	line := string(r.State)
	if r.Reason != "" {
		line += ": " + r.Reason
	}
	code := http.StatusOK
	if !r.State.Serves() {
		code = http.StatusServiceUnavailable
	}
	text(w, code, line+"\n")
}

func status(w http.ResponseWriter, s Status, log *zap.Logger) {
	body, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		log.Error("status cannot be written", zap.Error(err))
		text(w, http.StatusInternalServerError, "internal error\n")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n')) // a client that went away
}

func text(w http.ResponseWriter, code int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(body)) // a client that went away
}
