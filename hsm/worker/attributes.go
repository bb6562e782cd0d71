package worker

import (
	"encoding/binary"

	"github.com/miekg/pkcs11"
)

// ckTrue is CK_BBOOL CK_TRUE.
const ckTrue = 1

// readBool reads a CK_BBOOL; nil where the token does not tell.
func (w *Worker) readBool(s session, o pkcs11.ObjectHandle, attribute uint) (*bool, error) {
	v, err := w.module.GetAttribute(s.handle, o, attribute)
	switch {
	case unreadable(err):
		return nil, nil
	case err != nil:
		return nil, err
	case len(v) != 1:
		return nil, nil
	}
	b := v[0] == ckTrue
	return &b, nil
}

// readUlong reads a CK_ULONG; 0 where the token does not tell.
func (w *Worker) readUlong(s session, o pkcs11.ObjectHandle, attribute uint) (uint, error) {
	v, err := w.module.GetAttribute(s.handle, o, attribute)
	switch {
	case unreadable(err):
		return 0, nil
	case err != nil:
		return 0, err
	case len(v) != 8:
		return 0, nil
	}
	n := binary.NativeEndian.Uint64(v)
	if n == ^uint64(0) { // CK_UNAVAILABLE_INFORMATION
		return 0, nil
	}
	return uint(n), nil
}

// unreadable reports whether err means that the token keeps this attribute to
// itself or does not know it, rather than that something is broken.
func unreadable(err error) bool {
	e, ok := rvOf(err)
	return ok && (e.RV == pkcs11.CKR_ATTRIBUTE_TYPE_INVALID || e.RV == pkcs11.CKR_ATTRIBUTE_SENSITIVE)
}
