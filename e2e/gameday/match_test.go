package gameday

import (
	"fmt"
	"maps"
	"regexp"
	"strings"
)

// values are what stands, in this run, for an example that a page shows: a key's id
// for the id in the page. They hold for the rest of the page.
type values map[string]string

// kinds are what differs from run to run in what a command prints. A kind that is kept
// must be the same wherever the page shows the same, and goes into later commands.
var kinds = []struct {
	example *regexp.Regexp
	// actual matches what may stand in its place; empty: made by loose.
	actual string
	kept   bool
}{
	{regexp.MustCompile(`^…`), `.*`, false},
	{regexp.MustCompile(`^[0-9a-f]{64}\b`), `[0-9a-f]{64}`, true},     // SHA-256
	{regexp.MustCompile(`^01[0-9a-f]{32}\b`), `01[0-9a-f]{32}`, true}, // CKA_ID
	{regexp.MustCompile(`^[0-9a-f]{16}\b`), `[0-9a-f]{16}`, false},    // a token's serial
	{regexp.MustCompile(`^[0-9a-f]{6}\b`), `[0-9a-f]{6}`, true},       // a check value
	{regexp.MustCompile(`^4711\b`), `[1-9]\d*`, true},                 // a number
	{regexp.MustCompile(`^20\d\d-\d\d-\d\dT[0-9:.]+Z`), `20\d\d-\d\d-\d\dT[0-9:.]+Z`, false},
	{regexp.MustCompile(`^20\d\d-\d\d-\d\d\b`), `20\d\d-\d\d-\d\d`, false},
	{regexp.MustCompile(`^\d+(\.\d+)?( ?s|ms|µs)\b`), "", false}, // a time of the same size
}

var (
	wordStart = regexp.MustCompile(`^[0-9A-Za-z]+`)
	blanks    = regexp.MustCompile(`^[ \t]+`)
	timeUnit  = regexp.MustCompile(`( ?s|ms|µs)$`)
	// units are those that a unit stands for: seconds are slow, less is not.
	units = map[string]string{" s": " s", "s": "s", "ms": "(?:ms|µs)", "µs": "(?:ms|µs)"}
)

// match tells whether a command printed what the page shows, and notes the values that
// it has met first. Blanks may be more or fewer; a line … stands for any lines.
func (v values) match(want, got string) error {
	var b strings.Builder
	var examples []string
	for line := range strings.Lines(want) {
		line = strings.TrimSpace(line)
		if line == "…" {
			b.WriteString(`(?:.*\n)*?`)
			continue
		}
		b.WriteString(`[ \t]*`)
		examples = append(examples, pattern(&b, line)...)
		b.WriteString(`[ \t]*\n`)
	}
	re, err := regexp.Compile(`\A` + b.String() + `\z`)
	if err != nil {
		return err
	}
	if got != "" && !strings.HasSuffix(got, "\n") {
		got += "\n"
	}
	found := re.FindStringSubmatch(got)
	if found == nil {
		return fmt.Errorf("want\n%sgot\n%s", indented(want), indented(got))
	}
	met := values{}
	for i, example := range examples {
		known, ok := v[example]
		if !ok {
			known, ok = met[example]
		}
		if ok && known != found[i+1] {
			return fmt.Errorf("%s is %s here and was %s before, in\n%s", example, found[i+1], known, indented(got))
		}
		met[example] = found[i+1]
	}
	maps.Copy(v, met)
	return nil
}

// pattern writes the expression for a line, and returns its kept examples in the order
// of their groups.
func pattern(b *strings.Builder, line string) (examples []string) {
	for line != "" {
		if m := blanks.FindString(line); m != "" {
			b.WriteString(`[ \t]+`)
			line = line[len(m):]
			continue
		}
		if example, actual, kept := kindOf(line); example != "" {
			if kept {
				examples = append(examples, example)
				actual = "(" + actual + ")"
			}
			b.WriteString(actual)
			line = line[len(example):]
			continue
		}
		// A word as a whole: what looks like a kind inside of one is none.
		m := wordStart.FindString(line)
		if m == "" {
			m = string([]rune(line)[:1])
		}
		b.WriteString(regexp.QuoteMeta(m))
		line = line[len(m):]
	}
	return examples
}

func kindOf(line string) (example, actual string, kept bool) {
	for _, k := range kinds {
		if m := k.example.FindString(line); m != "" {
			actual := k.actual
			if actual == "" {
				actual = `\d+(?:\.\d+)?` + units[timeUnit.FindString(m)]
			}
			return m, actual, k.kept
		}
	}
	return "", "", false
}

// fill puts the values into a command. What the page has not shown by then is left as it
// is and named.
func (v values) fill(command string) (filled string, unknown []string) {
	var b strings.Builder
	for command != "" {
		if example, _, kept := kindOf(command); kept {
			value, ok := v[example]
			if !ok {
				value, unknown = example, append(unknown, example)
			}
			b.WriteString(value)
			command = command[len(example):]
			continue
		}
		m := wordStart.FindString(command)
		if m == "" {
			m = string([]rune(command)[:1])
		}
		b.WriteString(m)
		command = command[len(m):]
	}
	return b.String(), unknown
}

func indented(s string) string {
	return "  | " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n  | ") + "\n"
}
