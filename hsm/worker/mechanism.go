package worker

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"kekd/hsm/p11"
	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// family is a mechanism as the configuration pins it: an IV mode is the token's
// business and found out by the proof.
type family string

const (
	gcm     family = "aes-gcm"
	kwp     family = "aes-kwp"
	cbcHMAC family = "aes-cbc-hmac"
)

// families in the order of preference. GCM binds the context by itself; KWP has
// no AAD and a 64-bit check; CBC needs a second key.
func families() []family { return []family{gcm, kwp, cbcHMAC} }

// wantsHMAC reports whether a pinned mechanism, or none, allows aes-cbc-hmac.
func wantsHMAC(pinned string) bool { return pinned == "" || pinned == string(cbcHMAC) }

// offers filters by C_GetMechanismInfo: empty, or why the family can't work. It
// is a filter only: modules advertise what then fails.
func (w *Worker) offers(f family) string {
	need := map[family][]struct {
		mech, flags uint
		name        string
	}{
		gcm:     {{pkcs11.CKM_AES_GCM, pkcs11.CKF_ENCRYPT | pkcs11.CKF_DECRYPT, "CKM_AES_GCM"}},
		kwp:     {{p11.CKMAESKeyWrapKWP, pkcs11.CKF_ENCRYPT | pkcs11.CKF_DECRYPT, "CKM_AES_KEY_WRAP_KWP (0x210b)"}},
		cbcHMAC: {{pkcs11.CKM_AES_CBC, pkcs11.CKF_ENCRYPT | pkcs11.CKF_DECRYPT, "CKM_AES_CBC"}, {pkcs11.CKM_SHA256_HMAC, pkcs11.CKF_SIGN, "CKM_SHA256_HMAC"}},
	}[f]
	for _, n := range need {
		info, err := w.module.GetMechanismInfo(w.slot, n.mech)
		if err != nil {
			return "the token has no " + n.name
		}
		if info.Flags&n.flags != n.flags {
			return fmt.Sprintf("the token has %s, but not for what kekd does with it (flags 0x%x)", n.name, info.Flags)
		}
	}
	return ""
}

// Prove finds the mechanism that really works with a key, by using it: a round
// trip, a flipped AAD and a flipped ciphertext refused, two ciphertexts that
// differ, and for GCM who chooses the IV.
func (w *Worker) Prove(req wire.ProveRequest) (wire.ProveReply, error) {
	id := kek.ID(req.ID)
	k, err := w.key(id)
	if err != nil {
		return wire.ProveReply{}, err
	}
	var reply wire.ProveReply
	for _, f := range families() {
		// A pin may spell the IV mode as well: "aes-gcm/caller-iv".
		if req.Mechanism != "" && req.Mechanism != string(f) && !strings.HasPrefix(req.Mechanism, string(f)+"/") {
			continue
		}
		why := w.offers(f)
		if why == "" && f == cbcHMAC && !k.hasHMAC {
			why = "the key has no HMAC key beside it, as kekctl key create makes it"
		}
		if why == "" {
			reply.Mechanism, why, err = w.proveFamily(f, id)
			if err != nil {
				return wire.ProveReply{}, err
			}
		}
		if why == "" && strings.Contains(req.Mechanism, "/") && req.Mechanism != reply.Mechanism.String() {
			why = "the token does " + reply.Mechanism.String() + " now, not " + req.Mechanism
		}
		if why == "" {
			if !req.Trial {
				w.canary.use(id, reply.Mechanism)
			}
			return reply, nil
		}
		reply.Tried = append(reply.Tried, fmt.Sprintf("%s: %s", f, why))
	}
	return wire.ProveReply{}, &wire.Error{
		Class: wire.ClassRefused, Text: fmt.Sprintf("no mechanism works with key %s: %s", id, strings.Join(reply.Tried, "; ")),
		Hint: "the key must have CKA_ENCRYPT and CKA_DECRYPT, and the token a mechanism out of hsm.mechanism's list; kekctl doctor shows both",
	}
}

// proveFamily returns the mechanism that works, or why none of the family does.
// An error means that the token failed, which is no verdict on the mechanism.
func (w *Worker) proveFamily(f family, id kek.ID) (kek.Mechanism, string, error) {
	var options []kek.Mechanism
	switch f {
	case gcm:
		options = []kek.Mechanism{kek.GCMCallerIV, kek.GCMWrittenIV, kek.GCMAppendedIV}
	case kwp:
		options = []kek.Mechanism{kek.KWP}
	case cbcHMAC:
		options = []kek.Mechanism{kek.CBCHMAC}
	}
	var whys []string
	for _, m := range options {
		why, err := w.proveOne(id, m)
		if err != nil {
			return 0, "", err
		}
		if why == "" {
			return m, "", nil
		}
		whys = append(whys, why)
	}
	return 0, strings.Join(whys, ", "), nil
}

// proveOne tries one mechanism: empty, or what is wrong with it.
func (w *Worker) proveOne(id kek.ID, m kek.Mechanism) (string, error) {
	if m == kek.GCMAppendedIV {
		why, err := w.proveOnce(id, m)
		if err != nil || why == "" {
			return why, err
		}
		// Some firmware wants to be given no IV at all where it makes its own.
		w.setNilIV(true)
		why, err = w.proveOnce(id, m)
		if why != "" || err != nil {
			w.setNilIV(false)
		}
		return why, err
	}
	return w.proveOnce(id, m)
}

// proofAAD is what the proof binds its ciphertexts to. It is no AAD of anything
// that is ever stored.
const proofAAD = "kekd/v1/proof"

func (w *Worker) proveOnce(id kek.ID, m kek.Mechanism) (string, error) {
	plain, err := random(32)
	if err != nil {
		return "", err
	}
	defer clear(plain)
	aad := []byte(proofAAD)
	first, err := w.wrap(id, m, plain, aad)
	if err != nil {
		return verdictOnMechanism("encryption", err)
	}
	back, err := w.unwrap(id, m, first, aad, false)
	if err != nil {
		return verdictOnMechanism("decryption", err)
	}
	same := string(back) == string(plain)
	back.Wipe()
	if !same {
		return m.String() + ": decryption gave something else than what was encrypted", nil
	}
	if m == kek.KWP { // which has no IV: only another plaintext gives another ciphertext
		plain[0] ^= 1
	}
	second, err := w.wrap(id, m, plain, aad)
	if err != nil {
		return verdictOnMechanism("encryption", err)
	}
	n := ivSize(m)
	if n > 0 && string(first[:n]) == string(second[:n]) {
		return m.String() + ": two encryptions used the same IV", nil
	}
	// Behind differing IVs, this is a token that uses an IV of its own, always the
	// same one, and keeps that to itself.
	if string(first[n:]) == string(second[n:]) {
		return m.String() + ": two encryptions gave the same ciphertext", nil
	}
	flipped := []byte(proofAAD)
	flipped[0] ^= 1
	if leak, err := w.unwrap(id, m, first, flipped, false); err == nil {
		leak.Wipe()
		return m.String() + ": a changed AAD was not noticed", nil
	}
	bad := append([]byte(nil), first...)
	bad[len(bad)-1] ^= 1
	if leak, err := w.unwrap(id, m, bad, aad, false); err == nil {
		leak.Wipe()
		return m.String() + ": a changed ciphertext was not noticed", nil
	}
	return "", nil
}

// verdictOnMechanism tells a mechanism that the token refuses from a token that
// failed. CKR_GENERAL_ERROR and CKR_FUNCTION_FAILED count as refusals here: they
// are what some modules answer to parameters they don't like, and a proof that
// fails for another reason fails again for the next mechanism.
func verdictOnMechanism(what string, err error) (string, error) {
	e, ok := errors.AsType[*wire.Error](err)
	if !ok {
		return "", err
	}
	switch e.Class {
	case wire.ClassRefused, wire.ClassRequest:
		return what + " refused: " + e.Error(), nil
	case wire.ClassToken:
		if vague(e.RV) {
			return what + " failed: " + e.Error(), nil
		}
	}
	return "", err
}

func (w *Worker) setNilIV(v bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nilIV = v
}
