package gameday

import (
	"slices"
	"strings"
	"testing"
)

const (
	idA = "01000000006b077bfdaefd4c4603d04f9c"
	idB = "01000000006b07ffffaaaaaaaaaaaaaaaa"
)

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		name, want, got string
		ok              bool
	}{
		{"the same", "health  ready\n", "health ready\n", true},
		{"another word", "health  ready\n", "health unready\n", false},
		{"a line more", "health  ready\n", "health ready\nmore\n", false},
		{"a line more behind …", "health  ready\n…\n", "health ready\nmore\n", true},
		{"… may be nothing", "…\nhealth  ready\n…\n", "health ready\n", true},
		{"a line is missing", "health  ready\nmode  seeded\n", "health ready\n", false},
		{"… within a line", "error: … CKR_X\n", "error: a b c: CKR_X\n", true},
		{"a time", "since 2026-11-26T00:23:35Z\n", "since 2031-01-02T03:04:05Z\n", true},
		{"no time", "since 2026-11-26T00:23:35Z\n", "since yesterday\n", false},
		{"a duration", "in 360ms\n", "in 12.5ms\n", true},
		{"a duration of another size", "in 360ms\n", "in 3.6s\n", false},
		{"seconds", "after 1.6 s\n", "after 22.91 s\n", true},
		{"a key", idA + " primary\n", idB + " primary\n", true},
		{"two keys", idA + " " + idA + "\n", idA + " " + idB + "\n", false},
		{"a number is itself", "4 sessions\n", "2 sessions\n", false},
		{"nothing was printed", "ok\n", "", false},
	} {
		if err := (values{}).match(c.want, c.got); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestValuesAreKept(t *testing.T) {
	v := values{}
	if err := v.match("key "+idA+"/08b1eb\n", "key "+idB+"/ffffff\n"); err != nil {
		t.Fatal(err)
	}
	got, unknown := v.fill("kekctl key enable " + idA + " && echo k8s-kek/" + idA + "/08b1eb 4711")
	if want := "kekctl key enable " + idB + " && echo k8s-kek/" + idB + "/ffffff 4711"; got != want || !slices.Equal(unknown, []string{"4711"}) {
		t.Errorf("%s, unknown %v", got, unknown)
	}
	if err := v.match(idA+"\n", idA+"\n"); err == nil {
		t.Error("another key passes for the one that was shown")
	}
	if err := (values{}).match("x "+idA+"\n", "y "+idB+"\n"); err == nil {
		t.Error("no match was seen")
	}
}

func TestParsePage(t *testing.T) {
	const good = "# x\n## How it shows\n## How to confirm\n```console\n$ a\n1\n$ b\n```\n## What to do\n1. do:\n\n   ```console\n   $ c \\\n   > d\n   ```\n<!-- game day: mend -->\n```promql\nup\n```\n## How to know that it is over\n```console\n$ e\n2\n```\n"
	p, err := parsePage("x", good)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range p.steps {
		got = append(got, s.command+s.act+":"+s.want)
	}
	if want := []string{"a:1\n", "b:", "c \\\nd:", "mend:", "e:2\n"}; !slices.Equal(got, want) || p.unrun["promql"] != 1 {
		t.Errorf("steps %q, not run %v", got, p.unrun)
	}
	for what, bad := range map[string]string{
		"a section is missing":  strings.Replace(good, "## What to do\n", "", 1),
		"an indented block":     strings.Replace(good, "1. do", "    kekctl status", 1),
		"output before command": strings.Replace(good, "$ a\n", "", 1),
		"nothing is shown":      strings.Replace(good, "$ e\n2\n", "$ e\n", 1),
		"a block without end":   strings.TrimSuffix(good, "```\n"),
	} {
		if _, err := parsePage("x", bad); err == nil {
			t.Errorf("%s, and the page is taken", what)
		}
	}
}
