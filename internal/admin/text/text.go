// Package text makes lines that are fit to print of what servers, nodes and tokens say.
package text

import (
	"strings"
	"unicode"
)

// Line returns s as one line of printable characters. A terminal would act on others
// instead of showing them.
func Line(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, strings.Join(strings.Fields(s), " "))
}

// Of is the line of an error.
func Of(err error) string { return Line(err.Error()) }

// maxShort bounds a short line, in bytes.
const maxShort = 500

// Short is a Line that is cut after 500 bytes: a server behind an API server may have a
// lot to say.
func Short(s string) string { return Line(strings.ToValidUTF8(s[:min(len(s), maxShort)], "")) }
