package worker

import (
	"bytes"

	"github.com/miekg/pkcs11"

	"kekd/hsm/p11"
	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// checkValue computes a key's check value: AES-ECB of sixteen zero bytes, cut to
// three. Where the token forbids that (CKA_ALLOWED_MECHANISMS, a key that does
// not encrypt) CKA_CHECK_VALUE is taken, and where that is not there, zeros.
// Only a clear refusal counts as such: a broken token must not make the key_id
// change. It is computed twice, for the same reason: a token that once returns
// wrong bytes would revoke the key.
func (w *Worker) checkValue(o pkcs11.ObjectHandle) (kek.CheckValue, error) {
	var v kek.CheckValue
	err := w.onSession("compute the check value", func(s session) (err error) {
		v, err = w.encryptZeros(s, o)
		return err
	})
	if !isClass(err, wire.ClassRefused) {
		return v, err
	}
	err = w.onSession("read the check value", func(s session) (err error) {
		v, err = w.readCheckValue(s, o)
		return err
	})
	return v, err
}

// checkValueOn is checkValue on a session of the caller's.
func (w *Worker) checkValueOn(s session, o pkcs11.ObjectHandle) (kek.CheckValue, error) {
	v, err := w.encryptZeros(s, o)
	if e, ok := rvOf(err); ok {
		if class, _ := judge(e); class == wire.ClassRefused {
			return w.readCheckValue(s, o)
		}
	}
	return v, err
}

func (w *Worker) encryptZeros(s session, o pkcs11.ObjectHandle) (v kek.CheckValue, err error) {
	out, err := w.module.Encrypt(s.handle, o, p11.Mechanism{Type: pkcs11.CKM_AES_ECB}, make([]byte, 16))
	if err != nil {
		return v, err
	}
	again, err := w.module.Encrypt(s.handle, o, p11.Mechanism{Type: pkcs11.CKM_AES_ECB}, make([]byte, 16))
	if err == nil && !bytes.Equal(out, again) {
		return v, &wire.Error{Class: wire.ClassToken, Text: "the token encrypts the same to different bytes"}
	}
	if err == nil && len(out) == 16 {
		copy(v[:], out)
	}
	return v, err
}

func (w *Worker) readCheckValue(s session, o pkcs11.ObjectHandle) (v kek.CheckValue, err error) {
	b, err := w.module.GetAttribute(s.handle, o, pkcs11.CKA_CHECK_VALUE)
	if unreadable(err) {
		return v, nil
	}
	if len(b) == len(v) {
		copy(v[:], b)
	}
	return v, err
}
