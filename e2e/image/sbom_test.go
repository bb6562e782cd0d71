package image

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSBOM: the bill of material names every module that the binaries are of and
// every package of Debian's, in the versions that are in the image.
func TestSBOM(t *testing.T) {
	t.Parallel()
	kekd, softHSM := names(t)
	for _, image := range []string{kekd, softHSM} {
		name, version, _ := strings.Cut(filepath.Base(image), ":")
		path := filepath.Join("..", "..", "dist", name+"-"+version+".spdx.json")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("%v: run `make sbom`", err)
		}
		var bill struct {
			SPDXVersion string
			Packages    []struct{ Name, VersionInfo string }
		}
		if err := json.Unmarshal(text, &bill); err != nil {
			t.Fatalf("read %s: %v", path, err)
		}
		if !strings.HasPrefix(bill.SPDXVersion, "SPDX-2.") {
			t.Errorf("%s has the version %q, want SPDX-2", path, bill.SPDXVersion)
		}
		listed := map[string]bool{}
		for _, p := range bill.Packages {
			listed[p.Name+" "+p.VersionInfo] = true
		}
		want := contained(t, image)
		if len(want) < 50 {
			t.Errorf("%s is made of %d modules and packages, want more", image, len(want))
		}
		for _, entry := range want {
			if !listed[entry] {
				t.Errorf("%s does not list %s", path, entry)
			}
		}
	}
}

// contained lists the modules and packages of an image by name and version, as the
// binaries and the packages' own entries tell them.
func contained(t *testing.T, image string) []string {
	t.Helper()
	var list []string
	for name, f := range files(t, image) {
		switch dir, base := filepath.Split(name); {
		case dir == "usr/local/bin/":
			info, err := buildinfo.Read(bytes.NewReader(f.content))
			if err != nil {
				t.Fatalf("read how %s was built: %v", name, err)
			}
			for _, module := range info.Deps {
				list = append(list, module.Path+" "+module.Version)
			}
		case dir == "var/lib/dpkg/status.d/" && !strings.HasSuffix(base, ".md5sums"):
			for line := range strings.Lines(string(f.content)) {
				if version, ok := strings.CutPrefix(line, "Version: "); ok {
					list = append(list, base+" "+strings.TrimSpace(version))
				}
			}
		}
	}
	return list
}
