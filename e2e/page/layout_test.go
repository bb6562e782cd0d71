package page

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLayout looks at the pages that internal/statuspage keeps for its tests: states
// with an hour of numbers behind them, which no test can wait for.
func TestLayout(t *testing.T) {
	const dir = "../../internal/statuspage/"
	style, err := os.ReadFile(dir + "page.css")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(dir + "testdata/*.html")
	if err != nil || len(files) < 6 {
		t.Fatalf("%d pages: %v", len(files), err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		golden, err := os.ReadFile(dir + "testdata" + r.URL.Path)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte(strings.Replace(string(golden), "<style></style>", "<style>"+string(style)+"</style>", 1)))
	}))
	defer server.Close()
	chromium := browser(t)
	for _, file := range files {
		for _, l := range looks() {
			visit(t, chromium, server.URL+"/"+filepath.Base(file), strings.TrimSuffix(filepath.Base(file), ".html"), l)
		}
	}
}
