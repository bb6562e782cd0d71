package audit

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

// The algorithms of a signature.
const (
	// ECDSA is over P-256 and SHA-256, in ASN.1 DER, as OpenSSL has it.
	ECDSA = "ecdsa-p256-sha256"
	// HMAC is HMAC-SHA256. Only who may use the key on the token can verify it.
	HMAC = "hmac-sha256"
)

// Signature is what a key on the token made of a message.
type Signature struct {
	// Key names the key: for ECDSA the SHA-256 of its SubjectPublicKeyInfo, for HMAC
	// its CKA_ID, both in hexadecimal.
	Key       string `json:"key"`
	Algorithm string `json:"algorithm"`
	Value     []byte `json:"signature"`
}

// ErrNoKey: the token has no key to sign with.
var ErrNoKey = errors.New("the token has no audit key")

// Signer signs by a key on the token.
type Signer interface {
	// Sign signs a message. The error wraps ErrNoKey where there is no key.
	Sign(ctx context.Context, message []byte) (Signature, error)
}

// Keys checks signatures.
type Keys interface {
	// Check returns nil if s is the signature of message by a key that is trusted.
	Check(ctx context.Context, message []byte, s Signature) error
}

// PublicKeys are public keys by what a Signature calls them.
type PublicKeys map[string]*ecdsa.PublicKey

// ParsePublicKeys reads SubjectPublicKeyInfos in PEM, one after the other.
func ParsePublicKeys(text []byte) (PublicKeys, error) {
	keys := PublicKeys{}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read a public key: %w", err)
		}
		public, ok := key.(*ecdsa.PublicKey)
		if !ok {
			return nil, fmt.Errorf("read a public key: want one for ECDSA, got %T", key)
		}
		keys[KeyName(block.Bytes)] = public
	}
	if len(keys) == 0 {
		return nil, errors.New("read a public key: there is none in PEM")
	}
	return keys, nil
}

// KeyName is what a Signature calls the key of this SubjectPublicKeyInfo, in DER.
func KeyName(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// Check implements Keys.
func (p PublicKeys) Check(_ context.Context, message []byte, s Signature) error {
	key, ok := p[s.Key]
	switch {
	case s.Algorithm == HMAC:
		return errors.New("it is an HMAC, which only the token can verify")
	case s.Algorithm != ECDSA:
		return fmt.Errorf("unknown algorithm %q", s.Algorithm)
	case !ok:
		return fmt.Errorf("it is by key %.16s…, which is not among those that are trusted", s.Key)
	}
	sum := sha256.Sum256(message)
	if !ecdsa.VerifyASN1(key, sum[:], s.Value) {
		return errors.New("the signature is wrong")
	}
	return nil
}
