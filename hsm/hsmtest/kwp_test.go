package hsmtest

import (
	"bytes"
	"crypto/aes"
	"encoding/hex"
	"fmt"
	"testing"
)

// The fake's KWP is measured against RFC 5649, section 6, and then against
// itself: a real token's ciphertexts must open under it.
func TestKWPVector(t *testing.T) {
	t.Parallel()
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		must(t, err)
		return b
	}
	block, err := aes.NewCipher(unhex("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8"))
	must(t, err)
	plain := unhex("c37b7e6492584340bed12207808941155068f738")
	want := unhex("138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a")
	if got := kwpWrap(block, plain); !bytes.Equal(got, want) {
		t.Errorf("wrapped to %x, want %x", got, want)
	}
	if got := KWPUnwrap(block, want); !bytes.Equal(got, plain) {
		t.Errorf("unwrapped to %x, want %x", got, plain)
	}
}

func TestKWPRoundTrip(t *testing.T) {
	t.Parallel()
	block, err := aes.NewCipher(make([]byte, 32))
	must(t, err)
	for n := 9; n <= 72; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			plain := bytes.Repeat([]byte{0xa5}, n)
			blob := kwpWrap(block, plain)
			if len(blob) != 8+(n+7)/8*8 {
				t.Errorf("wrapped to %d bytes", len(blob))
			}
			if got := KWPUnwrap(block, blob); !bytes.Equal(got, plain) {
				t.Errorf("unwrapped to %x", got)
			}
			for i := range blob {
				bad := bytes.Clone(blob)
				bad[i] ^= 1
				if got := KWPUnwrap(block, bad); got != nil {
					t.Errorf("byte %d changed: unwrapped to %x", i, got)
				}
			}
			for _, cut := range []int{0, 8, 16, len(blob) - 1, len(blob) - 8} {
				if got := KWPUnwrap(block, blob[:cut]); got != nil {
					t.Errorf("cut to %d bytes: unwrapped to %x", cut, got)
				}
			}
		})
	}
}
