package worker

import (
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"kekd/hsm/p11"
	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// unwrapMechanism is a method in the words of PKCS#11.
func unwrapMechanism(m wire.ImportMethod) uint {
	switch m {
	case wire.RSAOAEP:
		return pkcs11.CKM_RSA_PKCS_OAEP
	case wire.RSAAESKeyWrap:
		return pkcs11.CKM_RSA_AES_KEY_WRAP
	}
	return p11.CKMAESKeyWrapKWP
}

// ImportState tells what the token has and can for the import of keys.
func (w *Worker) ImportState() (wire.ImportState, error) {
	state := wire.ImportState{Methods: []wire.ImportMethod{}, Pairs: []wire.WrappingKey{}, Leftovers: [][]byte{}}
	for _, m := range wire.ImportMethods() {
		// A mechanism that the token can't describe is one that it does not have.
		if info, err := w.module.GetMechanismInfo(w.slot, unwrapMechanism(m)); err == nil && info.Flags&pkcs11.CKF_UNWRAP != 0 {
			state.Methods = append(state.Methods, m)
		}
	}
	pairs, err := w.pairs()
	if err != nil {
		return wire.ImportState{}, err
	}
	whole := make(map[kek.ID]bool)
	for _, p := range pairs {
		k, err := w.describePair(p)
		if isClass(err, wire.ClassNoKey) {
			continue // half a pair
		}
		if err != nil {
			return wire.ImportState{}, err
		}
		whole[p.id] = true
		state.Pairs = append(state.Pairs, k)
	}
	err = w.onSession("list what imports have left", func(s session) error {
		state.Leftovers = state.Leftovers[:0]
		objects, err := w.findObjects(s, attr(pkcs11.CKA_LABEL, importLabel(w.ring)))
		if err != nil {
			return err
		}
		for _, o := range objects {
			id, err := w.module.GetAttribute(s.handle, o, pkcs11.CKA_ID)
			if err != nil {
				return err
			}
			if !whole[kek.ID(id)] {
				state.Leftovers = append(state.Leftovers, id)
			}
		}
		return nil
	})
	return state, err
}

// kwpSize is what AES key wrap with padding makes of a key of 32 bytes.
const kwpSize = 40

// Import unwraps a KEK. It is checked and proven under a label that no kekd looks
// at, since the owner's key may turn out to be another one; only then it gets the
// ring's.
func (w *Worker) Import(req wire.ImportRequest) (wire.CreateReply, error) {
	id := kek.ID(req.ID)
	key, mech, err := w.unwrapWith(req)
	if err != nil {
		return wire.CreateReply{}, err
	}
	if err := w.mustBeNew(id); err != nil {
		return wire.CreateReply{}, err
	}
	c, err := w.unwrapNew(req, key, mech)
	if err != nil {
		return wire.CreateReply{}, err
	}
	k, err := w.remember(id, *c)
	if err != nil {
		return wire.CreateReply{}, err
	}
	if err := checkImported(req, c.key.Attributes, k.kcv); err != nil {
		return wire.CreateReply{}, err
	}
	proof, err := w.proveNew(c, req.Mechanism)
	if err != nil {
		return wire.CreateReply{}, err
	}
	err = w.set("take the imported key into the ring", c.aes, attr(pkcs11.CKA_LABEL, w.ring))
	if refused := refused(err); refused != nil {
		refused.Hint = "an import needs a role that may change CKA_LABEL: no kekd may see the key before it is checked"
	}
	if err != nil {
		return wire.CreateReply{}, err
	}
	described, err := w.readBack(id)
	return wire.CreateReply{Key: described, Proof: proof}, err
}

// unwrapWith finds what unwraps, and refuses a wrapped key whose length is not
// that of a key of 32 bytes.
func (w *Worker) unwrapWith(req wire.ImportRequest) (pkcs11.ObjectHandle, p11.Mechanism, error) {
	id := kek.ID(req.WrappingKey)
	mech := p11.Mechanism{Type: unwrapMechanism(req.Method)}
	if req.Method == wire.AESKWP {
		if len(req.Wrapped) != kwpSize {
			return 0, mech, wrongLength(req, kwpSize)
		}
		key, err := w.unwrapper(id, pkcs11.CKO_SECRET_KEY, pkcs11.CKK_AES)
		if err != nil {
			return 0, mech, err
		}
		return key, mech, w.mayUnwrap(id, key)
	}
	for _, h := range oaepHashes() {
		if h.name == req.Hash {
			mech.Hash = h.mech
		}
	}
	p, err := w.pair(id)
	if err != nil {
		return 0, mech, err
	}
	want := p.public.Size()
	if req.Method == wire.RSAAESKeyWrap {
		want += kwpSize
	}
	if len(req.Wrapped) != want {
		return 0, mech, wrongLength(req, want)
	}
	key, err := w.privateKey(p)
	return key, mech, err
}

func wrongLength(req wire.ImportRequest, want int) *wire.Error {
	return &wire.Error{
		Class: wire.ClassRequest, Text: fmt.Sprintf("the wrapped key has %d bytes; an AES-256 key wrapped by %s for this wrapping key has %d", len(req.Wrapped), req.Method, want),
		Hint: "wrap the 32 raw bytes of the key, not a text of them, and name the --method that was used; the file holds the result as it is, neither base64 nor PEM",
	}
}

// mayUnwrap refuses an AES key that is a KEK of the ring: what it unwraps could be
// read by it as well.
func (w *Worker) mayUnwrap(id kek.ID, key pkcs11.ObjectHandle) error {
	var label []byte
	err := w.onSession("look at the wrapping key", func(s session) (err error) {
		label, err = w.module.GetAttribute(s.handle, key, pkcs11.CKA_LABEL)
		return err
	})
	if err == nil && ofRing(string(label), w.ring) {
		err = &wire.Error{Class: wire.ClassRefused, Text: fmt.Sprintf("key %s is a KEK of the ring; a KEK must not unwrap keys", id)}
	}
	return err
}

// unwrapNew unwraps the key under the label of imports and describes it.
func (w *Worker) unwrapNew(req wire.ImportRequest, key pkcs11.ObjectHandle, mech p11.Mechanism) (*candidate, error) {
	label := importLabel(w.ring)
	template := aesTemplate(label, kek.ID(req.ID))
	var o pkcs11.ObjectHandle
	err := w.once("unwrap the key", func(s session) (err error) {
		o, err = w.module.UnwrapKey(s.handle, key, mech, req.Wrapped, template)
		if e, ok := rvOf(err); ok && e.RV == pkcs11.CKR_TEMPLATE_INCOMPLETE {
			// Older Lunas want to be told what the others refuse to hear.
			o, err = w.module.UnwrapKey(s.handle, key, mech, req.Wrapped, append(template, attr(pkcs11.CKA_VALUE_LEN, 32)))
		}
		return err
	})
	if err != nil {
		return nil, w.unwrapFailure(req, err)
	}
	var c candidate
	err = w.onSession("look at the unwrapped key", func(s session) (err error) {
		c, err = w.describe(s, o)
		return err
	})
	if err != nil {
		return nil, err
	}
	c.key.Attributes.Label = label
	return &c, w.keepInside(&c)
}

// keepInside makes an unwrapped key sensitive and not extractable where the token
// did not listen to the template: opencryptoki 3.8 makes every unwrapped key
// extractable and readable, and lets both be changed to the safe side. What a
// token refuses to change is left to the check that follows.
func (w *Worker) keepInside(c *candidate) error {
	a := &c.key.Attributes
	for _, f := range []struct {
		name string
		typ  uint
		has  *bool
		want bool
	}{
		{"CKA_SENSITIVE", pkcs11.CKA_SENSITIVE, a.Sensitive, true},
		{"CKA_EXTRACTABLE", pkcs11.CKA_EXTRACTABLE, a.Extractable, false},
	} {
		if f.has == nil || *f.has == f.want {
			continue
		}
		err := w.set(fmt.Sprintf("set %s of the unwrapped key to %t", f.name, f.want), c.aes, attr(f.typ, f.want))
		if err != nil && !refusal(err) {
			return err
		}
		if err == nil {
			*f.has = f.want
		}
	}
	return nil
}

// unwrapFailure says what a failed C_UnwrapKey means to the one who wrapped.
func (w *Worker) unwrapFailure(req wire.ImportRequest, err error) error {
	e, ok := errors.AsType[*wire.Error](err)
	if !ok {
		return err
	}
	switch {
	case vague(e.RV):
		// SoftHSM 2.6 says so to a damaged key, and others when they are broken.
		if err := w.tokenAnswers(); err != nil {
			return err
		}
		e.Class = wire.ClassRequest
		fallthrough
	case e.Class == wire.ClassRequest:
		e.Hint = "the file is damaged, or was wrapped for another key pair or otherwise than --method and --hash say"
	case e.Class == wire.ClassRefused && req.Method != wire.AESKWP:
		e.Hint = "the token refuses the key or how it is wrapped: it must be 32 bytes, and kekctl key import begin shows the hashes that the token does"
	case e.Class == wire.ClassRefused:
		e.Hint = "the wrapping key must be an AES key with CKA_UNWRAP=true, and the wrapped one have 32 bytes"
	}
	return e
}

// checkImported refuses an unwrapped key that is not the AES-256 key of its owner,
// as far as anybody can tell. Many tokens do not tell the size of an unwrapped key
// (SoftHSM); its check value then stands for it, since the same key cut short has
// another one.
func checkImported(req wire.ImportRequest, a kek.Attributes, kcv kek.CheckValue) error {
	bad := func(class wire.Class, hint, format string, args ...any) error {
		return &wire.Error{Class: class, Text: fmt.Sprintf(format, args...), Hint: hint}
	}
	if err := safe(a); err != nil {
		return err
	}
	switch want := req.CheckValue; {
	case a.Bits != 0 && a.Bits != 256:
		return bad(wire.ClassRequest, "import 32 random bytes", "the unwrapped key has %d bits, want 256", a.Bits)
	case want != nil && kcv == kek.CheckValue{}:
		return bad(wire.ClassRefused, "import without --check-value, and compare by other means", "the token can't compute the check value of the unwrapped key")
	case want != nil && kcv != *want:
		return bad(wire.ClassRequest, "another key was wrapped, or one of another size, or --check-value belongs to another one",
			"the check value of the unwrapped key is %s, not %s", kcv, *want)
	case want == nil && a.Bits == 0 && req.Method == wire.RSAOAEP:
		return bad(wire.ClassRefused, "give --check-value: the first 3 bytes of sixteen zero bytes encrypted by AES-256-ECB under the key",
			"the token does not tell the size of the unwrapped key, so nothing shows that it has 256 bits")
	}
	return nil
}

// ImportAbort removes a one-time key pair, or a key whose import was cut off.
func (w *Worker) ImportAbort(id kek.ID) error {
	objects, err := w.importObjects(id)
	if err != nil {
		return err
	}
	if len(objects) == 0 {
		return noWrappingKey(id)
	}
	for _, o := range objects {
		if err := w.destroyObject("destroy what the import left", o); err != nil {
			return err
		}
	}
	// An HMAC key was made for a KEK that never came to be.
	hmac, err := w.companion(id)
	if err == nil && hmac != nil {
		err = w.destroyObject("destroy the HMAC key that the import left", *hmac)
	}
	if err != nil {
		return err
	}
	if objects, err = w.importObjects(id); err == nil && len(objects) > 0 {
		err = &wire.Error{Class: wire.ClassRefused, Text: fmt.Sprintf("the token says that it destroyed %s, and still has it", id), Hint: "destroy it by the vendor's tool"}
	}
	return err
}

// importObjects are the objects of all classes that an import made.
func (w *Worker) importObjects(id kek.ID) ([]pkcs11.ObjectHandle, error) {
	var found []pkcs11.ObjectHandle
	err := w.onSession("find what the import left", func(s session) (err error) {
		found, err = w.findObjects(s, attr(pkcs11.CKA_LABEL, importLabel(w.ring)), attr(pkcs11.CKA_ID, []byte(id)))
		return err
	})
	return found, err
}
