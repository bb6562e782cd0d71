package statuspage

import (
	"bytes"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"kekd/internal/history"
	"kekd/internal/httpapi"
)

var update = flag.Bool("update", false, "write testdata/*.html anew")

// page makes the page of a story.
func page(t *testing.T, s story) *Page {
	t.Helper()
	return New(Config{
		Status:  func() httpapi.Status { return s.status },
		History: func() (history.Reading, error) { return s.reading, s.broken },
		Facts:   s.facts, Clock: func() time.Time { return noon }, Logger: zap.NewNop(),
	})
}

func get(t *testing.T, h http.Handler, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody))
	if w.Code != http.StatusOK {
		t.Fatalf("GET %s = %d %s", path, w.Code, w.Body)
	}
	return w
}

// TestGolden holds the page of each state against what was looked at once.
func TestGolden(t *testing.T) {
	for name, s := range stories() {
		t.Run(name, func(t *testing.T) {
			got := get(t, page(t, s), "/").Body.Bytes()
			// The style sheet is in page.css, and not six times in the test data.
			got = bytes.Replace(got, []byte(styleSheet), nil, 1)
			path := filepath.Join("testdata", name+".html")
			if *update {
				if err := os.WriteFile(path, got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("the page differs from %s (-want +got; -update writes it):\n%s", path, diff)
			}
		})
	}
}
