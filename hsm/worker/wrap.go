package worker

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"

	"github.com/miekg/pkcs11"

	"kekd/hsm/p11"
	"kekd/hsm/wire"
	"kekd/internal/kek"
	"kekd/internal/secret"
)

// Sizes in bytes.
const (
	tagSize  = 16
	macSize  = sha256.Size
	block    = 16
	kwpExtra = 8
)

// ivSize is how many bytes of IV stand in front of a mechanism's ciphertext.
func ivSize(m kek.Mechanism) int {
	switch m {
	case kek.GCMCallerIV, kek.GCMWrittenIV:
		return 12
	case kek.GCMAppendedIV, kek.CBCHMAC:
		return 16
	}
	return 0
}

func random(n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := rand.Read(b)
	return b, err
}

// Wrap encrypts plaintext under a KEK, bound to the AAD.
func (w *Worker) Wrap(req wire.WrapRequest, plaintext secret.Bytes) (wire.WrapReply, error) {
	if err := checkRequest(req.Mechanism, req.AAD, len(plaintext)); err != nil {
		return wire.WrapReply{}, err
	}
	id := kek.ID(req.ID)
	blob, err := w.wrap(id, req.Mechanism, plaintext, req.AAD)
	if err != nil {
		return wire.WrapReply{}, err
	}
	return wire.WrapReply{Blob: blob}, nil
}

// Unwrap is the reverse of Wrap.
func (w *Worker) Unwrap(req wire.UnwrapRequest) (secret.Bytes, error) {
	if err := checkRequest(req.Mechanism, req.AAD, len(req.Blob)); err != nil {
		return nil, err
	}
	return w.unwrap(kek.ID(req.ID), req.Mechanism, req.Blob, req.AAD, true)
}

func checkRequest(m kek.Mechanism, aad []byte, size int) error {
	switch {
	case !m.Valid():
		return &wire.Error{Class: wire.ClassRequest, Text: fmt.Sprintf("unknown mechanism %d", uint8(m))}
	case len(aad) == 0:
		return &wire.Error{Class: wire.ClassRequest, Text: "the AAD is empty"}
	case size == 0:
		return &wire.Error{Class: wire.ClassRequest, Text: "nothing to encrypt or decrypt"}
	}
	return nil
}

func (w *Worker) wrap(id kek.ID, m kek.Mechanism, plaintext, aad []byte) ([]byte, error) {
	var blob []byte
	err := w.onKey("encrypt under key "+id.String(), id, true, func(s session, k *handle) error {
		var err error
		switch m {
		case kek.KWP:
			blob, err = w.wrapKWP(s, k, plaintext, aad)
		case kek.CBCHMAC:
			blob, err = w.wrapCBC(s, k, plaintext, aad)
		default:
			blob, err = w.wrapGCM(s, k, m, plaintext, aad)
		}
		return err
	})
	return blob, err
}

// unwrap decrypts; ask says whether the canary settles an ambiguous failure.
func (w *Worker) unwrap(id kek.ID, m kek.Mechanism, blob, aad []byte, ask bool) (secret.Bytes, error) {
	if !plausible(m, len(blob)) {
		return nil, corrupt(m, "has an impossible length")
	}
	var plain secret.Bytes
	err := w.onKey("decrypt under key "+id.String(), id, ask, func(s session, k *handle) error {
		var err error
		switch m {
		case kek.KWP:
			plain, err = w.unwrapKWP(s, k, blob, aad)
		case kek.CBCHMAC:
			plain, err = w.unwrapCBC(s, k, blob, aad)
		default:
			n := ivSize(m)
			iv := append([]byte(nil), blob[:n]...) // the token may write to it
			plain, err = w.module.Decrypt(s.handle, k.aes, p11.Mechanism{Type: pkcs11.CKM_AES_GCM, IV: iv, AAD: aad}, blob[n:])
			if err == nil && len(plain) != len(blob)-n-tagSize {
				plain.Wipe()
				err = corrupt(m, "decrypted to a wrong length")
			}
		}
		return err
	})
	return plain, err
}

// plausible checks a blob's length before any call: short ones crash modules.
func plausible(m kek.Mechanism, n int) bool {
	switch m {
	case kek.KWP:
		return n > kwpExtra+sha256.Size && n%8 == 0
	case kek.CBCHMAC:
		return n >= block+block+macSize && n%block == 0
	}
	return n > ivSize(m)+tagSize
}

func corrupt(m kek.Mechanism, what string) *wire.Error {
	return &wire.Error{Class: wire.ClassRequest, Text: fmt.Sprintf("the %s blob %s", m, what)}
}

// ivModeChanged is a token that treats IVs otherwise than the mechanism says.
func ivModeChanged(m kek.Mechanism, what string) *wire.Error {
	return &wire.Error{
		Class: wire.ClassRefused, Text: fmt.Sprintf("%s: %s", m, what),
		Hint: "the token's firmware or policy has changed; run kekctl doctor",
	}
}

// wrapGCM encrypts and checks that the token treated the IV as m says.
func (w *Worker) wrapGCM(s session, k *handle, m kek.Mechanism, plaintext, aad []byte) ([]byte, error) {
	given := make([]byte, 12)
	w.mu.Lock()
	none := m == kek.GCMAppendedIV && w.nilIV
	w.mu.Unlock()
	switch {
	case none:
		given = nil
	case m != kek.GCMWrittenIV: // which wants zeros, to replace them by its own
		if _, err := rand.Read(given); err != nil {
			return nil, err
		}
	}
	iv := append([]byte(nil), given...)
	out, err := w.module.Encrypt(s.handle, k.aes, p11.Mechanism{Type: pkcs11.CKM_AES_GCM, IV: iv, AAD: aad}, plaintext)
	if err != nil {
		return nil, err
	}
	unchanged := string(iv) == string(given)
	switch n := len(plaintext) + tagSize; m {
	case kek.GCMCallerIV:
		if len(out) != n || !unchanged {
			return nil, ivModeChanged(m, fmt.Sprintf("the token chose an IV of its own (%d bytes out, %d expected)", len(out), n))
		}
	case kek.GCMWrittenIV:
		if len(out) != n || unchanged {
			// Zeros left as they are were used as the IV: a repeated nonce.
			return nil, ivModeChanged(m, "the token did not write an IV back")
		}
	case kek.GCMAppendedIV:
		if len(out) != n+16 {
			return nil, ivModeChanged(m, fmt.Sprintf("the token appended no IV (%d bytes out, %d expected)", len(out), n+16))
		}
		iv, out = out[n:], out[:n]
	}
	return append(append(make([]byte, 0, len(iv)+len(out)), iv...), out...), nil
}

// wrapKWP wraps SHA-256(AAD) ‖ plaintext, since the mechanism has no AAD.
func (w *Worker) wrapKWP(s session, k *handle, plaintext, aad []byte) ([]byte, error) {
	bound := sha256.Sum256(aad)
	in := make(secret.Bytes, 0, len(bound)+len(plaintext))
	in = append(append(in, bound[:]...), plaintext...)
	defer in.Wipe()
	return w.module.Encrypt(s.handle, k.aes, p11.Mechanism{Type: p11.CKMAESKeyWrapKWP}, in)
}

func (w *Worker) unwrapKWP(s session, k *handle, blob, aad []byte) (secret.Bytes, error) {
	out, err := w.module.Decrypt(s.handle, k.aes, p11.Mechanism{Type: p11.CKMAESKeyWrapKWP}, blob)
	if err != nil {
		return nil, err
	}
	defer out.Wipe()
	bound := sha256.Sum256(aad)
	if len(out) <= len(bound) || subtle.ConstantTimeCompare(out[:len(bound)], bound[:]) != 1 {
		return nil, corrupt(kek.KWP, "is bound to something else")
	}
	return append(secret.Bytes(nil), out[len(bound):]...), nil
}

// wrapCBC encrypts with PKCS#7 padding, then authenticates the AAD, its length,
// the IV and the ciphertext.
func (w *Worker) wrapCBC(s session, k *handle, plaintext, aad []byte) ([]byte, error) {
	if !k.hasHMAC {
		return nil, noHMAC()
	}
	iv, err := random(block)
	if err != nil {
		return nil, err
	}
	pad := block - len(plaintext)%block
	in := make(secret.Bytes, 0, len(plaintext)+pad)
	in = append(in, plaintext...)
	for range pad {
		in = append(in, byte(pad))
	}
	defer in.Wipe()
	ct, err := w.module.Encrypt(s.handle, k.aes, p11.Mechanism{Type: pkcs11.CKM_AES_CBC, IV: append([]byte(nil), iv...)}, in)
	if err != nil {
		return nil, err
	}
	if len(ct) != len(in) {
		return nil, ivModeChanged(kek.CBCHMAC, fmt.Sprintf("%d bytes out for %d in", len(ct), len(in)))
	}
	blob := append(iv, ct...)
	mac, err := w.module.Sign(s.handle, k.hmac, pkcs11.CKM_SHA256_HMAC, macInput(aad, blob))
	if err != nil {
		return nil, err
	}
	if len(mac) != macSize {
		return nil, ivModeChanged(kek.CBCHMAC, fmt.Sprintf("a MAC of %d bytes", len(mac)))
	}
	return append(blob, mac...), nil
}

// unwrapCBC checks the MAC before it decrypts anything.
func (w *Worker) unwrapCBC(s session, k *handle, blob, aad []byte) (secret.Bytes, error) {
	if !k.hasHMAC {
		return nil, noHMAC()
	}
	body, mac := blob[:len(blob)-macSize], blob[len(blob)-macSize:]
	// Signed again and compared, since modules don't agree on how C_Verify says
	// no: NSS softokn answers CKR_DEVICE_ERROR.
	want, err := w.module.Sign(s.handle, k.hmac, pkcs11.CKM_SHA256_HMAC, macInput(aad, body))
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(want, mac) != 1 {
		return nil, corrupt(kek.CBCHMAC, "has a wrong MAC")
	}
	out, err := w.module.Decrypt(s.handle, k.aes, p11.Mechanism{Type: pkcs11.CKM_AES_CBC, IV: append([]byte(nil), body[:block]...)}, body[block:])
	if err != nil {
		return nil, err
	}
	// The MAC vouches for the padding, so a bad one means another plaintext, not
	// an oracle.
	pad := 0
	if len(out) > 0 {
		pad = int(out[len(out)-1])
	}
	if pad == 0 || pad > block || pad >= len(out) {
		out.Wipe()
		return nil, corrupt(kek.CBCHMAC, "has no valid padding")
	}
	return out[:len(out)-pad], nil
}

func macInput(aad, body []byte) []byte {
	in := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(aad)+len(body)), uint64(len(aad)))
	return append(append(in, aad...), body...)
}

func noHMAC() *wire.Error {
	return &wire.Error{
		Class: wire.ClassRefused, Text: "the key has no HMAC key beside it, which aes-cbc-hmac needs",
		Hint: "kekctl key create makes both keys",
	}
}
