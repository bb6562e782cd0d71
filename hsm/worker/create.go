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
	return append(aesTemplate(ring, id), attr(pkcs11.CKA_VALUE_LEN, 32))
}

// aesTemplate is kekTemplate for a key that brings its size along.
func aesTemplate(label string, id kek.ID) []*pkcs11.Attribute {
	return append(secretTemplate(label, id),
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
	return append(secretTemplate(ring, id+hmacSuffix),
		attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET), attr(pkcs11.CKA_VALUE_LEN, 32),
		attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_DECRYPT, false),
		attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_VERIFY, false),
	)
}

func secretTemplate(label string, id kek.ID) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_ID, []byte(id)),
		attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_WRAP, false), attr(pkcs11.CKA_UNWRAP, false), attr(pkcs11.CKA_DERIVE, false),
	}
}

// Create makes a KEK with the given CKA_ID and proves it. A key that can't be
// proven, or that the token made other than it was told, is refused; Abandon
// removes it, since nothing was ever encrypted under it.
func (w *Worker) Create(req wire.CreateRequest) (wire.CreateReply, error) {
	id := kek.ID(req.ID)
	if err := w.mustBeNew(id); err != nil {
		return wire.CreateReply{}, err
	}
	if _, err := w.generate("create the KEK", pkcs11.CKM_AES_KEY_GEN, kekTemplate(w.ring, id)); err != nil {
		return wire.CreateReply{}, err
	}
	c, err := w.existing(id)
	if err != nil {
		return wire.CreateReply{}, err
	}
	proof, err := w.proveNew(c, req.Mechanism)
	if err != nil {
		return wire.CreateReply{}, err
	}
	if err := safe(c.key.Attributes); err != nil {
		return wire.CreateReply{}, err
	}
	key, err := w.readBack(id)
	return wire.CreateReply{Key: key, Proof: proof}, err
}

// mustBeNew refuses an id that a key of the ring has.
func (w *Worker) mustBeNew(id kek.ID) error {
	existing, err := w.search(id)
	if err == nil && existing != nil {
		err = &wire.Error{Class: wire.ClassAmbiguous, Text: fmt.Sprintf("a key with CKA_ID %s exists already", id)}
	}
	return err
}

// Abandon destroys what a create or an import of this CKA_ID has left, and makes
// sure that it is gone. The objects are found by their CKA_ID, since a call that
// fails gives no handle and may have made them all the same: SoftHSM keeps half a
// key. Objects of other labels are not touched.
func (w *Worker) Abandon(req wire.AbandonRequest) (wire.AbandonReply, error) {
	id := kek.ID(req.ID)
	w.forget(id)
	left, err := w.leftOf(id)
	if err == nil && len(left) == 0 {
		err = w.tokenAnswers() // some modules show an empty token when theirs is gone
	}
	if err != nil {
		return wire.AbandonReply{}, err
	}
	if req.Keep {
		c, err := w.search(id)
		if err != nil || c != nil {
			return wire.AbandonReply{Found: len(left), Kept: true}, err
		}
	}
	for _, o := range left {
		if err := w.destroyObject("destroy the new key", o); err != nil {
			return wire.AbandonReply{}, err
		}
	}
	again, err := w.leftOf(id)
	if err == nil && len(again) > 0 {
		err = &wire.Error{Class: wire.ClassRefused, Text: fmt.Sprintf("the token says that it destroyed key %s, and still has it", id)}
	}
	if err == nil {
		err = w.tokenAnswers()
	}
	return wire.AbandonReply{Found: len(left)}, err
}

// leftOf finds the objects of a key that is being made, finished or not.
func (w *Worker) leftOf(id kek.ID) ([]pkcs11.ObjectHandle, error) {
	var left []pkcs11.ObjectHandle
	err := w.onSession("find what is left of key "+id.String(), func(s session) error {
		left = nil
		for _, of := range []kek.ID{id, id + hmacSuffix} {
			for _, label := range []string{w.ring, importLabel(w.ring)} {
				found, err := w.findUnfinished(s, attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_ID, []byte(of)))
				if err != nil {
					return err
				}
				left = append(left, found...)
			}
		}
		return nil
	})
	return left, err
}

func (w *Worker) generate(text string, mech uint, template []*pkcs11.Attribute) (o pkcs11.ObjectHandle, err error) {
	err = w.once(text, func(s session) (err error) {
		o, err = w.module.GenerateKey(s.handle, mech, template)
		return err
	})
	return o, err
}

// proveNew proves a new KEK, and gives it an HMAC key where it needs one.
func (w *Worker) proveNew(c *candidate, mechanism string) (wire.ProveReply, error) {
	id := kek.ID(c.key.ID)
	if _, err := w.remember(id, *c); err != nil {
		return wire.ProveReply{}, err
	}
	req := wire.ProveRequest{ID: c.key.ID, Mechanism: mechanism}
	proof, err := w.Prove(req)
	if !isClass(err, wire.ClassRefused) || !wantsHMAC(mechanism) || w.offers(cbcHMAC) != "" {
		return proof, err
	}
	hmac, err := w.generate("create the HMAC key beside the KEK", pkcs11.CKM_GENERIC_SECRET_KEY_GEN, hmacTemplate(w.ring, id))
	if err != nil {
		return wire.ProveReply{}, err
	}
	c.hmac, c.hasHMAC = hmac, true
	if _, err := w.remember(id, *c); err != nil {
		return wire.ProveReply{}, err
	}
	return w.Prove(req)
}

// safe refuses a new KEK that could leave the token.
func safe(a kek.Attributes) error {
	var bad []string
	if a.Extractable != nil && *a.Extractable {
		bad = append(bad, "CKA_EXTRACTABLE=true")
	}
	if a.Sensitive != nil && !*a.Sensitive {
		bad = append(bad, "CKA_SENSITIVE=false")
	}
	if bad == nil {
		return nil
	}
	return &wire.Error{
		Class: wire.ClassRefused, Text: "the token made the key with " + strings.Join(bad, " and ") + " although it was told otherwise",
		Hint: "check the partition's policy; a KEK that can leave the HSM is of no use",
	}
}
