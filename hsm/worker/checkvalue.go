package worker

import (
	"bytes"
	"errors"

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
	err := w.onSession("compute the check value", func(s session) error {
		out, err := w.module.Encrypt(s.handle, o, p11.Mechanism{Type: pkcs11.CKM_AES_ECB}, make([]byte, 16))
		if err != nil {
			return err
		}
		again, err := w.module.Encrypt(s.handle, o, p11.Mechanism{Type: pkcs11.CKM_AES_ECB}, make([]byte, 16))
		if err == nil && !bytes.Equal(out, again) {
			return &wire.Error{Class: wire.ClassToken, Text: "the token encrypts the same to different bytes"}
		}
		if err == nil && len(out) == 16 {
			copy(v[:], out)
		}
		return err
	})
	refused, ok := errors.AsType[*wire.Error](err)
	switch {
	case err == nil:
		return v, nil
	case !ok || refused.Class != wire.ClassRefused:
		return v, err
	}
	err = w.onSession("read the check value", func(s session) error {
		b, err := w.module.GetAttribute(s.handle, o, pkcs11.CKA_CHECK_VALUE)
		if unreadable(err) {
			return nil
		}
		if len(b) == len(v) {
			copy(v[:], b)
		}
		return err
	})
	return v, err
}
