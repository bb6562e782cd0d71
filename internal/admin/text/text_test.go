package text

import (
	"strings"
	"testing"
)

func TestLine(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "",
		"two\n\tlines\r\n":       "two lines",
		"\x1b[31mred\x07 \u202e": "\ufffd[31mred\ufffd \ufffd",
		"naïve – ok":             "naïve – ok",
	} {
		if got := Line(in); got != want {
			t.Errorf("Line(%q) = %q, want %q", in, got, want)
		}
	}
	if got := Short(strings.Repeat("a", maxShort-1) + "ä"); got != strings.Repeat("a", maxShort-1) {
		t.Errorf("Short cuts to %d bytes: …%q", len(got), got[len(got)-3:])
	}
}
