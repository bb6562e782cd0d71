package httpapi

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// fakePage stands for the page.
type fakePage struct{}

func (fakePage) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, "the page")
}

func TestWhoGetsThePage(t *testing.T) {
	h := NewHandler(source{}, registry(), zap.NewNop(), WithPage(fakePage{}))
	for accept, want := range map[string]string{
		"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": "the page", // Firefox
		"text/plain, Text/HTML; q=0.1":                                    "the page",
		"*/*":                                                             index, // curl
		"":                                                                index,
		"text/*":                                                          index,
		"text/html;q=0":                                                   index,
		"text/html;q=0.000, */*":                                          index,
		"application/json":                                                index,
		"text/html;;;=":                                                   index,
		"application/openmetrics-text;version=1.0.0": index, // Prometheus
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
		if accept != "" {
			r.Header.Set("Accept", accept)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusOK || w.Body.String() != want || w.Header().Get("Vary") != "Accept" {
			t.Errorf("Accept: %q gets %d %.20q (Vary %q), want %.20q", accept, w.Code, w.Body, w.Header().Get("Vary"), want)
		}
	}
	for _, path := range []string{"/index.html", "/ui", "/favicon.ico", "//"} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody)
		r.Header.Set("Accept", "text/html")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if strings.Contains(w.Body.String(), "the page") {
			t.Errorf("%s gets the page", path)
		}
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", http.NoBody)
	r.Header.Set("Accept", "text/html")
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, r); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST / = %d, want 405", w.Code)
	}
}

// A browser must not be made to read from loopback for a web site whose name resolves
// to it.
func TestHostsOnLoopback(t *testing.T) {
	hosts := map[string]int{
		"127.0.0.1:8780": 200, "127.0.0.1": 200, "[::1]:8780": 200, "[::1]": 200, "10.1.2.3:80": 200, "": 200,
		"localhost:8780": 200, "LOCALHOST": 200, "localhost.:8780": 200, "kekd.localhost": 200, "cp-1": 200, "cp-1:8780": 200,
		"evil.example:8780": 421, "evil.example": 421, "EVIL.example.:8780": 421, "127.0.0.1.evil.example": 421, "localhost.evil.example:8780": 421, "1.2.3.4.5": 421, "evil.example:80:80": 421,
	}
	local := NewHandler(source{}, registry(), zap.NewNop(), WithPage(fakePage{}), Local())
	remote := NewHandler(source{}, registry(), zap.NewNop(), WithPage(fakePage{}))
	for host, want := range hosts {
		for path, code := range map[string]int{"GET /": want, "GET /status": want, "POST /refresh": want, "GET /livez": 200, "GET /metrics": 200} {
			method, path, _ := strings.Cut(path, " ")
			for _, h := range []struct {
				name string
				http.Handler
				want int
			}{{"loopback", local, code}, {"another address", remote, 200}} {
				r := httptest.NewRequestWithContext(t.Context(), method, path, http.NoBody)
				r.Host = host
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				if w.Code != h.want {
					t.Errorf("on %s %s %s for host %q = %d, want %d", h.name, method, path, host, w.Code, h.want)
				}
			}
		}
	}
}
