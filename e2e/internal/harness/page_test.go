package harness

import "testing"

func TestBetween(t *testing.T) {
	const begin, end = "<!-- x:begin -->\n", "<!-- x:end -->\n"
	for _, tc := range []struct{ name, text, want string }{
		{"with marks", "a\n" + begin + "old\n" + end + "b\n", "a\n" + begin + "new\n" + end + "b\n"},
		{"nothing between them", begin + end, begin + "new\n" + end},
		{"another's marks", "<!-- y:begin -->\n<!-- y:end -->\n", ""},
		{"the end is missing", begin + "old\n", ""},
		{"the wrong way round", end + begin, ""},
	} {
		got, err := between(tc.text, "x", "\nnew\n\n")
		if got != tc.want || (err != nil) != (tc.want == "") {
			t.Errorf("%s: %q and the error %v, want %q", tc.name, got, err, tc.want)
		}
	}
}
