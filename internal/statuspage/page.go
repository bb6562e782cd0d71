package statuspage

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // of the template and the style sheet
	"encoding/base64"
	"html/template"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"kekd/internal/history"
	"kekd/internal/httpapi"
)

// freshFor is how long a page that was rendered is handed out.
const freshFor = time.Second

//go:embed page.html.tmpl
var pageTemplate string

//go:embed page.css
var styleSheet string

// Config is what a Page needs. All fields but Node are required.
type Config struct {
	// Status returns what /status tells. It is called concurrently with everything.
	Status func() httpapi.Status
	// History returns what has happened; the error is why numbers are missing.
	History func() (history.Reading, error)
	// Facts do not change while kekd runs.
	Facts Facts
	Clock func() time.Time
	// Logger hears of what can't be rendered, which would be a bug.
	Logger *zap.Logger
}

// Facts are how kekd was started and configured, as far as the page tells.
type Facts struct {
	// Node is the host's name; empty if it is not known.
	Node    string
	Started time.Time
	// Ring is the label of the ring.
	Ring string
	// Refresh is the time between two looks at the ring.
	Refresh time.Duration
	// Grace is how long kekd coasts at most.
	Grace time.Duration
	// SeedMaxAge is how long a seed encrypts at most.
	SeedMaxAge time.Duration
	// Audit is whether there is an audit trail.
	Audit bool
}

// Page serves the page. It is safe for concurrent use.
type Page struct {
	cfg      Config
	template *template.Template
	style    template.CSS
	policy   string // Content-Security-Policy

	// mu is held while a page is rendered, so that one is at a time.
	mu sync.Mutex
	// rendered are the last pages, by their reload. Guarded by mu.
	rendered map[string]rendered
}

type rendered struct {
	at   time.Time
	body []byte
}

// reloads are the values of ?refresh that are heard, in seconds; empty is never.
var reloads = []string{"", "10", "60"}

// New returns the page.
func New(cfg Config) *Page {
	sum := sha256.Sum256([]byte(styleSheet))
	return &Page{
		cfg:      cfg,
		template: template.Must(template.New("page").Parse(pageTemplate)),
		style:    template.CSS(styleSheet), //nolint:gosec // our own, embedded
		policy: "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; img-src data:; " +
			"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		rendered: make(map[string]rendered, len(reloads)),
	}
}

// ServeHTTP implements http.Handler. It answers 200 in every state of the health,
// which is for people to read; /readyz is for machines.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := p.render(r.URL.Query().Get("refresh"))
	if err != nil {
		p.cfg.Logger.Error("the status page cannot be rendered", zap.Error(err))
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", p.policy)
	h.Set("X-Frame-Options", "DENY") // for browsers that know no frame-ancestors
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	_, _ = w.Write(body) //nolint:gosec // html/template has escaped it; a client may have gone away
}

// render returns the page, or the one of a moment ago.
func (p *Page) render(reload string) ([]byte, error) {
	known := false
	for _, r := range reloads {
		known = known || r == reload
	}
	if !known {
		reload = ""
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if last, ok := p.rendered[reload]; ok {
		if age := p.cfg.Clock().Sub(last.at); age >= 0 && age < freshFor {
			return last.body, nil
		}
	}
	status := p.cfg.Status()
	reading, err := p.cfg.History()
	v := newView(status, reading, err, p.cfg.Facts)
	v.Style, v.Reload = p.style, reload
	var b bytes.Buffer
	if err := p.template.Execute(&b, v); err != nil {
		return nil, err
	}
	p.rendered[reload] = rendered{p.cfg.Clock(), b.Bytes()}
	return b.Bytes(), nil
}
