package kek

import (
	"encoding/binary"
	"io"
	"strings"
	"time"
)

// The CKA_ID of a key that kekd makes, set at creation and never changed:
//
//	1  format byte, 0x01
//	8  activation time, Unix seconds, big endian
//	8  random bytes
//
// It orders the ring, is never reused, and tells every node when to switch,
// with no store but the token.
const (
	idFormat = 0x01
	idSize   = 17
)

// maxActivation is the last second of the year 9999. Later times can't be written
// in JSON, and the latest ones overflow time.Time.
const maxActivation = 253402300799

// NewID makes the CKA_ID of a key that activates at the given time, cut to the
// second and to the years 1970 to 9999. Eight bytes are read from random.
func NewID(activation time.Time, random io.Reader) (ID, error) {
	b := make([]byte, idSize)
	b[0] = idFormat
	binary.BigEndian.PutUint64(b[1:9], uint64(min(max(activation.Unix(), 0), maxActivation)))
	if _, err := io.ReadFull(random, b[9:]); err != nil {
		return "", err
	}
	return ID(b), nil
}

// Activation returns the time in an id that NewID made; false for the id of a
// key that another tool made.
func (id ID) Activation() (time.Time, bool) {
	if len(id) != idSize || id[0] != idFormat {
		return time.Time{}, false
	}
	secs := binary.BigEndian.Uint64([]byte(id[1:9]))
	if secs > maxActivation {
		return time.Time{}, false
	}
	return time.Unix(int64(secs), 0).UTC(), true
}

// Compare orders ids by activation time, then by their bytes. Ids of other
// tools come before all ids of kekd's own.
func (id ID) Compare(other ID) int {
	a, aOwn := id.Activation()
	b, bOwn := other.Activation()
	switch {
	case aOwn != bOwn:
		if aOwn {
			return 1
		}
		return -1
	case aOwn:
		if c := a.Compare(b); c != 0 {
			return c
		}
	}
	return strings.Compare(string(id), string(other))
}
