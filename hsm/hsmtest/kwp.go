package hsmtest

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
)

// kwpIV is the alternative initial value's constant of RFC 5649, section 3.
const kwpIV = 0xA65959A6

// kwpWrap is AES key wrap with padding (RFC 5649) for inputs above 8 bytes.
func kwpWrap(block cipher.Block, in []byte) []byte {
	padded := append([]byte(nil), in...)
	for len(padded)%8 != 0 {
		padded = append(padded, 0)
	}
	a := binary.BigEndian.AppendUint32(nil, kwpIV)
	a = binary.BigEndian.AppendUint32(a, uint32(len(in)))
	n := len(padded) / 8
	buf := make([]byte, 16)
	for j := range 6 {
		for i := range n {
			copy(buf, a)
			copy(buf[8:], padded[8*i:8*i+8])
			block.Encrypt(buf, buf)
			t := uint64(n*j + i + 1)
			a = binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(buf)^t)
			copy(padded[8*i:], buf[8:])
		}
	}
	return append(a, padded...)
}

// KWPUnwrap is the reverse of AES key wrap with padding (RFC 5649); nil when the
// check fails.
func KWPUnwrap(block cipher.Block, in []byte) []byte {
	if len(in) < 24 || len(in)%8 != 0 {
		return nil
	}
	a := append([]byte(nil), in[:8]...)
	r := append([]byte(nil), in[8:]...)
	n := len(r) / 8
	buf := make([]byte, 16)
	for j := 5; j >= 0; j-- {
		for i := n - 1; i >= 0; i-- {
			t := uint64(n*j + i + 1)
			binary.BigEndian.PutUint64(buf, binary.BigEndian.Uint64(a)^t)
			copy(buf[8:], r[8*i:8*i+8])
			block.Decrypt(buf, buf)
			copy(a, buf[:8])
			copy(r[8*i:], buf[8:])
		}
	}
	size := int(binary.BigEndian.Uint32(a[4:]))
	if binary.BigEndian.Uint32(a) != kwpIV || size > len(r) || size <= len(r)-8 || !bytes.Equal(r[size:], make([]byte, len(r)-size)) {
		return nil
	}
	return r[:size]
}
