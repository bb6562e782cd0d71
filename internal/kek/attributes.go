package kek

import "strings"

// Summary names what an operator should know of a key, the unsafe in capitals.
func (a Attributes) Summary() string {
	var words []string
	for _, f := range []struct {
		value   *bool
		yes, no string
	}{
		{a.Encrypt, "encrypt", ""},
		{a.Decrypt, "decrypt", ""},
		{a.Sensitive, "sensitive", "NOT-SENSITIVE"},
		{a.Extractable, "EXTRACTABLE", "non-extractable"},
		{a.NeverExtractable, "never-extractable", ""},
		{a.Local, "local", ""},
	} {
		switch {
		case f.value == nil:
		case *f.value && f.yes != "":
			words = append(words, f.yes)
		case !*f.value && f.no != "":
			words = append(words, f.no)
		}
	}
	return strings.Join(words, ",")
}
