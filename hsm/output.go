package hsm

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"

	"go.uber.org/zap"
)

const (
	// maxLine bounds what is logged of a line that the worker prints, in bytes.
	maxLine = 512
	// lineBuffer bounds what is read of it.
	lineBuffer = 4096
)

// logOutput logs what the worker and the module print, until the pipe ends.
func logOutput(r io.ReadCloser, log *zap.Logger, holdsSecret func([]byte) bool) {
	defer r.Close()
	lines := bufio.NewReaderSize(r, lineBuffer)
	tail := false // inside a line that was too long for the buffer
	for {
		line, err := lines.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		if text := bytes.TrimSpace(line); len(text) > 0 && !tail {
			if holdsSecret(text) {
				text = []byte("[a line that holds the PIN]")
			}
			// A copy: a core may keep the entry, and the buffer is used again.
			log.Warn("hsm worker output", zap.String("line", string(text[:min(len(text), maxLine)])))
		}
		tail = long
		if err != nil && !long {
			return
		}
	}
}

// pinFinder makes a function that tells whether a text holds the PIN, plain or
// in hexadecimal: some modules print what they are called with. It outlives the
// PIN, so it keeps keyed hashes instead of the PIN itself and compares them with
// those of every stretch of the same length.
func pinFinder(pin []byte) func(text []byte) bool {
	if len(pin) < 4 { // would match every other line
		return func([]byte) bool { return false }
	}
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails
	sum := func(b []byte) [sha256.Size]byte {
		mac := hmac.New(sha256.New, key)
		mac.Write(b)
		return [sha256.Size]byte(mac.Sum(nil))
	}
	encoded := []byte(hex.EncodeToString(pin))
	defer clear(encoded)
	plain, inHex, n := sum(pin), sum(encoded), len(pin)
	return func(text []byte) bool {
		holds := func(text []byte, size int, want [sha256.Size]byte) bool {
			for i := 0; i+size <= len(text); i++ {
				if sum(text[i:i+size]) == want {
					return true
				}
			}
			return false
		}
		return holds(text, n, plain) || holds(bytes.ToLower(text), 2*n, inHex)
	}
}
