package hsm

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"io"
	"regexp"

	"go.uber.org/zap"

	"kekd/internal/secret"
)

const (
	// maxLine bounds what is logged of a line that the worker prints, in bytes.
	maxLine = 512
	// lineBuffer bounds what is read of it.
	lineBuffer = 4096
)

// showsMemory matches the lines of Go's report of a crash that show what was on the
// stack and in the registers: when a module crashes, that may be a seed. Go words the
// stack as "00007ffd9d2bdcc0:  00000000 00000006 …" and registers as "rax    0x0".
var showsMemory = regexp.MustCompile(`^([0-9a-f]{8}|[0-9a-f]{16}): +[0-9a-f]{8} |^[a-z][a-z0-9]{0,7} +0x[0-9a-f]+$`)

// logOutput logs what the worker and the module print, until the pipe ends, but no
// PIN and no memory. The buffer is its own, so that nothing of a line stays in memory.
func logOutput(r io.ReadCloser, log *zap.Logger, holdsSecret func([]byte) bool) {
	defer r.Close()
	buf := make(secret.Bytes, lineBuffer)
	defer buf.Wipe()
	n := 0        // bytes in buf
	tail := false // inside a line that was too long for the buffer
	// take logs the first size bytes of buf as a line and takes them out, with skip
	// more.
	take := func(size, skip int) {
		if text := bytes.TrimSpace(buf[:size]); len(text) > 0 && !tail && !showsMemory.Match(text) {
			if holdsSecret(text) {
				text = []byte("[a line that holds the PIN]")
			}
			// A copy: a core may keep the entry, and the buffer is used again.
			log.Warn("hsm worker output", zap.String("line", string(text[:min(len(text), maxLine)])))
		}
		rest := copy(buf, buf[size+skip:n])
		buf[rest:n].Wipe()
		n = rest
	}
	for {
		more, err := r.Read(buf[n:])
		n += more
		for {
			end := bytes.IndexByte(buf[:n], '\n')
			if end < 0 {
				break
			}
			take(end, 1)
			tail = false
		}
		if err != nil || n == len(buf) {
			take(n, 0)
			tail = true
		}
		if err != nil {
			return
		}
	}
}

// pinFinder makes a function that tells whether a text holds the PIN as modules
// print what they are called with: plain, in hexadecimal with or without something
// between the digits, or as a part of base64. It outlives the PIN, so it keeps keyed
// hashes instead of the PIN itself and compares them with those of every stretch of
// the same length.
func pinFinder(pin []byte) func(text []byte) bool {
	if len(pin) < 4 { // would match every other line
		return func([]byte) bool { return false }
	}
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails
	type pattern struct {
		size int
		sum  [sha256.Size]byte
	}
	patternOf := func(b []byte) pattern { return pattern{len(b), secret.Sum(key, b)} }
	holds := func(text []byte, patterns ...pattern) bool {
		for _, p := range patterns {
			for i := 0; i+p.size <= len(text); i++ {
				if secret.Sum(key, text[i:i+p.size]) == p.sum {
					return true
				}
			}
		}
		return false
	}
	plain := patternOf(pin)
	encoded := make(secret.Bytes, hex.EncodedLen(len(pin)))
	hex.Encode(encoded, pin)
	inHex := patternOf(encoded)
	encoded.Wipe()
	inBase64 := make([]pattern, 3)
	for shift := range inBase64 { // what stands before it moves its bits
		moved := append(make(secret.Bytes, shift, shift+len(pin)), pin...)
		encoded := make(secret.Bytes, base64.RawStdEncoding.EncodedLen(len(moved)))
		base64.RawStdEncoding.Encode(encoded, moved)
		// Only the digits whose bits are all the PIN's.
		inBase64[shift] = patternOf(encoded[(8*shift+5)/6 : 8*len(moved)/6])
		moved.Wipe()
		encoded.Wipe()
	}
	return func(text []byte) bool {
		if holds(text, plain) {
			return true
		}
		other := make(secret.Bytes, 0, len(text))
		defer func() { other[:cap(other)].Wipe() }()
		if other = appendHexDigits(other, text); holds(other, inHex) {
			return true
		}
		other = appendBase64Digits(other[:0], text)
		return holds(other, inBase64...)
	}
}

// appendHexDigits appends the hexadecimal digits of text, in lower case, without
// what stands between them: 0x, colons, spaces.
func appendHexDigits(dst, text []byte) []byte {
	for i, c := range text {
		switch {
		case c == '0' && i+1 < len(text) && text[i+1]|0x20 == 'x':
		case '0' <= c && c <= '9':
			dst = append(dst, c)
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			dst = append(dst, c|0x20)
		}
	}
	return dst
}

// appendBase64Digits appends text with the digits of the alphabet for URLs replaced
// by those of the standard's.
func appendBase64Digits(dst, text []byte) []byte {
	for _, c := range text {
		switch c {
		case '-':
			c = '+'
		case '_':
			c = '/'
		}
		dst = append(dst, c)
	}
	return dst
}
