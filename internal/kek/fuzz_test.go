package kek_test

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"kekd/internal/kek"
)

// Any bytes are an id of kekd's own or of another tool, never something between:
// an own one is what NewID makes of its activation and its tail.
func FuzzCKAID(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte("\x01"))
	f.Add([]byte("\x01\x00\x00\x00\x00\x6a\x0b\x0c\x0dabcdefgh"))
	f.Add([]byte("\x01\x00\x00\x00\x3a\xff\xf4\x41\x7fabcdefgh"))
	f.Add([]byte("\x01\x00\x00\x00\x3a\xff\xf4\x41\x80abcdefgh"))
	f.Add([]byte("\x01\xff\xff\xff\xff\xff\xff\xff\xffabcdefgh"))
	f.Add([]byte("\x02\x00\x00\x00\x00\x6a\x0b\x0c\x0dabcdefgh"))
	f.Fuzz(func(t *testing.T, b []byte) {
		id := kek.ID(b)
		at, own := id.Activation()
		if !own {
			if !at.IsZero() {
				t.Errorf("another tool's id %s activates at %v", id, at)
			}
			if zero, err := kek.NewID(time.Unix(0, 0), bytes.NewReader(make([]byte, 8))); err != nil || id.Compare(zero) >= 0 {
				t.Errorf("another tool's id %s is not older than kekd's oldest, %v", id, err)
			}
		} else {
			again, err := kek.NewID(at, bytes.NewReader(b[9:]))
			if err != nil || again != id {
				t.Errorf("%s activates at %v, of which NewID makes %s, %v", id, at, again, err)
			}
			if text, err := at.MarshalJSON(); err != nil {
				t.Errorf("%s activates at %v, which is no JSON: %s, %v", id, at, text, err)
			}
		}
		back, err := kek.ParseID(id.String())
		if fits := len(b) >= 1 && len(b) <= kek.MaxIDSize; fits != (err == nil) || fits && back != id {
			t.Errorf("%d bytes, spelled %s, read as %s, %v", len(b), id, back, err)
		}
	})
}

// What reads as an id is its hexadecimal spelling in either case, and nothing else.
func FuzzParseID(f *testing.F) {
	for _, s := range []string{"", "01", "AB", "0", "0x01", " 01", "0g", "é", strings.Repeat("ab", kek.MaxIDSize), strings.Repeat("ab", kek.MaxIDSize+1)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := kek.ParseID(s)
		if err != nil {
			// What was given stands in the error in quotes, whatever it is.
			if text := err.Error(); id != "" || !utf8.ValidString(text) || strings.ContainsAny(text, "\n\r\x1b") {
				t.Errorf("ParseID(%q) = %q, %q", s, id, text)
			}
			return
		}
		if id.String() != strings.ToLower(s) {
			t.Errorf("ParseID(%q) = %s", s, id)
		}
	})
}

// What reads as a key_id is label, id and check value, spelled again as it was.
func FuzzParseKeyID(f *testing.F) {
	for _, s := range []string{
		kek.KeyID("k8s-kek", "\x01\xff", kek.CheckValue{1, 2, 3}), "a/b/c/01/000000", "", "/", "//", "///", "/01/000000", "k8s-kek/01/",
		"k8s-kek//000000", "k8s-kek/0g/000000", "k8s-kek/AB/000000", "projects/p/locations/l/keyRings/r/cryptoKeys/k",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ring, id, err := kek.ParseKeyID(s)
		if err != nil {
			if ring != "" || id != "" || !strings.Contains(err.Error(), "key_id") {
				t.Errorf("ParseKeyID(%q) = %q, %s, %v", s, ring, id, err)
			}
			return
		}
		if ring == "" || id == "" {
			t.Fatalf("ParseKeyID(%q) = %q, %q", s, ring, id)
		}
		rest, ok := strings.CutPrefix(s, ring+"/")
		if !ok || len(rest) <= 2*len(id)+1 || !strings.EqualFold(rest[:2*len(id)], id.String()) || rest[2*len(id)] != '/' || strings.Contains(rest[2*len(id)+1:], "/") {
			t.Errorf("ParseKeyID(%q) = %q, %s", s, ring, id)
		}
	})
}
