package keycache

import (
	"encoding/binary"
	"fmt"

	"kekd/internal/kek"
)

const (
	version1 = 0x01

	schemeSeeded = 1
	schemeDirect = 2

	// maxCiphertext is the longest envelope, in bytes: kube-apiserver refuses more.
	maxCiphertext = 1024

	checkSize = len(kek.CheckValue{})
	saltSize  = 32
	nonceSize = 12
	tagSize   = 16

	// A wrapped seed is longer than the seed by a tag or by a digest at least;
	// what is longer than maxWrapped is no wrap of 32 bytes by any mechanism.
	minWrapped = seedSize + tagSize
	maxWrapped = 512

	// The shortest bodies: one byte of plaintext, sealed.
	minSeededBody = nonceSize + 1 + tagSize
	minDirectBody = 1 + tagSize
)

// envelope is one parsed envelope. Its slices are parts of what was parsed.
type envelope struct {
	scheme    byte
	mechanism kek.Mechanism
	id        kek.ID
	check     kek.CheckValue
	wrapped   []byte // seeded only
	salt      []byte // seeded only, saltSize bytes

	prefix []byte // all bytes before the salt (seeded) or the body (direct)
	header []byte // all bytes before the body: prefix ‖ salt
	body   []byte
}

// newPrefix makes what an envelope begins with, up to the salt (seeded) or the
// body (direct); wrapped is nil in the direct scheme. It is the inverse of parse
// together with appending salt and body.
func newPrefix(scheme byte, m kek.Mechanism, id kek.ID, check kek.CheckValue, wrapped []byte) []byte {
	b := make([]byte, 0, 4+len(id)+len(check)+2+len(wrapped))
	b = append(b, version1, scheme, byte(m), byte(len(id))) //nolint:gosec // G115: at most kek.MaxIDSize
	b = append(b, id...)
	b = append(b, check[:]...)
	if scheme == schemeSeeded {
		b = binary.BigEndian.AppendUint16(b, uint16(len(wrapped))) //nolint:gosec // G115: at most maxWrapped
		b = append(b, wrapped...)
	}
	return b
}

// parse takes an envelope apart. It is strict: whatever kekd does not write is
// kek.ErrCorrupt. It does not judge the key_id, the key or the content.
func parse(b []byte) (envelope, error) {
	if len(b) > maxCiphertext {
		return envelope{}, corrupt("%d bytes, want at most %d", len(b), maxCiphertext)
	}
	if len(b) < 4 {
		return envelope{}, corrupt("%d bytes are too few", len(b))
	}
	e := envelope{scheme: b[1], mechanism: kek.Mechanism(b[2])}
	if b[0] != version1 {
		return envelope{}, corrupt("unknown version %d", b[0])
	}
	if e.scheme != schemeSeeded && e.scheme != schemeDirect {
		return envelope{}, corrupt("unknown scheme %d", e.scheme)
	}
	if !e.mechanism.Valid() {
		return envelope{}, corrupt("unknown mechanism %d", b[2])
	}
	idSize := int(b[3])
	if idSize == 0 || idSize > kek.MaxIDSize {
		return envelope{}, corrupt("key id of %d bytes", idSize)
	}
	r := reader{rest: b[4:]}
	id := r.take(idSize)
	copy(e.check[:], r.take(checkSize))
	minBody := minDirectBody
	if e.scheme == schemeSeeded {
		minBody = minSeededBody
		size := int(r.uint16())
		if !r.short && (size < minWrapped || size > maxWrapped) {
			return envelope{}, corrupt("wrapped seed of %d bytes", size)
		}
		e.wrapped = r.take(size)
		e.salt = r.take(saltSize)
	}
	if r.short || len(r.rest) < minBody {
		return envelope{}, corrupt("%d bytes are too few for what the header announces", len(b))
	}
	e.id = kek.ID(id)
	e.body = r.rest
	e.header = b[:len(b)-len(e.body)]
	e.prefix = e.header[:len(e.header)-len(e.salt)]
	return e, nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("parse envelope: %s: %w", fmt.Sprintf(format, args...), kek.ErrCorrupt)
}

// reader takes bytes off the front. Once something was missing, short stays set
// and everything taken is nil.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if r.short || len(r.rest) < n {
		r.short = true
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}
