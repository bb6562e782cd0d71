package plugin

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// What a client chose is cut between two characters.
func TestClip(t *testing.T) {
	for _, tc := range []struct {
		name, s, want string
		n             int
	}{
		{"short", "abc", "abc", 3},
		{"long", "abcd", "abc…", 3},
		{"in a character", "abä", "ab…", 3},
		{"behind a character", "aäb", "aä…", 3},
		{"in a long character", "ab🔑", "ab…", 5},
		{"nothing left", "🔑", "…", 3},
	} {
		if got := clip(tc.s, tc.n); got != tc.want {
			t.Errorf("%s: clip(%q, %d) = %q, want %q", tc.name, tc.s, tc.n, got, tc.want)
		}
	}
	long := strings.Repeat("ä", maxUIDSize)
	for n := range maxUIDSize {
		if got := clip(long, n); !utf8.ValidString(got) {
			t.Errorf("clip to %d bytes makes %q, which is no UTF-8", n, got)
		}
	}
}
