package worker

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // G505: for RSA-OAEP, whose security does not rest on collisions
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"hash"
	"math/big"

	"github.com/miekg/pkcs11"

	"kekd/hsm/p11"
	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// importLabel is the label of one-time key pairs, and of a KEK that is on its way
// into the ring. It must not be that of a ring: no kekd may see a key before its
// import is done.
func importLabel(ring string) string { return ring + " (import)" }

// pair is a one-time RSA key pair. Its private key is searched when it is used.
type pair struct {
	id     kek.ID
	public *rsa.PublicKey
}

// ImportBegin makes a one-time RSA key pair. Its private half unwraps and nothing
// else, and never leaves the token.
func (w *Worker) ImportBegin(req wire.ImportBeginRequest) (wire.WrappingKey, error) {
	label := importLabel(w.ring)
	common := []*pkcs11.Attribute{
		attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_ID, req.ID), attr(pkcs11.CKA_TOKEN, true),
	}
	public := append([]*pkcs11.Attribute{
		attr(pkcs11.CKA_PRIVATE, false),
		attr(pkcs11.CKA_MODULUS_BITS, req.Bits), attr(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
		attr(pkcs11.CKA_WRAP, true), attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_VERIFY, false),
	}, common...)
	private := append([]*pkcs11.Attribute{
		attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_UNWRAP, true), attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_SIGN, false), attr(pkcs11.CKA_DERIVE, false),
	}, common...)
	err := w.once("make the one-time key pair", func(s session) error {
		_, _, err := w.module.GenerateKeyPair(s.handle, pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, public, private)
		return err
	})
	if err != nil {
		return wire.WrappingKey{}, err
	}
	p, err := w.pair(kek.ID(req.ID))
	if err != nil {
		return wire.WrappingKey{}, err
	}
	return w.describePair(p)
}

// pairs lists the one-time key pairs by their public halves.
func (w *Worker) pairs() ([]pair, error) {
	var found []pair
	err := w.onSession("list the one-time key pairs", func(s session) error {
		found = nil
		objects, err := w.findObjects(s,
			attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
			attr(pkcs11.CKA_LABEL, importLabel(w.ring)))
		if err != nil {
			return err
		}
		for _, o := range objects {
			var parts [3][]byte
			for i, typ := range []uint{pkcs11.CKA_ID, pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT} {
				if parts[i], err = w.module.GetAttribute(s.handle, o, typ); err != nil {
					return err
				}
			}
			e := new(big.Int).SetBytes(parts[2])
			found = append(found, pair{kek.ID(parts[0]), &rsa.PublicKey{N: new(big.Int).SetBytes(parts[1]), E: int(e.Int64())}})
		}
		return nil
	})
	return found, err
}

// pair finds one key pair.
func (w *Worker) pair(id kek.ID) (pair, error) {
	all, err := w.pairs()
	if err != nil {
		return pair{}, err
	}
	for _, p := range all {
		if p.id == id {
			return p, nil
		}
	}
	return pair{}, noWrappingKey(id)
}

func noWrappingKey(id kek.ID) *wire.Error {
	return &wire.Error{
		Class: wire.ClassNoKey, Text: fmt.Sprintf("the token has no wrapping key with CKA_ID %s", id),
		Hint: "kekctl key import begin shows or makes the one-time key pair",
	}
}

// unwrapper finds the one object of a template that is to unwrap with.
func (w *Worker) unwrapper(id kek.ID, class, keyType uint, more ...*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	var found []pkcs11.ObjectHandle
	err := w.onSession("find the wrapping key", func(s session) (err error) {
		found, err = w.findObjects(s, append(more,
			attr(pkcs11.CKA_CLASS, class), attr(pkcs11.CKA_KEY_TYPE, keyType), attr(pkcs11.CKA_ID, []byte(id)))...)
		return err
	})
	switch {
	case err != nil:
		return 0, err
	case len(found) == 0:
		return 0, noWrappingKey(id)
	case len(found) > 1:
		return 0, &wire.Error{Class: wire.ClassAmbiguous, Text: fmt.Sprintf("%d keys that could unwrap have CKA_ID %s", len(found), id)}
	}
	return found[0], nil
}

func (w *Worker) privateKey(p pair) (pkcs11.ObjectHandle, error) {
	return w.unwrapper(p.id, pkcs11.CKO_PRIVATE_KEY, pkcs11.CKK_RSA, attr(pkcs11.CKA_LABEL, importLabel(w.ring)))
}

// describePair tells of a key pair, and tries with which hashes it unwraps: some
// tokens do SHA-1 only (SoftHSM 2.6), and whoever wraps must know before.
func (w *Worker) describePair(p pair) (wire.WrappingKey, error) {
	der, err := x509.MarshalPKIXPublicKey(p.public)
	if err != nil {
		return wire.WrappingKey{}, fmt.Errorf("encode the public key %s: %w", p.id, err)
	}
	k := wire.WrappingKey{ID: []byte(p.id), PublicKey: der, Hashes: []wire.OAEPHash{}}
	private, err := w.privateKey(p)
	if err != nil {
		return wire.WrappingKey{}, err
	}
	for _, h := range oaepHashes() {
		err := w.tryHash(p, private, h)
		if err == nil {
			k.Hashes = append(k.Hashes, h.name)
		} else if !refusal(err) {
			return wire.WrappingKey{}, err
		}
	}
	return k, nil
}

// oaepHash is a hash of RSA-OAEP in the words of all who need it.
type oaepHash struct {
	name wire.OAEPHash
	mech uint
	make func() hash.Hash
}

func oaepHashes() []oaepHash {
	return []oaepHash{
		{wire.SHA256, pkcs11.CKM_SHA256, sha256.New},
		{wire.SHA1, pkcs11.CKM_SHA_1, sha1.New},
	}
}

// tryHash unwraps a random key, as an object that ends with its session.
func (w *Worker) tryHash(p pair, private pkcs11.ObjectHandle, h oaepHash) error {
	key, err := random(32)
	if err != nil {
		return err
	}
	wrapped, err := rsa.EncryptOAEP(h.make(), rand.Reader, p.public, key, nil)
	if err != nil {
		return fmt.Errorf("wrap a key for the pair %s: %w", p.id, err)
	}
	template := aesTemplate(importLabel(w.ring), p.id)
	for _, a := range template {
		if a.Type == pkcs11.CKA_TOKEN {
			a.Value = attr(pkcs11.CKA_TOKEN, false).Value
		}
	}
	return w.once("try to unwrap with "+string(h.name), func(s session) error {
		o, err := w.module.UnwrapKey(s.handle, private, p11.Mechanism{Type: pkcs11.CKM_RSA_PKCS_OAEP, Hash: h.mech}, wrapped, template)
		if err == nil {
			err = w.module.DestroyObject(s.handle, o)
		}
		return err
	})
}
