package wire

import (
	"context"
	"fmt"
	"strings"
	"time"

	"kekd/internal/kek"
)

// Selector names one token. Empty fields match anything; all given ones must
// match.
type Selector struct {
	Label        string `json:"label,omitempty"`
	Serial       string `json:"serial,omitempty"`
	Manufacturer string `json:"manufacturer,omitempty"`
	Model        string `json:"model,omitempty"`
}

// String spells the selector for messages: label "x", serial "y".
func (s Selector) String() string {
	var parts []string
	for _, f := range []struct{ name, value string }{
		{"label", s.Label}, {"serial", s.Serial}, {"manufacturer", s.Manufacturer}, {"model", s.Model},
	} {
		if f.value != "" {
			parts = append(parts, fmt.Sprintf("%s %q", f.name, f.value))
		}
	}
	return strings.Join(parts, ", ")
}

// LoadRequest asks the worker to load the module and find the token (OpLoad).
type LoadRequest struct {
	Module   string   `json:"module"`
	InitArgs string   `json:"initArgs,omitempty"`
	Token    Selector `json:"token"`
	// Ring is the key ring's label.
	Ring string `json:"ring"`
	// Sessions is how many calls the parent will have in flight at most.
	Sessions int `json:"sessions"`
}

// TokenInfo describes the token that was found, before any login.
type TokenInfo struct {
	Library       string `json:"library"`
	Slot          uint   `json:"slot"`
	Label         string `json:"label"`
	Serial        string `json:"serial"`
	Manufacturer  string `json:"manufacturer"`
	Model         string `json:"model"`
	Firmware      string `json:"firmware"`
	LoginRequired bool   `json:"loginRequired"`
	// ProtectedPath: the PIN is entered on the device itself.
	ProtectedPath bool `json:"protectedPath,omitempty"`
	PINLow        bool `json:"pinLow,omitempty"`
	PINFinalTry   bool `json:"pinFinalTry,omitempty"`
	PINLocked     bool `json:"pinLocked,omitempty"`
	// Sessions is the size of the pool, after the token's own limit; known
	// once logged in.
	Sessions int `json:"sessions,omitempty"`
}

// LoginRequest goes with the PIN as the frame's secret (OpLogin).
type LoginRequest struct {
	// Required: the token wants a login. Without a PIN it asks its own PIN pad.
	Required bool `json:"required"`
}

// MaxSessions is the largest session pool.
const MaxSessions = 64

// LoginReply tells the size of the session pool, from 1 to MaxSessions.
type LoginReply struct {
	Sessions int `json:"sessions"`
}

func (r *LoginReply) check() error {
	if r.Sessions < 1 || r.Sessions > MaxSessions {
		return fmt.Errorf("a pool of %d sessions, want 1 to %d", r.Sessions, MaxSessions)
	}
	return nil
}

// Key is a KEK as the token's attributes describe it.
type Key struct {
	ID         []byte         `json:"id"`
	CheckValue kek.CheckValue `json:"checkValue"`
	Attributes kek.Attributes `json:"attributes"`
	// HMAC: a companion key for aes-cbc-hmac stands beside it.
	HMAC bool `json:"hmac,omitempty"`
}

// KeysReply lists the ring (OpKeys).
type KeysReply struct {
	Keys []Key `json:"keys"`
}

// CreateRequest asks for a new KEK with this CKA_ID (OpCreate).
type CreateRequest struct {
	ID []byte `json:"id"`
	// Mechanism as in ProveRequest; it decides whether an HMAC key is made too.
	Mechanism string `json:"mechanism,omitempty"`
}

// CreateReply is the key as read back, and how it was proven.
type CreateReply struct {
	Key   Key        `json:"key"`
	Proof ProveReply `json:"proof"`
}

func (r *CreateReply) check() error { return r.Proof.check() }

// AbandonRequest asks for what a create or an import of this CKA_ID has left,
// whatever of it there is (OpAbandon). It is for ids that were new to the token.
type AbandonRequest struct {
	ID []byte `json:"id"`
	// Keep: nothing is destroyed if a KEK is in the ring.
	Keep bool `json:"keep,omitempty"`
}

// AbandonReply tells how many objects were found and destroyed, or that they were
// kept.
type AbandonReply struct {
	Found int  `json:"found"`
	Kept  bool `json:"kept,omitempty"`
}

// ProveRequest asks which mechanism works with a key (OpProve).
type ProveRequest struct {
	ID []byte `json:"id"`
	// Mechanism pins one: aes-gcm, aes-kwp or aes-cbc-hmac, or a full name of
	// kek.Mechanism with its IV mode. Empty tries all in that order.
	Mechanism string `json:"mechanism,omitempty"`
	// Trial: the key is not in use, so that the canary must not rely on it.
	Trial bool `json:"trial,omitempty"`
}

// ProveReply is the outcome of a proof.
type ProveReply struct {
	Mechanism kek.Mechanism `json:"mechanism"`
	// Tried says for each mechanism that was passed over why.
	Tried []string `json:"tried,omitempty"`
}

func (r *ProveReply) check() error {
	if !r.Mechanism.Valid() {
		return fmt.Errorf("unknown mechanism %d", uint8(r.Mechanism))
	}
	return nil
}

// WrapRequest goes with the plaintext as the frame's secret (OpWrap).
type WrapRequest struct {
	ID        []byte        `json:"id"`
	Mechanism kek.Mechanism `json:"mechanism"`
	AAD       []byte        `json:"aad"`
}

// WrapReply holds the wrapped bytes.
type WrapReply struct {
	Blob []byte `json:"blob"`
}

// UnwrapRequest is answered with the plaintext as the frame's secret (OpUnwrap).
type UnwrapRequest struct {
	ID        []byte        `json:"id"`
	Mechanism kek.Mechanism `json:"mechanism"`
	AAD       []byte        `json:"aad"`
	Blob      []byte        `json:"blob"`
}

// Seen is a key as it was when a change was decided. The worker compares it with
// the key on the token right before it changes that.
type Seen struct {
	Label string `json:"label"`
	// Encrypt and Decrypt are the usage bits; nil where the token did not tell, which
	// is not compared.
	Encrypt *bool `json:"encrypt,omitempty"`
	Decrypt *bool `json:"decrypt,omitempty"`
	// CheckValue is not compared if it is unknown (zero) here or on the token.
	CheckValue kek.CheckValue `json:"checkValue"`
}

// Deadline is a moment of the machine's clock, which both ends share, in Unix
// milliseconds; 0 for none.
type Deadline int64

// Until makes the Deadline that is so far away.
func Until(left time.Duration) Deadline { return Deadline(time.Now().Add(left).UnixMilli()) }

// Passed reports whether the moment is over.
func (d Deadline) Passed() bool { return d != 0 && time.Now().UnixMilli() >= int64(d) }

// Time returns the moment.
func (d Deadline) Time() time.Time { return time.UnixMilli(int64(d)).UTC() }

// SetUseRequest asks to change a key's state (OpSetUse).
type SetUseRequest struct {
	ID   []byte `json:"id"`
	Seen Seen   `json:"seen"`
	// NotAfter is when the worker must have begun.
	NotAfter Deadline `json:"notAfter,omitempty"`
	// Label is the CKA_LABEL that marks the new state.
	Label string `json:"label"`
	// Usable: the key may encrypt and decrypt in the new state.
	Usable bool `json:"usable,omitempty"`
}

// SetUseReply is the key as read back.
type SetUseReply struct {
	Key Key `json:"key"`
}

// DestroyRequest asks to destroy a key and its HMAC key (OpDestroy).
type DestroyRequest struct {
	ID   []byte `json:"id"`
	Seen Seen   `json:"seen"`
	// NotAfter is when the worker must have begun.
	NotAfter Deadline `json:"notAfter,omitempty"`
}

// ImportMethod is how an imported key is wrapped, as kekctl spells it.
type ImportMethod string

// The methods, in the order of preference.
const (
	// RSAOAEP is CKM_RSA_PKCS_OAEP: the key encrypted by the one-time public key.
	RSAOAEP ImportMethod = "rsa-oaep"
	// RSAAESKeyWrap is CKM_RSA_AES_KEY_WRAP: a random AES-256 key encrypted as in
	// RSAOAEP, and behind it the key wrapped by that one as in AESKWP.
	RSAAESKeyWrap ImportMethod = "rsa-aes-key-wrap"
	// AESKWP is AES key wrap with padding (RFC 5649, mechanism 0x210B) under an AES
	// key on the token that the owner holds as well.
	AESKWP ImportMethod = "aes-kwp"
)

// ImportMethods lists all methods.
func ImportMethods() []ImportMethod { return []ImportMethod{RSAOAEP, RSAAESKeyWrap, AESKWP} }

// OAEPHash is the hash of RSA-OAEP and of its mask generation function, as kekctl
// spells it.
type OAEPHash string

// The hashes, in the order of preference.
const (
	SHA256 OAEPHash = "sha256"
	SHA1   OAEPHash = "sha1"
)

// WrappingKey is a one-time RSA key pair on the token.
type WrappingKey struct {
	ID []byte `json:"id"`
	// PublicKey is the SubjectPublicKeyInfo in DER.
	PublicKey []byte `json:"publicKey"`
	// Hashes are those with which the token was seen to unwrap a key; none where
	// that could not be tried.
	Hashes []OAEPHash `json:"hashes"`
}

// ImportState is what the token has and can for the import of keys (OpImportState).
type ImportState struct {
	// Methods are those that the token offers.
	Methods []ImportMethod `json:"methods"`
	Pairs   []WrappingKey  `json:"pairs"`
	// Leftovers are the CKA_IDs of keys whose import was cut off, and of half pairs.
	Leftovers [][]byte `json:"leftovers"`
}

// ImportBeginRequest asks for a one-time key pair (OpImportBegin).
type ImportBeginRequest struct {
	ID []byte `json:"id"`
	// Bits is the size of the modulus.
	Bits int `json:"bits"`
}

// ImportRequest asks to unwrap a KEK (OpImport). The answer is a CreateReply.
type ImportRequest struct {
	// ID is the new KEK's CKA_ID.
	ID []byte `json:"id"`
	// Mechanism as in CreateRequest.
	Mechanism string       `json:"mechanism,omitempty"`
	Method    ImportMethod `json:"method"`
	// Hash is for the methods with RSA.
	Hash OAEPHash `json:"hash,omitempty"`
	// WrappingKey is the CKA_ID of the key that unwraps.
	WrappingKey []byte `json:"wrappingKey"`
	Wrapped     []byte `json:"wrapped"`
	// CheckValue is what the owner says it must be, nil if he says nothing.
	CheckValue *kek.CheckValue `json:"checkValue,omitempty"`
}

// ImportAbortRequest asks to remove a one-time key pair, or what an import that
// was cut off has left (OpImportAbort).
type ImportAbortRequest struct {
	ID []byte `json:"id"`
}

// Evidence is what the token says of a KEK. A nil pointer, and nil mechanisms, mean
// that it does not tell.
type Evidence struct {
	Key Key `json:"key"`

	Wrap        *bool `json:"wrap,omitempty"`
	Unwrap      *bool `json:"unwrap,omitempty"`
	Sign        *bool `json:"sign,omitempty"`
	Verify      *bool `json:"verify,omitempty"`
	Derive      *bool `json:"derive,omitempty"`
	Token       *bool `json:"token,omitempty"`
	Private     *bool `json:"private,omitempty"`
	Modifiable  *bool `json:"modifiable,omitempty"`
	Destroyable *bool `json:"destroyable,omitempty"`
	// KeyGenMechanism is the CK_MECHANISM_TYPE that made the key.
	KeyGenMechanism *uint `json:"keyGenMechanism,omitempty"`
	// AllowedMechanisms are CK_MECHANISM_TYPEs; empty where nothing is restricted.
	AllowedMechanisms []uint `json:"allowedMechanisms"`
}

// EvidenceReply describes all keys of the ring (OpEvidence).
type EvidenceReply struct {
	Keys []Evidence `json:"keys"`
}

// AuditAlgorithm is how an audit key signs, as kekctl spells it.
type AuditAlgorithm string

// The algorithms, in the order of preference.
const (
	// ECDSAP256 is CKM_ECDSA over P-256 and a SHA-256 that the worker computes.
	ECDSAP256 AuditAlgorithm = "ecdsa-p256-sha256"
	// HMACSHA256 is CKM_SHA256_HMAC with a key of 32 bytes.
	HMACSHA256 AuditAlgorithm = "hmac-sha256"
)

// AuditAlgorithms lists all algorithms.
func AuditAlgorithms() []AuditAlgorithm { return []AuditAlgorithm{ECDSAP256, HMACSHA256} }

// AuditKey is a key on the token that signs the audit trail.
type AuditKey struct {
	ID        []byte         `json:"id"`
	Algorithm AuditAlgorithm `json:"algorithm"`
	// PublicKey is the SubjectPublicKeyInfo in DER; nil for HMAC.
	PublicKey []byte `json:"publicKey,omitempty"`
}

// AuditKeysReply lists the audit keys, the oldest first (OpAuditKeys).
type AuditKeysReply struct {
	Keys []AuditKey `json:"keys"`
}

// AuditCreateRequest asks for a new audit key (OpAuditCreate).
type AuditCreateRequest struct {
	ID []byte `json:"id"`
	// Algorithm is empty for the first one that the token has.
	Algorithm AuditAlgorithm `json:"algorithm,omitempty"`
}

// AuditSignRequest asks for a signature (OpAuditSign).
type AuditSignRequest struct {
	// ID is the audit key's CKA_ID, nil for the newest.
	ID      []byte `json:"id,omitempty"`
	Message []byte `json:"message"`
}

// AuditSignReply is a signature and the key that made it.
type AuditSignReply struct {
	Key AuditKey `json:"key"`
	// Signature is ASN.1 DER for ECDSA, 32 bytes for HMAC.
	Signature []byte `json:"signature"`
}

// Class says what an error means for whoever has to act on it.
type Class uint8

const (
	// ClassToken: the module or the device is at fault: restart the worker.
	ClassToken Class = iota + 1
	// ClassRequest: the ciphertext is at fault: no retry, nothing is wrong with the HSM.
	ClassRequest
	// ClassPIN: the PIN was refused, is locked, expired or not set: never try again.
	ClassPIN
	// ClassRefused: the token forbids this use of the key, or has no mechanism for it.
	ClassRefused
	// ClassNoKey: no key has this id.
	ClassNoKey
	// ClassAmbiguous: several tokens or keys match.
	ClassAmbiguous
	// ClassSetup: module or token are not there, or not what they should be.
	// Worth another try later, in a fresh process.
	ClassSetup
	// ClassChanged: the key is not as it was seen.
	ClassChanged
	// ClassLate: the deadline was over before anything was changed.
	ClassLate
)

// String returns the class as logs and metrics spell it.
func (c Class) String() string {
	names := [...]string{"", "token", "request", "pin", "refused", "no-key", "ambiguous", "setup", "changed", "timeout"}
	if int(c) < len(names) && c > 0 {
		return names[c]
	}
	return fmt.Sprintf("Class(%d)", uint8(c))
}

// sentinel is the class of kek errors that this class belongs to, or the context's
// error where the caller's time was up.
func (c Class) sentinel() error {
	switch c {
	case ClassRequest:
		return kek.ErrCorrupt
	case ClassPIN:
		return kek.ErrPIN
	case ClassRefused:
		return kek.ErrRefused
	case ClassNoKey:
		return kek.ErrUnknownKey
	case ClassAmbiguous:
		return kek.ErrAmbiguous
	case ClassChanged:
		return kek.ErrChanged
	case ClassLate:
		return context.DeadlineExceeded
	}
	return kek.ErrUnavailable
}

// Error is a failed operation, as it crosses the socketpair.
type Error struct {
	Class Class `json:"class"`
	// Call is the PKCS#11 function that failed, empty where none was called.
	Call string `json:"call,omitempty"`
	// RV is its return value (CK_RV), 0 where none was called.
	RV uint `json:"rv,omitempty"`
	// Text says what went wrong. It holds no secret.
	Text string `json:"text"`
	// Hint says what to do about it, if anything is known.
	Hint string `json:"hint,omitempty"`
}

// Error implements error.
func (e *Error) Error() string {
	if e.Call == "" {
		return e.Text
	}
	return fmt.Sprintf("%s: %s: %s", e.Text, e.Call, RVName(e.RV))
}

func (e *Error) check() error {
	if e.Class < ClassToken || e.Class > ClassLate {
		return fmt.Errorf("unknown class %d", uint8(e.Class))
	}
	return nil
}

// Unwrap yields the kek sentinel of the error's class.
func (e *Error) Unwrap() error { return e.Class.sentinel() }
