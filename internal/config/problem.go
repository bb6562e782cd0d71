package config

import (
	"fmt"
	"strings"
)

// Problem is one thing wrong with a configuration.
type Problem struct {
	// Field is the path of the field, as hsm.token.label; empty for the file as a whole.
	Field string
	// Line is where the file sets it, from 1; 0 where it does not.
	Line int
	// Text says what is wrong, with the value, in one line.
	Text string
	// Remedy says what to do about it; may be empty.
	Remedy string
}

// String returns the problem in one line: field, line, text; remedy.
func (p Problem) String() string {
	var b strings.Builder
	if p.Field != "" {
		b.WriteString(p.Field + ": ")
	}
	b.WriteString(p.Text)
	if p.Line > 0 {
		fmt.Fprintf(&b, " (line %d)", p.Line)
	}
	if p.Remedy != "" {
		b.WriteString("; " + p.Remedy)
	}
	return b.String()
}

// Problems is the error that Load, Parse and Validate return: all that is wrong
// with a configuration, in the order of the file, then of the Config type.
type Problems []Problem

// Error returns one line for each problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// err returns ps as an error, nil if there are none.
func (ps Problems) err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}

// covers reports whether one of ps is about field, about a section around it or
// about another element of the same list.
func (ps Problems) covers(field string) bool {
	list, _, _ := strings.Cut(field, "[")
	for _, p := range ps {
		other, _, _ := strings.Cut(p.Field, "[")
		if other == list || strings.HasPrefix(field, p.Field+".") {
			return true
		}
	}
	return false
}
