package version

import (
	"crypto/fips140"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFrom(t *testing.T) {
	stamp := func(modified string) []debug.BuildSetting {
		return []debug.BuildSetting{
			{Key: "vcs", Value: "git"},
			{Key: "vcs.revision", Value: "0123abcd"},
			{Key: "vcs.time", Value: "2026-11-02T03:04:05Z"},
			{Key: "vcs.modified", Value: modified},
		}
	}
	tests := []struct {
		name  string
		build *debug.BuildInfo
		want  Info
		line  string
	}{
		{
			"no build information", nil,
			Info{Version: "unknown", Revision: "unknown", Time: "unknown", Go: "unknown"},
			"unknown (commit unknown of unknown, unknown)",
		},
		{
			"a release", &debug.BuildInfo{GoVersion: "go1.26.0", Main: debug.Module{Version: "v1.2.3"}, Settings: stamp("false")},
			Info{Version: "v1.2.3", Revision: "0123abcd", Time: "2026-11-02T03:04:05Z", Go: "go1.26.0"},
			"v1.2.3 (commit 0123abcd of 2026-11-02T03:04:05Z, go1.26.0)",
		},
		{
			"a checkout with changes", &debug.BuildInfo{GoVersion: "go1.26.0", Main: debug.Module{Version: "(devel)"}, Settings: stamp("true")},
			Info{Version: "devel", Revision: "0123abcd-dirty", Time: "2026-11-02T03:04:05Z", Go: "go1.26.0"},
			"devel (commit 0123abcd-dirty of 2026-11-02T03:04:05Z, go1.26.0)",
		},
		{
			"without version control", &debug.BuildInfo{GoVersion: "go1.26.0", Main: debug.Module{Version: "(devel)"}},
			Info{Version: "devel", Revision: "unknown", Time: "unknown", Go: "go1.26.0"},
			"devel (commit unknown of unknown, go1.26.0)",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := from(tt.build, tt.build != nil)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("from (-want +got):\n%s", diff)
			}
			if got.String() != tt.line {
				t.Errorf("String = %q, want %q", got.String(), tt.line)
			}
		})
	}
}

func TestFIPS140(t *testing.T) {
	for want, got := range map[string]string{
		"":            mode(false, false, "latest"),
		"v1.0.0":      mode(true, false, "v1.0.0"),
		"v1.0.0 only": mode(true, true, "v1.0.0"),
	} {
		if got != want {
			t.Errorf("mode = %q, want %q", got, want)
		}
	}
	info := Info{Version: "v1.2.3", Revision: "0123abcd", Time: "2026-11-02T03:04:05Z", Go: "go1.26.0", FIPS140: "v1.0.0"}
	const want = "v1.2.3 (commit 0123abcd of 2026-11-02T03:04:05Z, go1.26.0, FIPS 140-3 module v1.0.0)"
	if info.String() != want {
		t.Errorf("String = %q, want %q", info.String(), want)
	}
	if read := Read(); (read.FIPS140 != "") != fips140.Enabled() {
		t.Errorf("FIPS140 = %q, and the mode is on: %v", read.FIPS140, fips140.Enabled())
	}
}

func TestRead(t *testing.T) {
	if got := Read(); got.Go != runtime.Version() || got.Version == "" {
		t.Errorf("Read = %+v, want the toolchain %s and some version", got, runtime.Version())
	}
}
