package hsmtest

import (
	"crypto/aes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"slices"

	"github.com/miekg/pkcs11"

	"kekd/hsm/p11"
)

// GenerateKeyPair implements p11.Cryptoki.
func (f *Fake) GenerateKeyPair(s pkcs11.SessionHandle, _ uint, public, private []*pkcs11.Attribute) (pub, priv pkcs11.ObjectHandle, err error) {
	defer f.mu.Unlock()
	if err := f.enter("C_GenerateKeyPair"); err != nil {
		return 0, 0, err
	}
	if err := f.session("C_GenerateKeyPair", s); err != nil {
		return 0, 0, err
	}
	// For RSA alone: the fake has no ECDSA.
	if _, ok := attributesOf(public)[pkcs11.CKA_MODULUS_BITS]; !ok {
		return 0, 0, fail("C_GenerateKeyPair", pkcs11.CKR_MECHANISM_INVALID)
	}
	bits := binary.NativeEndian.Uint64(attributesOf(public)[pkcs11.CKA_MODULUS_BITS])
	key, err := rsa.GenerateKey(rand.Reader, int(bits))
	if err != nil {
		return 0, 0, fail("C_GenerateKeyPair", pkcs11.CKR_KEY_SIZE_RANGE)
	}
	common := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS, key.N.Bytes()),
	}
	err = f.token("C_GenerateKeyPair", func(t *FakeToken) error {
		pub = pkcs11.ObjectHandle(t.add(nil, attributesOf(public, append(common, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY))...)))
		priv = pkcs11.ObjectHandle(t.add(x509.MarshalPKCS1PrivateKey(key), attributesOf(private, append(common, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))...)))
		return nil
	})
	return pub, priv, err
}

// UnwrapKey implements p11.Cryptoki. The key must be one for AES.
func (f *Fake) UnwrapKey(s pkcs11.SessionHandle, h pkcs11.ObjectHandle, m p11.Mechanism, wrapped []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	const call = "C_UnwrapKey"
	defer f.mu.Unlock()
	if err := f.enter(call); err != nil {
		return 0, err
	}
	if err := f.session(call, s); err != nil {
		return 0, err
	}
	var made uint
	err := f.token(call, func(t *FakeToken) error {
		o := t.object(h)
		switch {
		case o == nil:
			return fail(call, pkcs11.CKR_UNWRAPPING_KEY_HANDLE_INVALID)
		case !slices.Contains(t.Mechanisms, m.Type):
			return fail(call, pkcs11.CKR_MECHANISM_INVALID)
		case !o.flag(pkcs11.CKA_UNWRAP):
			return fail(call, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED)
		}
		value := unwrap(o.Value, m, wrapped)
		if value == nil {
			return fail(call, pkcs11.CKR_WRAPPED_KEY_INVALID)
		}
		if _, err := aes.NewCipher(value); err != nil {
			return fail(call, pkcs11.CKR_KEY_SIZE_RANGE)
		}
		attributes := attributesOf(template,
			pkcs11.NewAttribute(pkcs11.CKA_LOCAL, false), pkcs11.NewAttribute(pkcs11.CKA_ALWAYS_SENSITIVE, false),
			pkcs11.NewAttribute(pkcs11.CKA_NEVER_EXTRACTABLE, false), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, len(value)))
		if t.LooseUnwrap {
			attributes[pkcs11.CKA_SENSITIVE] = pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false).Value
			attributes[pkcs11.CKA_EXTRACTABLE] = pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true).Value
		}
		made = t.add(value, attributes)
		return nil
	})
	return pkcs11.ObjectHandle(made), err
}

// unwrap returns what was wrapped for a key; nil when it does not open.
func unwrap(key []byte, m p11.Mechanism, wrapped []byte) []byte {
	if m.Type == p11.CKMAESKeyWrapKWP {
		return kwpOpen(key, wrapped)
	}
	private, err := x509.ParsePKCS1PrivateKey(key)
	if err != nil || len(wrapped) < private.Size() {
		return nil
	}
	h := sha256.New()
	if m.Hash == pkcs11.CKM_SHA_1 {
		h = sha1.New()
	}
	first, err := rsa.DecryptOAEP(h, nil, private, wrapped[:private.Size()], nil)
	switch {
	case err != nil:
		return nil
	case m.Type == pkcs11.CKM_RSA_AES_KEY_WRAP:
		return kwpOpen(first, wrapped[private.Size():])
	}
	return first
}

func kwpOpen(key, wrapped []byte) []byte {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil
	}
	return KWPUnwrap(block, wrapped)
}
