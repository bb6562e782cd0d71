package keycache

import (
	"crypto/sha256"

	"kekd/internal/kek"
)

// digest names one question to the HSM: two requests have the same digest if
// and only if the HSM would be asked the very same thing.
type digest [sha256.Size]byte

// The first byte of what is hashed keeps the kinds apart, so that a crafted
// envelope of one cannot stand for one of the other in the memory of failures.
const (
	digestSeed   = 's'
	digestDirect = 'd'
	digestKey    = 'k'
)

// seedDigest names the unwrap of an envelope's seed: mechanism, key and wrapped
// seed; the ring, which is the rest of the AAD, is always the same. The check
// value is left out on purpose: the HSM never sees it, and with it a forger
// could make millions of envelopes that miss the cache with one wrapped seed.
func seedDigest(e *envelope) digest {
	var buf [1 + 1 + 1 + kek.MaxIDSize + maxWrapped]byte
	b := append(buf[:0], digestSeed, byte(e.mechanism), byte(len(e.id))) //nolint:gosec // G115: at most kek.MaxIDSize
	b = append(b, e.id...)
	b = append(b, e.wrapped...)
	return sha256.Sum256(b)
}

// directDigest names the decryption of a whole direct envelope.
func directDigest(e *envelope, keyID string) digest {
	h := sha256.New()
	h.Write([]byte{digestDirect})
	h.Write(e.header)
	h.Write(e.body)
	h.Write([]byte(keyID))
	return digest(h.Sum(nil))
}
