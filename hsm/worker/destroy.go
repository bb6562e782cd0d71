package worker

import (
	"fmt"
	"time"

	"github.com/miekg/pkcs11"

	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// Destroy destroys a KEK, then the HMAC key beside it. In this order, since a KEK
// without its HMAC key is half usable, and an HMAC key without its KEK is of no
// use to anybody: whoever is interrupted in between calls again. The KEK must be
// as it was seen. An HMAC key without a KEK is not compared: nothing is left that
// could have changed.
func (w *Worker) Destroy(req wire.DestroyRequest) error {
	id := kek.ID(req.ID)
	c, err := w.search(id)
	if err == nil && c == nil {
		// SoftHSM has no object for a moment while another process writes it, and an
		// HMAC key must not go before its KEK.
		time.Sleep(retryPause)
		c, err = w.search(id)
	}
	if err != nil {
		return err
	}
	if c != nil {
		if err := w.destroySeen(c, req); err != nil {
			return err
		}
		// From now on, not to find the key is no sign of a token that was lost.
		w.forget(id)
	}
	hmac, err := w.companion(id)
	if err != nil {
		return err
	}
	if c == nil && hmac == nil {
		return w.noKey(id)
	}
	if hmac != nil {
		if c == nil {
			if err := tooLate("destroy the HMAC key of key "+id.String(), req.NotAfter); err != nil {
				return err
			}
		}
		if err := w.destroyObject("destroy the HMAC key of key "+id.String(), *hmac); err != nil {
			return err
		}
	}
	if c, err = w.search(id); err != nil {
		return err
	}
	if hmac, err = w.companion(id); err != nil {
		return err
	}
	if c != nil || hmac != nil {
		return &wire.Error{
			Class: wire.ClassRefused, Text: fmt.Sprintf("the token says that it destroyed key %s, and still has it", id),
			Hint: "destroy it by the vendor's tool",
		}
	}
	return nil
}

// destroySeen destroys a KEK if it is as it was seen, in the session in which it
// looks.
func (w *Worker) destroySeen(c *candidate, req wire.DestroyRequest) error {
	id := kek.ID(req.ID)
	text := "destroy key " + id.String()
	begun := false
	err := w.run(text, plan{tries: 2, begun: func() bool { return begun }}, func(s session) error {
		if err := w.sameKey(s, id, c.aes, req.Seen.CheckValue); err != nil {
			return err
		}
		n, err := w.readNow(s, id, c.aes)
		if err != nil {
			return err
		}
		if err := n.differs(id, req.Seen); err != nil {
			return err
		}
		if err := tooLate(text, req.NotAfter); err != nil {
			return err
		}
		begun = true
		return w.module.DestroyObject(s.handle, c.aes)
	})
	return w.explainRefusal(c.aes, err)
}

// forget drops the handles of a key that this process took off the token.
func (w *Worker) forget(id kek.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.handles, id)
}

// companion finds the HMAC key of a KEK, with or without the KEK; nil when there
// is none.
func (w *Worker) companion(id kek.ID) (*pkcs11.ObjectHandle, error) {
	var found *pkcs11.ObjectHandle
	err := w.onSession("find the HMAC key of key "+id.String(), func(s session) error {
		companions, err := w.companions(s, &id)
		if o, ok := companions[id]; ok {
			found = &o
		}
		return err
	})
	return found, err
}

// destroyObject destroys an object, and says what stands in the way.
func (w *Worker) destroyObject(text string, o pkcs11.ObjectHandle) error {
	return w.explainRefusal(o, w.once(text, func(s session) error { return w.module.DestroyObject(s.handle, o) }))
}

// explainRefusal adds to the error of a destruction why the token refuses it.
func (w *Worker) explainRefusal(o pkcs11.ObjectHandle, err error) error {
	refused := refused(err)
	if refused == nil {
		return err
	}
	refused.Hint = "the role may not destroy keys: use the vendor's tool, as the token's administrator"
	var destroyable *bool
	err = w.onSession("read CKA_DESTROYABLE", func(s session) (err error) {
		destroyable, err = w.readBool(s, o, pkcs11.CKA_DESTROYABLE)
		return err
	})
	if err == nil && destroyable != nil && !*destroyable {
		refused.Text += ": it has CKA_DESTROYABLE=false"
		refused.Hint = "no program can destroy the key one by one: it ends with its token or partition; a disabled key is out of use all the same"
	}
	return refused
}
