// Package kek holds the words that the rest of kekd shares: what names a
// key-encryption key (KEK), what is known about one, in which state it is, and
// the classes of errors that cross package borders. It imports the standard
// library only and holds no secrets.
package kek

import (
	"encoding/hex"
	"fmt"
	"time"
)

// MaxIDSize is the longest CKA_ID that kekd accepts, in bytes. The length is
// one byte in the envelope; the bound keeps the key_id short, since
// kube-apiserver stores it in the clear beside every object.
const MaxIDSize = 64

// ID is a KEK's CKA_ID as raw bytes. It is public: it travels in key_id and in
// every envelope. Being a string it is comparable and can be a map key.
type ID string

// String returns the id in lower-case hexadecimal.
func (id ID) String() string { return hex.EncodeToString([]byte(id)) }

// ParseID reads what ID.String wrote. It accepts 1 to MaxIDSize bytes.
func ParseID(s string) (ID, error) {
	b, err := hex.DecodeString(s)
	if err != nil {
		return "", fmt.Errorf("key id %q is not hexadecimal", s)
	}
	if len(b) == 0 || len(b) > MaxIDSize {
		return "", fmt.Errorf("key id %q has %d bytes, want 1 to %d", s, len(b), MaxIDSize)
	}
	return ID(b), nil
}

// CheckValue is a KEK's key check value: the first three bytes of the AES-ECB
// encryption of sixteen zero bytes (PKCS#11 v2.40, CKA_CHECK_VALUE). It catches
// accidents, such as another key restored under the same id; it proves nothing
// against an attacker. All zeros means that the token cannot compute it.
type CheckValue [3]byte

// String returns the check value in lower-case hexadecimal.
func (v CheckValue) String() string { return hex.EncodeToString(v[:]) }

// State is where a KEK stands in its life. The token's attributes and the time
// are its only source, so every node reads the same state.
type State uint8

const (
	// Pending keys have their activation time ahead: they decrypt and do not encrypt.
	Pending State = iota + 1
	// Primary is the newest activated key: it encrypts and decrypts.
	Primary
	// Retired keys are older than the primary: they decrypt.
	Retired
	// Disabled keys do nothing. An operator can enable them again.
	Disabled
	// Scheduled keys do nothing and wait for their destruction.
	Scheduled
)

// String returns the state as kekctl and the metrics spell it.
func (s State) String() string {
	switch s {
	case Pending:
		return "pending"
	case Primary:
		return "primary"
	case Retired:
		return "retired"
	case Disabled:
		return "disabled"
	case Scheduled:
		return "scheduled-for-destruction"
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Decrypts reports whether a key in this state may decrypt.
func (s State) Decrypts() bool { return s == Pending || s == Primary || s == Retired }

// Mechanism says how the HSM wrapped something and where the IV came from. The
// value is a byte of the envelope: numbers are never reused or renumbered.
type Mechanism uint8

const (
	// GCMCallerIV is CKM_AES_GCM with an IV that kekd drew: IV(12) ‖ ciphertext ‖ tag(16).
	GCMCallerIV Mechanism = 1
	// GCMWrittenIV is CKM_AES_GCM with an IV that the HSM drew and wrote back
	// into the parameters (AWS CloudHSM, ProtectServer): IV(12) ‖ ciphertext ‖ tag(16).
	GCMWrittenIV Mechanism = 2
	// GCMAppendedIV is CKM_AES_GCM with an IV that the HSM drew and appended to
	// its output (Luna in FIPS mode), stored in front: IV(16) ‖ ciphertext ‖ tag(16).
	GCMAppendedIV Mechanism = 3
	// KWP is AES key wrap with padding (RFC 5649, CKM 0x210B) by C_Encrypt over
	// SHA-256(AAD) ‖ plaintext, since the mechanism itself takes no AAD.
	KWP Mechanism = 4
	// CBCHMAC is CKM_AES_CBC with PKCS#7 padding, then CKM_SHA256_HMAC under a
	// second key, whose CKA_ID is the KEK's with "/hmac" behind it:
	// IV(16) ‖ ciphertext ‖ MAC(32).
	CBCHMAC Mechanism = 5
)

// String returns the mechanism's name as configuration and kekctl spell it,
// with the IV mode after a slash where there is one.
func (m Mechanism) String() string {
	switch m {
	case GCMCallerIV:
		return "aes-gcm/caller-iv"
	case GCMWrittenIV:
		return "aes-gcm/written-iv"
	case GCMAppendedIV:
		return "aes-gcm/appended-iv"
	case KWP:
		return "aes-kwp"
	case CBCHMAC:
		return "aes-cbc-hmac"
	}
	return fmt.Sprintf("Mechanism(%d)", uint8(m))
}

// Valid reports whether m is a mechanism that this version knows.
func (m Mechanism) Valid() bool { return m >= GCMCallerIV && m <= CBCHMAC }

// Mechanisms lists all mechanisms.
func Mechanisms() []Mechanism {
	return []Mechanism{GCMCallerIV, GCMWrittenIV, GCMAppendedIV, KWP, CBCHMAC}
}

// Info is what is known about one KEK. It holds nothing secret.
type Info struct {
	// Ring is the ring's label, without the suffixes that mark a state.
	Ring string
	ID   ID
	// CheckValue is zero where the token cannot compute it.
	CheckValue CheckValue
	State      State
	// Activation is when the key becomes primary, to the second; zero for a key
	// that another tool made, which counts as older than any key of kekd's own.
	Activation time.Time
	// DestroyAfter is the date of a scheduled key (UTC midnight), else zero.
	DestroyAfter time.Time
	Attributes   Attributes
}

// Attributes are a KEK's PKCS#11 attributes that matter to an operator. A nil
// pointer means that the token did not tell.
type Attributes struct {
	Label            string `json:"label"`
	Encrypt          *bool  `json:"encrypt,omitempty"`
	Decrypt          *bool  `json:"decrypt,omitempty"`
	Sensitive        *bool  `json:"sensitive,omitempty"`
	Extractable      *bool  `json:"extractable,omitempty"`
	AlwaysSensitive  *bool  `json:"alwaysSensitive,omitempty"`
	NeverExtractable *bool  `json:"neverExtractable,omitempty"`
	Local            *bool  `json:"local,omitempty"`
	// Bits is the key's size; 0 where the token does not tell.
	Bits int `json:"bits,omitempty"`
}

// KeyID returns the key_id that Kubernetes sees: LABEL/hex(CKA_ID)/check value.
// It is readable, holds no secret, names one key for ever and is the same on
// every node (KMS v2 contract: not empty, at most 1 KiB, valid UTF-8).
func (k Info) KeyID() string { return KeyID(k.Ring, k.ID, k.CheckValue) }

// KeyID spells the key_id of a key with this ring label, CKA_ID and check value.
func KeyID(ring string, id ID, v CheckValue) string {
	return ring + "/" + id.String() + "/" + v.String()
}

// Sealed is an encrypted value as Kubernetes stores it.
type Sealed struct {
	KeyID      string
	Ciphertext []byte
}

// Ring is an immutable snapshot of all keys of one label, oldest first. Readers
// may share it without a lock.
type Ring struct {
	Label string
	Keys  []Info
}

// Lookup finds a key by its id.
func (r *Ring) Lookup(id ID) (Info, bool) {
	if r == nil {
		return Info{}, false
	}
	for _, k := range r.Keys {
		if k.ID == id {
			return k, true
		}
	}
	return Info{}, false
}

// Primary returns the key that encrypts; false when the ring has none.
func (r *Ring) Primary() (Info, bool) {
	if r == nil {
		return Info{}, false
	}
	for _, k := range r.Keys {
		if k.State == Primary {
			return k, true
		}
	}
	return Info{}, false
}
