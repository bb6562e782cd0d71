package worker

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// SetUse changes a key's state. The label counts, which every kekd reads; the
// rights to encrypt and decrypt follow it where the token lets them. They go last
// and come first, so that whoever is interrupted in between leaves a key that
// the label keeps out of use.
func (w *Worker) SetUse(req wire.SetUseRequest) (wire.SetUseReply, error) {
	id := kek.ID(req.ID)
	c, err := w.existing(id)
	if err != nil {
		return wire.SetUseReply{}, err
	}
	if req.Usable {
		if err = w.allow(id, c); err == nil {
			err = w.relabel(id, c, req.Label)
		}
	} else {
		if err = w.relabel(id, c, req.Label); err == nil {
			err = w.forbid(id, c)
		}
	}
	if err != nil {
		return wire.SetUseReply{}, err
	}
	key, err := w.readBack(id)
	return wire.SetUseReply{Key: key}, err
}

// existing is search for a key that must be there.
func (w *Worker) existing(id kek.ID) (*candidate, error) {
	c, err := w.search(id)
	if err == nil && c == nil {
		err = w.noKey(id)
	}
	return c, err
}

// readBack describes a key as the token has it now.
func (w *Worker) readBack(id kek.ID) (wire.Key, error) {
	c, err := w.existing(id)
	if err != nil {
		return wire.Key{}, err
	}
	k, err := w.remember(id, *c)
	if err != nil {
		return wire.Key{}, err
	}
	c.key.CheckValue, c.key.HMAC = k.kcv, k.hasHMAC
	return c.key, nil
}

// relabel sets a key's label.
func (w *Worker) relabel(id kek.ID, c *candidate, label string) error {
	if c.key.Attributes.Label == label {
		return nil
	}
	err := w.set(fmt.Sprintf("set the label of key %s to %q", id, label), c.aes, attr(pkcs11.CKA_LABEL, label))
	if refused, ok := errors.AsType[*wire.Error](err); ok && refused.Class == wire.ClassRefused {
		refused.Hint = fmt.Sprintf("kekd reads a key's state off its label; where the role may not change it, set CKA_LABEL to %q by the vendor's tool", label)
	}
	return err
}

// right is a usage bit of a KEK.
type right struct {
	name string
	typ  uint
	// has is what the token said of it, nil if nothing.
	has *bool
}

func rights(c *candidate) []right {
	return []right{
		{"CKA_ENCRYPT", pkcs11.CKA_ENCRYPT, c.key.Attributes.Encrypt},
		{"CKA_DECRYPT", pkcs11.CKA_DECRYPT, c.key.Attributes.Decrypt},
	}
}

// allow gives a key its rights back. Those that it does not lack are left alone.
func (w *Worker) allow(id kek.ID, c *candidate) error {
	for _, r := range rights(c) {
		if r.has == nil || *r.has {
			continue
		}
		err := w.set(fmt.Sprintf("the token keeps key %s unusable: set %s to true", id, r.name), c.aes, attr(r.typ, true))
		if refused, ok := errors.AsType[*wire.Error](err); ok && refused.Class == wire.ClassRefused {
			refused.Hint = fmt.Sprintf("give it %s=true by the vendor's tool; if the token never gives a right back, the key stays out of use", r.name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// forbid takes a key's rights. The label has put the key out of use already, so a
// token that does not let go of them is no failure.
func (w *Worker) forbid(id kek.ID, c *candidate) error {
	for _, r := range rights(c) {
		if r.has == nil || !*r.has {
			continue
		}
		err := w.set(fmt.Sprintf("set %s of key %s to false", r.name, id), c.aes, attr(r.typ, false))
		if err != nil && !refusal(err) {
			return err
		}
	}
	return nil
}

// refusal reports whether the token does not do what it was asked, rather than
// that it is broken. A broken one fails at the next call.
func refusal(err error) bool {
	e, ok := errors.AsType[*wire.Error](err)
	return ok && (e.Class == wire.ClassRefused || vague(e.RV))
}

// set changes an attribute and makes sure that the token did.
func (w *Worker) set(text string, o pkcs11.ObjectHandle, a *pkcs11.Attribute) error {
	var now []byte
	err := w.onSession(text, func(s session) error {
		err := w.module.SetAttribute(s.handle, o, a)
		if err == nil {
			now, err = w.module.GetAttribute(s.handle, o, a.Type)
		}
		return err
	})
	if err == nil && !bytes.Equal(now, a.Value) {
		err = &wire.Error{Class: wire.ClassRefused, Text: text + ": the token accepts the change and does not make it"}
	}
	return err
}
