package secret

import (
	"crypto/sha256"
	"encoding/binary"
)

// Sum is a hash of several parts, some of them secret: SHA-256 over their number
// and each part with its length in front, filled up with zeros to whole blocks. It
// leaves no copy of the parts behind: crypto/sha256 works on whole blocks where
// they stand, and copies only what is left over into a state that nobody can wipe,
// as crypto/hmac and crypto/pbkdf2 do with all that they are given.
//
// It takes time in proportion to the parts' length and tells nothing but that. A
// secret that can be guessed can be guessed from its Sum.
func Sum(parts ...[]byte) [sha256.Size]byte {
	const lengthSize = 8
	size := lengthSize
	for _, p := range parts {
		size += lengthSize + len(p)
	}
	whole := (size + sha256.BlockSize - 1) / sha256.BlockSize * sha256.BlockSize
	// On the heap, though it need not be: a stack that grows leaves its old self behind.
	buf := make(Bytes, 0, whole)
	buf = binary.BigEndian.AppendUint64(buf, uint64(len(parts)))
	for _, p := range parts {
		buf = binary.BigEndian.AppendUint64(buf, uint64(len(p)))
		buf = append(buf, p...)
	}
	buf = buf[:whole]
	defer buf.Wipe()
	return sha256.Sum256(buf)
}
