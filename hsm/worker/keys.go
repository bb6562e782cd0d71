package worker

import (
	"fmt"
	"strings"
	"time"

	"github.com/miekg/pkcs11"

	"kekd/hsm/p11"
	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// maxObjects bounds a search for keys on the token.
const maxObjects = 10_000

func attr(typ uint, value any) *pkcs11.Attribute { return pkcs11.NewAttribute(typ, value) }

// findObjects searches the token. It asks for finished objects of the token only:
// SoftHSM 2.6 lets other processes see an object while it is being made, and when
// one of them then reads an attribute, the module gives the object all attributes
// that it lacks so far and writes that to disk, over what the maker has written in
// the meantime. The new key is lost. Until an object is finished there its
// CKA_TOKEN is false, and a search compares attributes without that effect.
func (w *Worker) findObjects(s session, template ...*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	return w.findUnfinished(s, append(template, attr(pkcs11.CKA_TOKEN, true))...)
}

// findUnfinished is findObjects for objects that may never have been finished. Who
// finds one destroys it and reads nothing of it that its maker may still write.
//
// What a session finds that is not logged in is not believed: it sees no private
// object, and says so with CKR_OK. A module may log out or close all sessions by
// itself, and the next one that it opens is such a session.
func (w *Worker) findUnfinished(s session, template ...*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	found, err := w.module.FindObjects(s.handle, template, maxObjects)
	if err != nil || !w.login {
		return found, err
	}
	state, err := w.module.SessionState(s.handle)
	e, ok := rvOf(err)
	switch {
	case ok && e.RV == pkcs11.CKR_FUNCTION_NOT_SUPPORTED:
		return found, nil // nobody can tell
	case err != nil:
		return nil, err
	case state == pkcs11.CKS_RO_PUBLIC_SESSION || state == pkcs11.CKS_RW_PUBLIC_SESSION:
		return nil, p11.Error{Call: "C_FindObjects", RV: pkcs11.CKR_USER_NOT_LOGGED_IN}
	}
	return found, nil
}

// ofRing reports whether a CKA_LABEL belongs to the ring: the ring's own label,
// or that label with a suffix that marks a state.
func ofRing(label, ring string) bool {
	return label == ring || strings.HasPrefix(label, ring+"/")
}

// Keys lists the ring, in no order. Keys of other labels are not touched.
func (w *Worker) Keys() (wire.KeysReply, error) {
	found, err := w.list()
	reply := wire.KeysReply{Keys: make([]wire.Key, 0, len(found))}
	for _, c := range found {
		reply.Keys = append(reply.Keys, c.key)
	}
	return reply, err
}

// list finds all keys of the ring and remembers them.
func (w *Worker) list() ([]candidate, error) {
	found, err := w.scan()
	if _, gone := w.missing(found); err == nil && gone {
		// SoftHSM has no object for a moment while another process writes it.
		time.Sleep(retryPause)
		found, err = w.scan()
	}
	if err != nil {
		return nil, err
	}
	if err := w.tokenAnswers(); err != nil {
		return nil, err
	}
	present := make(map[kek.ID]bool)
	for i := range found {
		c := &found[i]
		id := kek.ID(c.key.ID)
		if present[id] {
			continue // has no check value, and the parent refuses duplicates anyway
		}
		present[id] = true
		k, err := w.remember(id, *c)
		if err != nil {
			return nil, err
		}
		c.key.CheckValue, c.key.HMAC = k.kcv, k.hasHMAC
	}
	if id, gone := w.missing(found); gone {
		return nil, vanished(id)
	}
	return found, nil
}

// missing names a key that this process has met and that is not among those found.
func (w *Worker) missing(found []candidate) (kek.ID, bool) {
	present := make(map[kek.ID]bool)
	for _, c := range found {
		present[kek.ID(c.key.ID)] = true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.handles {
		if !present[id] {
			return id, true
		}
	}
	return "", false
}

// vanished reports a key that this process has met and can't find any more. It
// may be destroyed, or the module may have lost the token without saying so:
// only a fresh process can tell, so this counts as the token's fault here.
func vanished(id kek.ID) *wire.Error {
	return &wire.Error{Class: wire.ClassToken, Text: fmt.Sprintf("key %s is not found any more", id)}
}

// candidate is an AES key of the ring as a search found it.
type candidate struct {
	key     wire.Key
	aes     pkcs11.ObjectHandle
	hmac    pkcs11.ObjectHandle
	hasHMAC bool
}

// scan finds all AES keys of the ring and their HMAC companions.
func (w *Worker) scan() ([]candidate, error) {
	var found []candidate
	err := w.onSession("list the keys", func(s session) error {
		companions, err := w.companions(s, nil)
		if err != nil {
			return err
		}
		objects, err := w.findObjects(s,
			attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES))
		if err != nil {
			return err
		}
		if found, err = w.members(s, objects); err != nil {
			return err
		}
		for i := range found {
			found[i].hmac, found[i].hasHMAC = companions[kek.ID(found[i].key.ID)]
		}
		return nil
	})
	return found, err
}

// members describes those of the objects that belong to the ring.
func (w *Worker) members(s session, objects []pkcs11.ObjectHandle) ([]candidate, error) {
	var found []candidate
	for _, o := range objects {
		label, err := w.module.GetAttribute(s.handle, o, pkcs11.CKA_LABEL)
		if err != nil {
			return nil, err
		}
		if !ofRing(string(label), w.ring) {
			continue
		}
		c, err := w.describe(s, o)
		if err != nil {
			return nil, err
		}
		c.key.Attributes.Label = string(label)
		found = append(found, c)
	}
	return found, nil
}

// companions finds the HMAC keys of the ring, or of one KEK of it, by the KEK's id.
func (w *Worker) companions(s session, id *kek.ID) (map[kek.ID]pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
	}
	if id != nil {
		template = append(template, attr(pkcs11.CKA_ID, []byte(*id+hmacSuffix)))
	}
	objects, err := w.findObjects(s, template...)
	if err != nil {
		return nil, err
	}
	byID := make(map[kek.ID]pkcs11.ObjectHandle)
	for _, o := range objects {
		label, err := w.module.GetAttribute(s.handle, o, pkcs11.CKA_LABEL)
		if err != nil {
			return nil, err
		}
		if !ofRing(string(label), w.ring) {
			continue
		}
		b, err := w.module.GetAttribute(s.handle, o, pkcs11.CKA_ID)
		if err != nil {
			return nil, err
		}
		if of, ok := strings.CutSuffix(string(b), hmacSuffix); ok {
			byID[kek.ID(of)] = o
		}
	}
	return byID, nil
}

// describe reads an AES key's attributes but the label.
func (w *Worker) describe(s session, o pkcs11.ObjectHandle) (candidate, error) {
	id, err := w.module.GetAttribute(s.handle, o, pkcs11.CKA_ID)
	if err != nil {
		return candidate{}, err
	}
	c := candidate{aes: o, key: wire.Key{ID: id}}
	a := &c.key.Attributes
	for _, f := range []struct {
		typ uint
		to  **bool
	}{
		{pkcs11.CKA_ENCRYPT, &a.Encrypt}, {pkcs11.CKA_DECRYPT, &a.Decrypt},
		{pkcs11.CKA_SENSITIVE, &a.Sensitive}, {pkcs11.CKA_EXTRACTABLE, &a.Extractable},
		{pkcs11.CKA_ALWAYS_SENSITIVE, &a.AlwaysSensitive}, {pkcs11.CKA_NEVER_EXTRACTABLE, &a.NeverExtractable},
		{pkcs11.CKA_LOCAL, &a.Local},
	} {
		if *f.to, err = w.readBool(s, o, f.typ); err != nil {
			return candidate{}, err
		}
	}
	size, err := w.readUlong(s, o, pkcs11.CKA_VALUE_LEN)
	if err != nil {
		return candidate{}, err
	}
	a.Bits = int(size) * 8
	return c, nil
}

// key returns the handles of a key, searching for it at its first use.
func (w *Worker) key(id kek.ID) (*handle, error) {
	w.mu.Lock()
	k := w.handles[id]
	w.mu.Unlock()
	if k != nil {
		return k, nil
	}
	k, err := w.find(id)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return nil, w.noKey(id)
	}
	return k, nil
}

func (w *Worker) noKey(id kek.ID) *wire.Error {
	return &wire.Error{
		Class: wire.ClassNoKey, Text: fmt.Sprintf("the token has no AES key with CKA_ID %s in the ring %q", id, w.ring),
		Hint: "kekctl key list shows the ring",
	}
}

// find searches the token for a key of the ring and remembers it; nil when there
// is none.
func (w *Worker) find(id kek.ID) (*handle, error) {
	c, err := w.search(id)
	if err != nil || c == nil {
		return nil, err
	}
	return w.remember(id, *c)
}

// search describes a key of the ring as the token has it now; nil when there is
// none.
func (w *Worker) search(id kek.ID) (*candidate, error) {
	found, err := w.searchOnce(id)
	if err == nil && len(found) == 0 && w.known(id) {
		time.Sleep(retryPause) // as in list
		found, err = w.searchOnce(id)
	}
	if err != nil {
		return nil, err
	}
	switch len(found) {
	case 1:
		return &found[0], nil
	case 0:
		if err := w.tokenAnswers(); err != nil {
			return nil, err
		}
		if w.known(id) {
			return nil, vanished(id)
		}
		return nil, nil
	}
	return nil, &wire.Error{
		Class: wire.ClassAmbiguous, Text: fmt.Sprintf("%d keys have CKA_ID %s in the ring %q", len(found), id, w.ring),
		Hint: "give each key an id of its own, for example with pkcs11-tool --set-id",
	}
}

// known reports whether this process has met the key.
func (w *Worker) known(id kek.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.handles[id] != nil
}

func (w *Worker) searchOnce(id kek.ID) ([]candidate, error) {
	var found []candidate
	err := w.onSession("find key "+id.String(), func(s session) error {
		objects, err := w.findObjects(s,
			attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
			attr(pkcs11.CKA_ID, []byte(id)))
		if err != nil {
			return err
		}
		if found, err = w.members(s, objects); err != nil || len(found) != 1 {
			return err
		}
		companions, err := w.companions(s, &id)
		if err != nil {
			return err
		}
		found[0].hmac, found[0].hasHMAC = companions[id]
		return nil
	})
	return found, err
}

// unfinishedTries is how often, retryPause apart, a key that may still be in the making
// is looked at again.
const unfinishedTries = 10

// remember keeps a key's handles. The check value is computed once for each
// object, and again when a key that had none may encrypt or is finished by now;
// another one under a known id means that the key was swapped.
func (w *Worker) remember(id kek.ID, c candidate) (*handle, error) {
	w.mu.Lock()
	old := w.handles[id]
	w.mu.Unlock()
	var unknown kek.CheckValue
	is := func(b *bool, where bool) bool { return b == nil && where || b != nil && *b }
	k := &handle{aes: c.aes, hmac: c.hmac, hasHMAC: c.hasHMAC, encrypts: is(c.key.Attributes.Encrypt, true), local: is(c.key.Attributes.Local, false)}
	if old != nil {
		k.kcv = old.kcv
		if *k == *old || k.kcv != unknown && k.sameObjects(old) {
			return old, nil
		}
	}
	kcv, err := w.checkValue(c.aes)
	for try := 0; err == nil && kcv == unknown && k.encrypts && !k.local && try < unfinishedTries; try++ {
		// SoftHSM shows other processes a key before it has a value and CKA_LOCAL, and
		// refuses to use it until then. A node that did not wait would publish another
		// key_id than the rest.
		time.Sleep(retryPause)
		kcv, err = w.checkValue(c.aes)
	}
	if err != nil {
		return nil, err
	}
	if old != nil && old.kcv != unknown && kcv != unknown && old.kcv != kcv {
		return nil, &wire.Error{Class: wire.ClassToken, Text: fmt.Sprintf(
			"the check value of key %s changed from %s to %s", id, old.kcv, kcv)}
	}
	k.kcv = kcv
	w.mu.Lock()
	w.handles[id] = k
	w.mu.Unlock()
	return k, nil
}
