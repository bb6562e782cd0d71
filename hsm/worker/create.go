package worker

import (
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// kekTemplate is a new KEK: AES-256, generated on the token, never to leave it,
// good for encryption and nothing else. Every usage bit is stated, since modules
// differ in their defaults.
func kekTemplate(ring string, id kek.ID) []*pkcs11.Attribute {
	return append(ringTemplate(ring, id),
		attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		attr(pkcs11.CKA_ENCRYPT, true), attr(pkcs11.CKA_DECRYPT, true),
		attr(pkcs11.CKA_SIGN, false), attr(pkcs11.CKA_VERIFY, false),
	)
}

// hmacSuffix makes the CKA_ID of an HMAC key out of its KEK's. The two can't
// share one: NSS softokn replaces a key by the next one of the same id, and
// CloudHSM's tools want ids to be unique.
const hmacSuffix = "/hmac"

// hmacTemplate is the companion key for aes-cbc-hmac.
func hmacTemplate(ring string, id kek.ID) []*pkcs11.Attribute {
	return append(ringTemplate(ring, id+hmacSuffix),
		attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_DECRYPT, false),
		attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_VERIFY, false),
	)
}

func ringTemplate(ring string, id kek.ID) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attr(pkcs11.CKA_LABEL, ring), attr(pkcs11.CKA_ID, []byte(id)),
		attr(pkcs11.CKA_VALUE_LEN, 32),
		attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_WRAP, false), attr(pkcs11.CKA_UNWRAP, false), attr(pkcs11.CKA_DERIVE, false),
	}
}

// Create makes a KEK with the given CKA_ID and proves it. A key that can't be
// proven, or that the token made other than it was told, is destroyed again:
// nothing was ever encrypted under it.
func (w *Worker) Create(req wire.CreateRequest) (wire.CreateReply, error) {
	id := kek.ID(req.ID)
	if existing, err := w.find(id); err != nil {
		return wire.CreateReply{}, err
	} else if existing != nil {
		return wire.CreateReply{}, &wire.Error{Class: wire.ClassAmbiguous, Text: fmt.Sprintf("a key with CKA_ID %s exists already", id)}
	}
	var made []pkcs11.ObjectHandle
	reply, err := w.create(id, req.Mechanism, &made)
	if err == nil {
		return reply, nil
	}
	w.mu.Lock()
	delete(w.handles, id)
	w.mu.Unlock()
	for _, o := range made {
		undo := w.once("destroy the new key", func(s session) error { return w.module.DestroyObject(s.handle, o) })
		if undo != nil {
			return wire.CreateReply{}, &wire.Error{
				Class: wire.ClassRefused, Text: fmt.Sprintf("%v; and the new key could not be removed: %v", err, undo),
				Hint: fmt.Sprintf("remove the key with CKA_ID %s by the vendor's tool", id),
			}
		}
	}
	return wire.CreateReply{}, err
}

func (w *Worker) create(id kek.ID, mechanism string, made *[]pkcs11.ObjectHandle) (wire.CreateReply, error) {
	generate := func(text string, mech uint, template []*pkcs11.Attribute) error {
		return w.once(text, func(s session) error {
			o, err := w.module.GenerateKey(s.handle, mech, template)
			if err == nil {
				*made = append(*made, o)
			}
			return err
		})
	}
	if err := generate("create the KEK", pkcs11.CKM_AES_KEY_GEN, kekTemplate(w.ring, id)); err != nil {
		return wire.CreateReply{}, err
	}
	proof, err := w.Prove(wire.ProveRequest{ID: []byte(id), Mechanism: mechanism})
	if isClass(err, wire.ClassRefused) && wantsHMAC(mechanism) && w.offers(cbcHMAC) == "" {
		if err := generate("create the HMAC key beside the KEK", pkcs11.CKM_GENERIC_SECRET_KEY_GEN, hmacTemplate(w.ring, id)); err != nil {
			return wire.CreateReply{}, err
		}
		if _, err := w.find(id); err != nil { // the handles with the companion
			return wire.CreateReply{}, err
		}
		proof, err = w.Prove(wire.ProveRequest{ID: []byte(id), Mechanism: mechanism})
	}
	if err != nil {
		return wire.CreateReply{}, err
	}
	all, err := w.Keys()
	if err != nil {
		return wire.CreateReply{}, err
	}
	for _, k := range all.Keys {
		if kek.ID(k.ID) != id {
			continue
		}
		if bad := unsafeAttributes(k.Attributes); bad != "" {
			return wire.CreateReply{}, &wire.Error{
				Class: wire.ClassRefused, Text: "the token made the key with " + bad + " although it was told otherwise",
				Hint: "check the partition's policy; a KEK that can leave the HSM is of no use",
			}
		}
		return wire.CreateReply{Key: k, Proof: proof}, nil
	}
	return wire.CreateReply{}, vanished(id)
}

// unsafeAttributes names what would let a key leave the token.
func unsafeAttributes(a kek.Attributes) string {
	var bad []string
	if a.Extractable != nil && *a.Extractable {
		bad = append(bad, "CKA_EXTRACTABLE=true")
	}
	if a.Sensitive != nil && !*a.Sensitive {
		bad = append(bad, "CKA_SENSITIVE=false")
	}
	return strings.Join(bad, " and ")
}
