// Package version tells which build this is, from what the Go toolchain stamps
// into every binary. There are no linker flags to forget.
package version

import (
	"crypto/fips140"
	"runtime/debug"
	"strings"
)

// unknown stands for what the build does not tell.
const unknown = "unknown"

// Info is what is known about a build. No field is empty but FIPS140.
type Info struct {
	// Version is the module's version, "devel" for a build from a checkout without
	// a tag.
	Version string `json:"version"`
	// Revision is the commit, with "-dirty" when the checkout had changes.
	Revision string `json:"revision"`
	// Time is the commit's time, RFC 3339.
	Time string `json:"time"`
	// Go is the toolchain's version.
	Go string `json:"go"`
	// FIPS140 is the version of the Go Cryptographic Module where this process runs
	// it in FIPS 140-3 mode, "latest" for the toolchain's own, which is not validated;
	// with " only" behind it where whatever is not approved fails. Empty otherwise.
	FIPS140 string `json:"fips140,omitempty"`
}

// Read returns the Info of the running binary.
func Read() Info {
	info := from(debug.ReadBuildInfo())
	info.FIPS140 = mode(fips140.Enabled(), fips140.Enforced(), fips140.Version())
	return info
}

// mode spells FIPS140.
func mode(enabled, enforced bool, module string) string {
	switch {
	case enforced:
		return module + " only"
	case enabled:
		return module
	}
	return ""
}

// String returns the Info in one line, for kekd version.
func (i Info) String() string {
	line := i.Version + " (commit " + i.Revision + " of " + i.Time + ", " + i.Go
	if i.FIPS140 != "" {
		line += ", FIPS 140-3 module " + i.FIPS140
	}
	return line + ")"
}

func from(build *debug.BuildInfo, ok bool) Info {
	info := Info{Version: unknown, Revision: unknown, Time: unknown, Go: unknown}
	if !ok {
		return info
	}
	if build.GoVersion != "" {
		info.Go = build.GoVersion
	}
	if v := build.Main.Version; v != "" {
		info.Version = strings.Trim(v, "()")
	}
	settings := map[string]string{}
	for _, s := range build.Settings {
		settings[s.Key] = s.Value
	}
	if v := settings["vcs.revision"]; v != "" {
		info.Revision = v
		if settings["vcs.modified"] == "true" {
			info.Revision += "-dirty"
		}
	}
	if v := settings["vcs.time"]; v != "" {
		info.Time = v
	}
	return info
}
