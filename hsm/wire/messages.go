package wire

import (
	"fmt"
	"strings"

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

// LoginReply tells the size of the session pool.
type LoginReply struct {
	Sessions int `json:"sessions"`
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

// ProveRequest asks which mechanism works with a key (OpProve).
type ProveRequest struct {
	ID []byte `json:"id"`
	// Mechanism pins one: aes-gcm, aes-kwp or aes-cbc-hmac, or a full name of
	// kek.Mechanism with its IV mode. Empty tries all in that order.
	Mechanism string `json:"mechanism,omitempty"`
}

// ProveReply is the outcome of a proof.
type ProveReply struct {
	Mechanism kek.Mechanism `json:"mechanism"`
	// Tried says for each mechanism that was passed over why.
	Tried []string `json:"tried,omitempty"`
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
)

// String returns the class as logs and metrics spell it.
func (c Class) String() string {
	names := [...]string{"", "token", "request", "pin", "refused", "no-key", "ambiguous", "setup"}
	if int(c) < len(names) && c > 0 {
		return names[c]
	}
	return fmt.Sprintf("Class(%d)", uint8(c))
}

// sentinel is the class of kek errors that this class belongs to.
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

// Unwrap yields the kek sentinel of the error's class.
func (e *Error) Unwrap() error { return e.Class.sentinel() }
