package secret

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"testing"
)

func TestSum(t *testing.T) {
	// Written out: one part of four bytes, zeros up to a block.
	want := sha256.Sum256(append([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 4, '1', '2', '3', '4'}, make([]byte, 64-20)...))
	if got := Sum([]byte("1234")); got != want {
		t.Errorf("Sum = %x, want %x", got, want)
	}
	// What differs in content, length or division has another sum.
	seen := map[[sha256.Size]byte][][]byte{}
	for _, parts := range [][][]byte{
		nil, {nil}, {{}, {}}, {{0}}, {{0, 0}}, {{0}, {0}}, {[]byte("ab"), []byte("c")}, {[]byte("a"), []byte("bc")}, {[]byte("abc")},
		{bytes.Repeat([]byte{1}, 55)}, {bytes.Repeat([]byte{1}, 56)}, {bytes.Repeat([]byte{1}, 57)}, {bytes.Repeat([]byte{1}, 200)},
	} {
		before := slices.Clone(parts)
		sum := Sum(parts...)
		if other, ok := seen[sum]; ok {
			t.Errorf("%v and %v have the same sum", parts, other)
		}
		if !slices.EqualFunc(before, parts, bytes.Equal) {
			t.Errorf("%v was changed to %v", before, parts)
		}
		seen[sum] = parts
	}
}
