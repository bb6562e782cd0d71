package worker

import (
	"encoding/binary"

	"github.com/miekg/pkcs11"

	"kekd/hsm/wire"
)

// Evidence tells of every key of the ring what the token does.
func (w *Worker) Evidence() (wire.EvidenceReply, error) {
	found, err := w.list()
	if err != nil {
		return wire.EvidenceReply{}, err
	}
	reply := wire.EvidenceReply{Keys: make([]wire.Evidence, 0, len(found))}
	for _, c := range found {
		e := wire.Evidence{Key: c.key}
		err := w.onSession("read the attributes of a key", func(s session) error { return w.readEvidence(s, c.aes, &e) })
		if err != nil {
			return wire.EvidenceReply{}, err
		}
		reply.Keys = append(reply.Keys, e)
	}
	return reply, nil
}

// readEvidence reads what describe does not.
func (w *Worker) readEvidence(s session, o pkcs11.ObjectHandle, e *wire.Evidence) error {
	for _, f := range []struct {
		typ uint
		to  **bool
	}{
		{pkcs11.CKA_WRAP, &e.Wrap}, {pkcs11.CKA_UNWRAP, &e.Unwrap}, {pkcs11.CKA_SIGN, &e.Sign},
		{pkcs11.CKA_VERIFY, &e.Verify}, {pkcs11.CKA_DERIVE, &e.Derive}, {pkcs11.CKA_TOKEN, &e.Token},
		{pkcs11.CKA_PRIVATE, &e.Private}, {pkcs11.CKA_MODIFIABLE, &e.Modifiable}, {pkcs11.CKA_DESTROYABLE, &e.Destroyable},
	} {
		var err error
		if *f.to, err = w.readBool(s, o, f.typ); err != nil {
			return err
		}
	}
	mech, err := w.readUlong(s, o, pkcs11.CKA_KEY_GEN_MECHANISM)
	if err != nil {
		return err
	}
	if mech != 0 { // which is none that makes AES keys
		e.KeyGenMechanism = &mech
	}
	list, err := w.module.GetAttribute(s.handle, o, pkcs11.CKA_ALLOWED_MECHANISMS)
	if unreadable(err) {
		return nil
	}
	e.AllowedMechanisms = []uint{}
	for ; len(list) >= 8; list = list[8:] {
		e.AllowedMechanisms = append(e.AllowedMechanisms, uint(binary.NativeEndian.Uint64(list)))
	}
	return err
}
