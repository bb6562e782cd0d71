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
//
// Each step rereads the key and continues only if the key is as it was seen, or
// as steps of this very change leave it. So a change whose answer was lost can be
// asked for again, and so can one that somebody else has made already: both want
// the same, and both succeed.
func (w *Worker) SetUse(req wire.SetUseRequest) (wire.SetUseReply, error) {
	id := kek.ID(req.ID)
	c, err := w.existing(id)
	if err != nil {
		return wire.SetUseReply{}, err
	}
	keeps := make(map[uint]bool) // rights that the token does not let go of
	done := false
	for i := 0; !done && i < maxSteps; i++ {
		if done, err = w.step(c, req, i == 0, keeps); err != nil {
			return wire.SetUseReply{}, err
		}
	}
	key, err := w.readBack(id)
	if err == nil && (!done || key.Attributes.Label != req.Label) {
		err = changed("key %s has the label %q now, although %q was set a moment ago", id, key.Attributes.Label, req.Label)
	}
	return wire.SetUseReply{Key: key}, err
}

// maxSteps is the label, two rights, and a last look, with some to spare.
const maxSteps = 8

// step makes the next change of SetUse, if one is left. keeps collects the rights
// that the token keeps.
func (w *Worker) step(c *candidate, req wire.SetUseRequest, first bool, keeps map[uint]bool) (done bool, err error) {
	id := kek.ID(req.ID)
	var next useStep
	err = w.onSession("change the state of key "+id.String(), func(s session) error {
		n, err := w.readNow(s, id, c.aes)
		if err != nil {
			return err
		}
		if !n.onTheWay(req) {
			return n.differs(id, req.Seen)
		}
		if first {
			if err := w.sameKey(s, id, c.aes, req.Seen.CheckValue); err != nil {
				return err
			}
		}
		if next = n.next(req, keeps); next.attribute == nil {
			done = true
			return nil
		}
		if !next.optional {
			if err := tooLate(next.text, req.NotAfter); err != nil {
				return err
			}
		}
		return w.setOn(s, c.aes, next)
	})
	if err != nil && next.optional && refusal(err) {
		keeps[next.attribute.Type] = true
		return false, nil
	}
	if e := refused(err); e != nil {
		e.Hint = next.hint
	}
	return done, err
}

// onTheWay reports whether a key is as it was seen, or as the steps of this change
// leave it.
func (n now) onTheWay(req wire.SetUseRequest) bool {
	rights := func(ok func(b bit) bool) bool {
		bits := n.bits(req.Seen)
		return ok(bits[0]) && ok(bits[1])
	}
	asSeenOrWanted := func(b bit) bool { return b.asSeen() || b.is(req.Usable) }
	switch {
	case n.label == req.Seen.Label && rights(bit.asSeen):
		return true
	case req.Usable && n.label == req.Label: // the last step is done
		return rights(func(b bit) bool { return b.is(true) })
	case req.Usable:
		return n.label == req.Seen.Label && rights(asSeenOrWanted)
	}
	return n.label == req.Label && rights(asSeenOrWanted)
}

// useStep is one change of SetUse. Its attribute is nil when there is none.
type useStep struct {
	text      string
	attribute *pkcs11.Attribute
	// before is what the token said of it, nil where nobody else may change it.
	before []byte
	// optional: the label has put the key out of use already, so a token that does
	// not let go of the right is not a failure.
	optional bool
	hint     string
}

// next finds the first change that is left.
func (n now) next(req wire.SetUseRequest, keeps map[uint]bool) useStep {
	id := kek.ID(req.ID)
	label := useStep{
		text: fmt.Sprintf("set the label of key %s to %q", id, req.Label), attribute: attr(pkcs11.CKA_LABEL, req.Label), before: []byte(n.label),
		hint: fmt.Sprintf("kekd reads a key's state off its label; where the role may not change it, set CKA_LABEL to %q by the vendor's tool", req.Label),
	}
	if !req.Usable && n.label != req.Label {
		return label
	}
	for _, b := range n.bits(req.Seen) {
		if b.is(req.Usable) || keeps[b.typ] {
			continue
		}
		right := useStep{attribute: attr(b.typ, req.Usable), before: attr(b.typ, *b.now).Value}
		if req.Usable {
			right.text = fmt.Sprintf("the token keeps key %s unusable: set %s to true", id, b.name)
			right.hint = fmt.Sprintf("give it %s=true by the vendor's tool; if the token never gives a right back, the key stays out of use", b.name)
		} else {
			right.text, right.optional = fmt.Sprintf("set %s of key %s to false", b.name, id), true
		}
		return right
	}
	if n.label != req.Label {
		return label
	}
	return useStep{}
}

// setOn makes a change and makes sure that the token did, and that nobody else
// made another one at the same time.
func (w *Worker) setOn(s session, o pkcs11.ObjectHandle, step useStep) error {
	want := step.attribute.Value
	err := w.module.SetAttribute(s.handle, o, step.attribute)
	var got []byte
	if err == nil {
		got, err = w.module.GetAttribute(s.handle, o, step.attribute.Type)
	}
	if e, ok := rvOf(err); ok {
		if _, what := judge(e); what == giveUp {
			return fail(step.text, err)
		}
	}
	switch {
	case err != nil: // worth another try
		return err
	case bytes.Equal(got, want):
		return nil
	case step.before != nil && !bytes.Equal(got, step.before):
		return changed("%s: somebody else set it to %q at the same time", step.text, got)
	}
	return &wire.Error{Class: wire.ClassRefused, Text: step.text + ": the token accepts the change and does not make it"}
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

// refusal reports whether the token does not do what it was asked, rather than
// that it is broken. A broken one fails at the next call.
func refusal(err error) bool {
	e, ok := errors.AsType[*wire.Error](err)
	return ok && (e.Class == wire.ClassRefused || vague(e.RV))
}

// set changes an attribute and makes sure that the token did.
func (w *Worker) set(text string, o pkcs11.ObjectHandle, a *pkcs11.Attribute) error {
	return w.onSession(text, func(s session) error { return w.setOn(s, o, useStep{text: text, attribute: a}) })
}
