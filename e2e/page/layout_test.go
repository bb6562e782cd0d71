package page

import (
	"bytes"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// inDocs are the pictures in docs/status-page.md, and how much of each page is on them.
var inDocs = map[string]int{"ready-1280-light": 1330, "coasting-1280-dark": 590, "revoked-360-light": 900}

// updatePicture writes the upper part of a picture as a small file.
func updatePicture(t *testing.T, path string, picture []byte, height int) {
	t.Helper()
	whole, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		t.Fatal(err)
	}
	box := image.Rect(0, 0, whole.Bounds().Dx(), min(height, whole.Bounds().Dy()))
	upper := image.NewPaletted(box, frequent(whole, box))
	draw.Draw(upper, box, whole, image.Point{}, draw.Src)
	var small bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	if err := encoder.Encode(&small, upper); err != nil {
		t.Fatal(err)
	}
	if small.Len() >= 150_000 {
		t.Errorf("%s would have %d bytes, want less than 150,000", path, small.Len())
	}
	if err := os.WriteFile(path, small.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// frequent are the 256 colours that a picture has most of. The page is made of few, and
// of what lies between them at the edges of letters.
func frequent(of image.Image, box image.Rectangle) color.Palette {
	count := map[color.Color]int{}
	for y := range box.Dy() {
		for x := range box.Dx() {
			count[of.At(x, y)]++
		}
	}
	all := slices.SortedFunc(maps.Keys(count), func(a, b color.Color) int { return count[b] - count[a] })
	return color.Palette(all[:min(256, len(all))])
}

// TestLayout looks at the pages that internal/statuspage keeps for its tests: states
// with an hour of numbers behind them, which no test can wait for. With
// KEKD_UPDATE_DOCS=1 it writes the pictures of docs/status-page.md.
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
			name := strings.TrimSuffix(filepath.Base(file), ".html")
			s := visit(t, chromium, server.URL+"/"+filepath.Base(file), name, l)
			if height := inDocs[name+"-"+l.String()]; height > 0 && os.Getenv("KEKD_UPDATE_DOCS") == "1" {
				updatePicture(t, "../../docs/status-page/"+name+"-"+l.String()+".png", s.picture, height)
			}
		}
	}
}
