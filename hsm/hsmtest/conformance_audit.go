package hsmtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"testing"

	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// auditKeys: a key signs by each algorithm, also from another process, the newest one
// unless another is named, and none of it is seen by the ring.
func auditKeys(t *testing.T, f *Fixture) {
	token := f.Open(t)
	if _, err := token.AuditSign(t.Context(), nil, []byte("nothing to sign with")); !errors.Is(err, kek.ErrUnknownKey) {
		t.Errorf("without an audit key: %v, want ErrUnknownKey", err)
	}
	algorithms := wire.AuditAlgorithms()
	if f.NoECDSA {
		_, err := token.CreateAuditKey(t.Context(), wire.ECDSAP256)
		if !errors.Is(err, kek.ErrRefused) {
			t.Errorf("a key for ECDSA: %v, want ErrRefused", err)
		}
		algorithms = []wire.AuditAlgorithm{wire.HMACSHA256}
	}
	first, err := token.CreateAuditKey(t.Context(), "")
	must(t, err)
	if first.Algorithm != algorithms[0] {
		t.Errorf("the best algorithm is %s, want %s", first.Algorithm, algorithms[0])
	}
	var made []wire.AuditKey
	message := bytes.Repeat([]byte("what is signed "), 20)
	for _, algorithm := range algorithms {
		key, err := token.CreateAuditKey(t.Context(), algorithm)
		must(t, err)
		made = append(made, key)
		reply, err := f.Open(t).AuditSign(t.Context(), key.ID, message)
		must(t, err)
		if reply.Key.Algorithm != algorithm || !bytes.Equal(reply.Key.ID, key.ID) {
			t.Errorf("signed by %+v, want %+v", reply.Key, key)
		}
		switch algorithm {
		case wire.ECDSAP256:
			public, err := x509.ParsePKIXPublicKey(key.PublicKey)
			must(t, err)
			sum := sha256.Sum256(message)
			if !ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), sum[:], reply.Signature) {
				t.Error("the signature does not verify")
			}
		case wire.HMACSHA256:
			again, err := token.AuditSign(t.Context(), key.ID, message)
			must(t, err)
			other, err := token.AuditSign(t.Context(), key.ID, message[1:])
			must(t, err)
			if !bytes.Equal(again.Signature, reply.Signature) || bytes.Equal(other.Signature, reply.Signature) {
				t.Error("an HMAC that is not of the message alone")
			}
		}
	}
	keys, err := token.AuditKeys(t.Context())
	must(t, err)
	if len(keys) != len(made)+1 {
		t.Errorf("%d audit keys, want %d", len(keys), len(made)+1)
	}
	ring, err := token.Keys(t.Context())
	must(t, err)
	if len(ring) != 0 {
		t.Errorf("the ring has %d keys, and none was made", len(ring))
	}
}
