package worker

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// auditLabel is the label of the keys that sign the audit trail. As with importLabel,
// it is not that of a ring.
func auditLabel(ring string) string { return ring + " (audit)" }

// p256 is the object identifier of the curve, in DER, as CKA_EC_PARAMS has it.
func p256() []byte { return []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07} }

// auditKey is an audit key and the object that signs.
type auditKey struct {
	wire.AuditKey
	object pkcs11.ObjectHandle
	public *ecdsa.PublicKey // nil for HMAC
}

// AuditKeys lists the audit keys, the oldest first. The CKA_IDs are ordered by time.
func (w *Worker) AuditKeys() ([]wire.AuditKey, error) {
	found, err := w.auditKeys()
	keys := make([]wire.AuditKey, 0, len(found))
	for _, k := range found {
		keys = append(keys, k.AuditKey)
	}
	return keys, err
}

func (w *Worker) auditKeys() ([]auditKey, error) {
	var keys []auditKey
	err := w.onSession("list the audit keys", func(s session) error {
		keys = nil
		label := attr(pkcs11.CKA_LABEL, auditLabel(w.ring))
		points := map[string]*ecdsa.PublicKey{}
		objects, err := w.findObjects(s, label, attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC))
		if err != nil {
			return err
		}
		for _, o := range objects {
			id, err := w.module.GetAttribute(s.handle, o, pkcs11.CKA_ID)
			if err != nil {
				return err
			}
			point, err := w.module.GetAttribute(s.handle, o, pkcs11.CKA_EC_POINT)
			if err != nil {
				return err
			}
			if public := parsePoint(point); public != nil {
				points[string(id)] = public
			}
		}
		for _, kind := range []struct {
			algorithm  wire.AuditAlgorithm
			class, typ uint
		}{
			{wire.ECDSAP256, pkcs11.CKO_PRIVATE_KEY, pkcs11.CKK_EC},
			{wire.HMACSHA256, pkcs11.CKO_SECRET_KEY, pkcs11.CKK_GENERIC_SECRET},
		} {
			objects, err := w.findObjects(s, label, attr(pkcs11.CKA_CLASS, kind.class), attr(pkcs11.CKA_KEY_TYPE, kind.typ))
			if err != nil {
				return err
			}
			for _, o := range objects {
				id, err := w.module.GetAttribute(s.handle, o, pkcs11.CKA_ID)
				if err != nil {
					return err
				}
				k := auditKey{AuditKey: wire.AuditKey{ID: id, Algorithm: kind.algorithm}, object: o}
				if kind.algorithm == wire.ECDSAP256 {
					if k.public = points[string(id)]; k.public == nil {
						continue // half a pair signs nothing that anybody could verify
					}
					if k.PublicKey, err = x509.MarshalPKIXPublicKey(k.public); err != nil {
						return err
					}
				}
				keys = append(keys, k)
			}
		}
		return nil
	})
	slices.SortFunc(keys, func(a, b auditKey) int { return bytes.Compare(a.ID, b.ID) })
	return keys, err
}

// parsePoint reads CKA_EC_POINT: the standard wants an OCTET STRING in DER, some
// modules give its content. Nil for what is no point of P-256.
func parsePoint(b []byte) *ecdsa.PublicKey {
	var inner []byte
	if rest, err := asn1.Unmarshal(b, &inner); err == nil && len(rest) == 0 {
		b = inner
	}
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), b)
	if err != nil {
		return nil
	}
	return public
}

// AuditCreate makes an audit key and proves it. What can't be proven is destroyed.
func (w *Worker) AuditCreate(req wire.AuditCreateRequest) (wire.AuditKey, error) {
	var passed []string
	for _, algorithm := range wire.AuditAlgorithms() {
		if req.Algorithm != "" && req.Algorithm != algorithm {
			continue
		}
		if lacks := w.lacksFor(algorithm); lacks != "" {
			passed = append(passed, lacks)
			continue
		}
		key, err := w.makeAuditKey(kek.ID(req.ID), algorithm)
		if err == nil {
			return key, nil
		}
		if !isClass(err, wire.ClassRefused) {
			// A vague failure may mean "not this algorithm" or "not now". A trail that
			// anyone can verify is not given up for the latter.
			if e, ok := errors.AsType[*wire.Error](err); ok && vague(e.RV) && req.Algorithm == "" {
				e.Hint = fmt.Sprintf("try again; if this token never makes one for %s, choose by --algorithm", algorithm)
			}
			return wire.AuditKey{}, err
		}
		passed = append(passed, fmt.Sprintf("%s: %v", algorithm, err))
	}
	return wire.AuditKey{}, &wire.Error{
		Class: wire.ClassRefused, Text: "no audit key was made: " + strings.Join(passed, "; "),
		Hint: "an audit key needs CKM_EC_KEY_PAIR_GEN and CKM_ECDSA, or CKM_GENERIC_SECRET_KEY_GEN and CKM_SHA256_HMAC",
	}
}

// lacksFor says what the token lacks for an algorithm, empty if nothing.
func (w *Worker) lacksFor(a wire.AuditAlgorithm) string {
	mechanism, name := uint(pkcs11.CKM_ECDSA), "CKM_ECDSA"
	if a == wire.HMACSHA256 {
		mechanism, name = pkcs11.CKM_SHA256_HMAC, "CKM_SHA256_HMAC"
	}
	if info, err := w.module.GetMechanismInfo(w.slot, mechanism); err != nil || info.Flags&pkcs11.CKF_SIGN == 0 {
		return "the token does not sign by " + name
	}
	return ""
}

func (w *Worker) makeAuditKey(id kek.ID, algorithm wire.AuditAlgorithm) (wire.AuditKey, error) {
	var made []pkcs11.ObjectHandle
	key, err := w.generateAuditKey(id, algorithm, &made)
	if err == nil {
		return key, nil
	}
	for _, o := range made {
		if undo := w.destroyObject("destroy the new audit key", o); undo != nil {
			return wire.AuditKey{}, &wire.Error{
				Class: wire.ClassRefused, Text: fmt.Sprintf("%v; and the new audit key could not be removed: %v", err, undo),
				Hint: fmt.Sprintf("remove the key with CKA_ID %s by the vendor's tool", id),
			}
		}
	}
	return wire.AuditKey{}, err
}

func (w *Worker) generateAuditKey(id kek.ID, algorithm wire.AuditAlgorithm, made *[]pkcs11.ObjectHandle) (wire.AuditKey, error) {
	label := auditLabel(w.ring)
	const text = "make the audit key"
	if algorithm == wire.HMACSHA256 {
		template := append(secretTemplate(label, id),
			attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET), attr(pkcs11.CKA_VALUE_LEN, 32),
			attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_DECRYPT, false),
			attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_VERIFY, false))
		o, err := w.generate(text, pkcs11.CKM_GENERIC_SECRET_KEY_GEN, template)
		if err != nil {
			return wire.AuditKey{}, err
		}
		*made = append(*made, o)
	} else {
		common := []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_ID, []byte(id)), attr(pkcs11.CKA_TOKEN, true)}
		public := append([]*pkcs11.Attribute{
			attr(pkcs11.CKA_PRIVATE, false), attr(pkcs11.CKA_VERIFY, true), attr(pkcs11.CKA_EC_PARAMS, p256()),
		}, common...)
		private := append([]*pkcs11.Attribute{
			attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false),
			attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_UNWRAP, false), attr(pkcs11.CKA_DERIVE, false),
		}, common...)
		err := w.once(text, func(s session) error {
			pub, priv, err := w.module.GenerateKeyPair(s.handle, pkcs11.CKM_EC_KEY_PAIR_GEN, public, private)
			if err == nil {
				*made = append(*made, pub, priv)
			}
			return err
		})
		if err != nil {
			return wire.AuditKey{}, err
		}
	}
	reply, err := w.AuditSign(wire.AuditSignRequest{ID: []byte(id), Message: []byte("kekd audit key proof")})
	return reply.Key, err
}

// AuditSign signs a message by an audit key, and checks an ECDSA signature before it
// lets it out.
func (w *Worker) AuditSign(req wire.AuditSignRequest) (wire.AuditSignReply, error) {
	keys, err := w.auditKeys()
	if err != nil {
		return wire.AuditSignReply{}, err
	}
	if req.ID != nil {
		keys = slices.DeleteFunc(keys, func(k auditKey) bool { return !bytes.Equal(k.ID, req.ID) })
	}
	if len(keys) == 0 {
		if err := w.tokenAnswers(); err != nil { // or it lists nothing, for it is gone
			return wire.AuditSignReply{}, err
		}
		return wire.AuditSignReply{}, &wire.Error{
			Class: wire.ClassNoKey, Text: "the token has no audit key" + ofID(req.ID), Hint: "kekctl audit key create makes one",
		}
	}
	k := keys[len(keys)-1]
	var out []byte
	sum := sha256.Sum256(req.Message)
	err = w.onSession("sign by the audit key", func(s session) (err error) {
		if k.Algorithm == wire.HMACSHA256 {
			out, err = w.module.Sign(s.handle, k.object, pkcs11.CKM_SHA256_HMAC, req.Message)
		} else {
			out, err = w.module.Sign(s.handle, k.object, pkcs11.CKM_ECDSA, sum[:])
		}
		return err
	})
	if err != nil {
		return wire.AuditSignReply{}, err
	}
	if k.Algorithm == wire.ECDSAP256 {
		if out, err = derOf(out); err == nil && !ecdsa.VerifyASN1(k.public, sum[:], out) {
			err = errors.New("its own public key does not verify it")
		}
	} else if len(out) != sha256.Size {
		err = fmt.Errorf("it has %d bytes, want %d", len(out), sha256.Size)
	}
	if err != nil {
		return wire.AuditSignReply{}, &wire.Error{Class: wire.ClassToken, Text: fmt.Sprintf("the signature of the audit key %s is of no use: %v", kek.ID(k.ID), err)}
	}
	return wire.AuditSignReply{Key: k.AuditKey, Signature: out}, nil
}

func ofID(id []byte) string {
	if id == nil {
		return ""
	}
	return fmt.Sprintf(" with CKA_ID %s", kek.ID(id))
}

// derOf makes ASN.1 of r ‖ s, which is how PKCS#11 has a signature.
func derOf(raw []byte) ([]byte, error) {
	if len(raw) == 0 || len(raw)%2 != 0 {
		return nil, fmt.Errorf("a signature of %d bytes", len(raw))
	}
	half := len(raw) / 2
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:half]), new(big.Int).SetBytes(raw[half:])})
}
