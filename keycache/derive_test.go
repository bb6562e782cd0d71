package keycache

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"testing"

	"kekd/internal/kek"
	"kekd/internal/secret"
)

func TestDeriveIsHKDFExpand(t *testing.T) {
	for range 100 {
		seed, salt := make([]byte, seedSize), make([]byte, saltSize)
		_, _ = rand.Read(seed)
		_, _ = rand.Read(salt)
		want, err := hkdf.Expand(sha256.New, seed, "kekd/v1/dek"+string(salt), 32)
		if err != nil {
			t.Fatal(err)
		}
		var onStack, validated oneTimeKey
		onStack.deriveOnStack(seed, salt)
		validated.deriveValidated(seed, salt)
		if !bytes.Equal(onStack[:], want) || !bytes.Equal(validated[:], want) {
			t.Fatalf("seed %x, salt %x: derived %x and %x, want %x", seed, salt, onStack, validated, want)
		}
	}
}

func TestDeriveStaysOffTheHeap(t *testing.T) {
	seed, salt := make(secret.Bytes, seedSize), make([]byte, saltSize)
	var key oneTimeKey
	if n := testing.AllocsPerRun(100, func() { key.deriveOnStack(seed, salt) }); n != 0 {
		t.Errorf("%v allocations, want none: a copy of the seed may stay behind", n)
	}
}

// A second implementation of the format, from its description alone, opens
// what Seal made.
func TestSeededEnvelopeByTheBook(t *testing.T) {
	sealed := seal(t, readySealer(t, seededConfig(), &fakeHSM{}), "the plaintext")
	b := sealed.Ciphertext
	const wrappedAt = 4 + 17 + 3 + 2
	wrapped := b[wrappedAt : wrappedAt+60]
	salt := b[wrappedAt+60 : wrappedAt+60+32]
	header, body := b[:wrappedAt+60+32], b[wrappedAt+60+32:]

	seedBound := "kekd/v1/seed\x00" + ringLabel + "\x00" + string(keyA.ID)
	seed, err := (&fakeHSM{}).Unwrap(t.Context(), keyA.ID, kek.GCMCallerIV, wrapped, []byte(seedBound))
	if err != nil {
		t.Fatal(err)
	}
	key, err := hkdf.Expand(sha256.New, seed, "kekd/v1/dek"+string(salt), 32)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	plaintext, err := gcm.Open(nil, body[:12], body[12:], []byte(string(header)+sealed.KeyID))
	if err != nil || string(plaintext) != "the plaintext" {
		t.Errorf("opened to %q, %v", plaintext, err)
	}
}

// Label and id cannot be shifted against each other.
func TestSeedAADIsUnambiguous(t *testing.T) {
	seen := make(map[string]string)
	for _, ring := range []string{"a", "ab", "abc"} {
		for _, id := range []kek.ID{"c", "bc", "\x00c", "b\x00c"} {
			name := ring + "|" + string(id)
			bound := string(seedAAD(ring, id))
			if other, ok := seen[bound]; ok {
				t.Errorf("%q and %q have the same AAD", name, other)
			}
			seen[bound] = name
		}
	}
}
