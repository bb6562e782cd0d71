package hsm

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestPINFinder(t *testing.T) {
	t.Parallel()
	const pin = "Pa55 w\xf6rd"
	encoded := hex.EncodeToString([]byte(pin))
	finds := pinFinder([]byte(pin))
	for name, c := range map[string]struct {
		text string
		want bool
	}{
		"alone":           {pin, true},
		"at the start":    {pin + " is it", true},
		"at the end":      {"it is " + pin, true},
		"inside":          {"<" + pin + ">", true},
		"hexadecimal":     {"0x" + encoded + ";", true},
		"capital digits":  {strings.ToUpper(encoded), true},
		"odd offset":      {"f" + encoded, true},
		"spaced digits":   {fmt.Sprintf("pin: % x", pin), true},
		"digits, colons":  {strings.ReplaceAll(fmt.Sprintf("% X", pin), " ", ":"), true},
		"an array":        {strings.ReplaceAll(fmt.Sprintf("%# x", pin), " ", ", "), true},
		"base64":          {base64.StdEncoding.EncodeToString([]byte(pin)), true},
		"base64, 1 ahead": {"x" + base64.StdEncoding.EncodeToString([]byte("a"+pin+"b")), true},
		"base64, 2 ahead": {base64.URLEncoding.EncodeToString([]byte("ab" + pin)), true},
		"without its end": {pin[:len(pin)-1], false},
		"other letters":   {strings.ToUpper(pin), false},
		"half of its hex": {encoded[:len(encoded)-1], false},
		"empty":           {"", false},
		"something else":  {"C_Initialize: all is well, really", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := finds([]byte(c.text)); got != c.want {
				t.Errorf("found %t in %q, want %t", got, c.text, c.want)
			}
		})
	}
	if pinFinder([]byte("123"))([]byte("slot 123")) {
		t.Error("a PIN of three bytes is looked for, which hides every other line")
	}
	if !pinFinder([]byte("1234"))([]byte("slot 1234")) {
		t.Error("a PIN of four bytes is not looked for")
	}
}

// The finder outlives the PIN, which is wiped.
func TestPINFinderKeepsNoPIN(t *testing.T) {
	t.Parallel()
	pin := []byte("123456")
	finds := pinFinder(pin)
	clear(pin)
	if !finds([]byte("123456")) || finds(make([]byte, 6)) {
		t.Error("the finder works on the caller's bytes")
	}
}

func TestLogOutput(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", lineBuffer)
	for name, c := range map[string]struct {
		printed string
		want    []string
	}{
		"nothing":            {"", nil},
		"lines":              {"one\n  two \r\n\n\nthree", []string{"one", "two", "three"}},
		"a PIN":              {"before\npin=123456\nafter\n", []string{"before", "[a line that holds the PIN]", "after"}},
		"a long line is cut": {strings.Repeat("y", maxLine+1) + "\nnext\n", []string{strings.Repeat("y", maxLine), "next"}},
		"a report of a crash": {
			"SIGSEGV: segmentation violation\nstack: frame={sp:0x7ffd9d2bdcb0, fp:0x0}\n" +
				"00007ffd9d2bdcc0:  00000000 00000006  00007f96 638a8740  ........@..c....\n" +
				"goroutine 1 gp=0x1a401f1521e0 m=0 mp=0x3736b00 [running]:\n\nrax    0x0\nr10    0x7f96638a8740\nrflags 0x246\nx29     0xffffffffffffffff\n",
			[]string{"SIGSEGV: segmentation violation", "stack: frame={sp:0x7ffd9d2bdcb0, fp:0x0}", "goroutine 1 gp=0x1a401f1521e0 m=0 mp=0x3736b00 [running]:"},
		},
		"a line past all size": {long + long + "tail\nnext\n", []string{long[:maxLine], "next"}},
		"a PIN behind the cut": {strings.Repeat("y", maxLine) + "123456\nnext\n", []string{"[a line that holds the PIN]", "next"}},
		"a PIN far behind it":  {long + "123456\nnext\n", []string{long[:maxLine], "next"}},
		"a PIN over the edge":  {long[:lineBuffer-3] + "123456\nnext\n", []string{long[:maxLine], "next"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			core, logs := observer.New(zapcore.DebugLevel)
			logOutput(io.NopCloser(strings.NewReader(c.printed)), zap.New(core), pinFinder([]byte("123456")))
			var got []string
			for _, e := range logs.All() {
				got = append(got, fmt.Sprint(e.ContextMap()["line"]))
			}
			if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
				t.Errorf("logged %d lines %.80q, want %d lines %.80q", len(got), got, len(c.want), c.want)
			}
		})
	}
}
