// Package p11 is kekd's border to a PKCS#11 module: the calls that the worker
// makes, as an interface that a fake can stand behind, and the real thing over
// a shared library.
//
// It goes through github.com/miekg/pkcs11 except where that binding's calling
// convention is in the way: C_Encrypt, C_Decrypt and C_Sign are called in one
// shot with a buffer of our own. The binding asks for the output's size
// first, which doubles the round trips to the HSM and which NSS softokn answers
// wrongly for AES-GCM; it frees the GCM parameters before C_Encrypt runs, where
// some HSMs write their IV; and it leaves plaintext behind in freed C memory.
// C_Login takes the PIN as bytes that can be wiped, not as a Go string.
package p11

import (
	"fmt"

	"github.com/miekg/pkcs11"

	"kekd/internal/secret"
)

// CKMAESKeyWrapKWP is CKM_AES_KEY_WRAP_KWP of PKCS#11 v3.0 (RFC 5649), which
// the binding does not name. The older 0x210A means different things to
// different vendors and must not be used for anything that is stored.
const CKMAESKeyWrapKWP = 0x210B

// Mechanism is a CK_MECHANISM with what kekd uses of its parameters.
type Mechanism struct {
	Type uint
	// IV is the IV of CKM_AES_CBC or CKM_AES_GCM. A token that draws its own IV
	// may write it here, so the slice belongs to the call while it runs. For GCM
	// it may be nil: the token must then choose, which few do safely.
	IV []byte
	// AAD is for CKM_AES_GCM, and never empty there: SoftHSM before 2.7 built
	// with assertions aborts on it.
	AAD []byte
	// Hash is that of CKM_RSA_PKCS_OAEP and CKM_RSA_AES_KEY_WRAP, and of their mask
	// generation function: CKM_SHA_1 or CKM_SHA256.
	Hash uint
}

// tagBits is the GCM tag length that kekd always asks for.
const tagBits = 128

// Cryptoki is the part of a PKCS#11 module that the worker calls. All methods
// may be called from several goroutines, one at a time for each session. Errors
// are of type Error.
type Cryptoki interface {
	// Initialize calls C_Initialize with CKF_OS_LOCKING_OK; initArgs goes to
	// pReserved (NSS softokn reads its configuration from there).
	Initialize(initArgs string) error
	Finalize() error
	GetInfo() (pkcs11.Info, error)
	// GetSlotList lists the slots with a token in them.
	GetSlotList() ([]uint, error)
	GetTokenInfo(slot uint) (pkcs11.TokenInfo, error)
	GetMechanismInfo(slot, mechanism uint) (pkcs11.MechanismInfo, error)
	// OpenSession opens a read-write session.
	OpenSession(slot uint) (pkcs11.SessionHandle, error)
	CloseSession(s pkcs11.SessionHandle) error
	// SessionState is the state that C_GetSessionInfo reports, a CKS_ value.
	SessionState(s pkcs11.SessionHandle) (uint, error)
	// Login logs the user in; a nil PIN means the token's own PIN pad.
	Login(s pkcs11.SessionHandle, pin secret.Bytes) error
	// FindObjects returns at most limit handles.
	FindObjects(s pkcs11.SessionHandle, template []*pkcs11.Attribute, limit int) ([]pkcs11.ObjectHandle, error)
	// GetAttribute reads one attribute. Several in one call would all fail where
	// one is unknown to the token.
	GetAttribute(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, attribute uint) ([]byte, error)
	// SetAttribute changes one attribute.
	SetAttribute(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, a *pkcs11.Attribute) error
	GenerateKey(s pkcs11.SessionHandle, mechanism uint, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error)
	GenerateKeyPair(s pkcs11.SessionHandle, mechanism uint, public, private []*pkcs11.Attribute) (pub, priv pkcs11.ObjectHandle, err error)
	// UnwrapKey makes a key object of a wrapped key, which is not empty.
	UnwrapKey(s pkcs11.SessionHandle, key pkcs11.ObjectHandle, m Mechanism, wrapped []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error)
	DestroyObject(s pkcs11.SessionHandle, o pkcs11.ObjectHandle) error
	// Encrypt is C_EncryptInit and one C_Encrypt. The output belongs to the caller.
	Encrypt(s pkcs11.SessionHandle, key pkcs11.ObjectHandle, m Mechanism, in []byte) ([]byte, error)
	// Decrypt is C_DecryptInit and one C_Decrypt. The output is secret and
	// belongs to the caller; no copy stays behind.
	Decrypt(s pkcs11.SessionHandle, key pkcs11.ObjectHandle, m Mechanism, in []byte) (secret.Bytes, error)
	// Sign is C_SignInit and one C_Sign with a mechanism without parameters.
	Sign(s pkcs11.SessionHandle, key pkcs11.ObjectHandle, mechanism uint, data []byte) ([]byte, error)
}

// Error is a call's return value other than CKR_OK.
type Error struct {
	// Call is the function that returned it, such as C_EncryptInit.
	Call string
	RV   uint
}

// Error implements error.
func (e Error) Error() string { return fmt.Sprintf("%s: CK_RV 0x%x", e.Call, e.RV) }
