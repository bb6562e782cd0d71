// Package hsmtest has what tests of the HSM side share: a token in pure Go with
// fault hooks, real tokens to run against, and one conformance suite for all.
package hsmtest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/miekg/pkcs11"

	"kekd/hsm/p11"
	"kekd/internal/secret"
)

// FakeSuffix marks a module path as a fake token's file.
const FakeSuffix = ".faketoken"

// FakeToken is what a fake token keeps in its file, so that it outlives worker
// processes as a real one does.
type FakeToken struct {
	Label  string `json:"label"`
	Serial string `json:"serial"`
	PIN    string `json:"pin"`
	// TriesLeft is how many wrong PINs are allowed before the PIN is locked.
	TriesLeft int `json:"triesLeft"`
	// Logins counts C_Login calls.
	Logins int `json:"logins"`
	// Mechanisms are those that C_GetMechanismInfo knows.
	Mechanisms []uint `json:"mechanisms"`
	// IVMode is how AES-GCM treats its IV: "" for the caller's, "written" for one
	// that the token writes back and that must be given as zeros, "appended" for
	// one that it appends, "zero" for a broken token that takes no notice of the
	// caller's and always uses zeros.
	IVMode string `json:"ivMode"`
	// MaxSessions is ulMaxSessionCount; 0 says that there is no limit.
	MaxSessions uint `json:"maxSessions"`
	// SessionsLeft, if above 0, is how many sessions can really be open.
	SessionsLeft int `json:"sessionsLeft"`
	// ReadOnly are the attributes that the token refuses to change, and Deaf those
	// that it says it changes and does not.
	ReadOnly []uint `json:"readOnly"`
	Deaf     []uint `json:"deaf"`
	// LooseUnwrap: an unwrapped key is readable and extractable, whatever the template
	// says, as on opencryptoki 3.8.
	LooseUnwrap bool `json:"looseUnwrap"`
	// AmbiguousDecrypt: a damaged ciphertext gives CKR_GENERAL_ERROR, as on
	// SoftHSM 2.6.
	AmbiguousDecrypt bool          `json:"ambiguousDecrypt"`
	Objects          []*FakeObject `json:"objects"`
}

// FakeObject is a key on a fake token.
type FakeObject struct {
	Handle     uint            `json:"handle"`
	Value      []byte          `json:"value"`
	Attributes map[uint][]byte `json:"attributes"`
}

func (o *FakeObject) flag(attribute uint) bool {
	return bytes.Equal(o.Attributes[attribute], []byte{1})
}

// Fake is a PKCS#11 module over a FakeToken's file. It takes faults from another
// file beside it, see SetFaults.
type Fake struct {
	path string

	mu sync.Mutex
	// Guarded by mu, like the file.
	initialised bool
	loggedIn    bool
	nextSession pkcs11.SessionHandle
	open        map[pkcs11.SessionHandle]bool
	active      map[pkcs11.SessionHandle]bool // an operation was left active
}

var _ p11.Cryptoki = (*Fake)(nil)

// OpenFake opens the fake token in a file.
func OpenFake(path string) (*Fake, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	return &Fake{path: path, nextSession: 1, open: map[pkcs11.SessionHandle]bool{}, active: map[pkcs11.SessionHandle]bool{}}, nil
}

// WriteFake writes a token's file.
func WriteFake(path string, t *FakeToken) error {
	b, err := json.Marshal(t)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// ReadFake reads a token's file.
func ReadFake(path string) (*FakeToken, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t := new(FakeToken)
	return t, json.Unmarshal(b, t)
}

// rvActionProhibited is CKR_ACTION_PROHIBITED, which the binding does not name.
const rvActionProhibited = 0x1B

func fail(call string, rv uint) error { return p11.Error{Call: call, RV: rv} }

// token runs fn on the token and stores what it changed. The caller holds mu.
func (f *Fake) token(call string, fn func(t *FakeToken) error) error {
	t, err := ReadFake(f.path)
	if err != nil {
		return fail(call, pkcs11.CKR_TOKEN_NOT_PRESENT)
	}
	before, _ := json.Marshal(t)
	result := fn(t)
	after, _ := json.Marshal(t)
	if !bytes.Equal(before, after) {
		if err := WriteFake(f.path, t); err != nil {
			return fail(call, pkcs11.CKR_DEVICE_ERROR)
		}
	}
	return result
}

// enter injects faults and takes the lock; the caller unlocks.
func (f *Fake) enter(call string) error {
	if err := inject(f.path, call); err != nil {
		f.mu.Lock()
		return err
	}
	f.mu.Lock()
	if !f.initialised && call != "C_Initialize" {
		return fail(call, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)
	}
	return nil
}

// session checks a session's handle. The caller holds mu.
func (f *Fake) session(call string, s pkcs11.SessionHandle) error {
	if !f.open[s] {
		return fail(call, pkcs11.CKR_SESSION_HANDLE_INVALID)
	}
	return nil
}

// Initialize implements p11.Cryptoki.
func (f *Fake) Initialize(string) error {
	defer f.mu.Unlock()
	if err := f.enter("C_Initialize"); err != nil {
		return err
	}
	if f.initialised {
		return fail("C_Initialize", pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)
	}
	f.initialised = true
	return nil
}

// Finalize implements p11.Cryptoki.
func (f *Fake) Finalize() error {
	defer f.mu.Unlock()
	if err := f.enter("C_Finalize"); err != nil {
		return err
	}
	f.initialised, f.loggedIn = false, false
	clear(f.open)
	return nil
}

// GetInfo implements p11.Cryptoki.
func (f *Fake) GetInfo() (pkcs11.Info, error) {
	defer f.mu.Unlock()
	return pkcs11.Info{LibraryDescription: "fake token"}, f.enter("C_GetInfo")
}

// GetSlotList implements p11.Cryptoki: the token's slot, and one with a token
// that can't be read.
func (f *Fake) GetSlotList() ([]uint, error) {
	defer f.mu.Unlock()
	return []uint{7, 3}, f.enter("C_GetSlotList")
}

// GetTokenInfo implements p11.Cryptoki.
func (f *Fake) GetTokenInfo(slot uint) (pkcs11.TokenInfo, error) {
	defer f.mu.Unlock()
	if err := f.enter("C_GetTokenInfo"); err != nil {
		return pkcs11.TokenInfo{}, err
	}
	if slot != 3 {
		return pkcs11.TokenInfo{}, fail("C_GetTokenInfo", pkcs11.CKR_TOKEN_NOT_RECOGNIZED)
	}
	var info pkcs11.TokenInfo
	err := f.token("C_GetTokenInfo", func(t *FakeToken) error {
		info = pkcs11.TokenInfo{
			Label: t.Label + "\x00\x00", SerialNumber: t.Serial + "  ", ManufacturerID: "kekd", Model: "fake",
			Flags:           pkcs11.CKF_TOKEN_INITIALIZED | pkcs11.CKF_LOGIN_REQUIRED,
			MaxSessionCount: t.MaxSessions,
		}
		switch t.TriesLeft {
		case 0:
			info.Flags |= pkcs11.CKF_USER_PIN_LOCKED
		case 1:
			info.Flags |= pkcs11.CKF_USER_PIN_FINAL_TRY
		case 2:
			info.Flags |= pkcs11.CKF_USER_PIN_COUNT_LOW
		}
		return nil
	})
	return info, err
}

// GetMechanismInfo implements p11.Cryptoki.
func (f *Fake) GetMechanismInfo(_, mechanism uint) (pkcs11.MechanismInfo, error) {
	defer f.mu.Unlock()
	if err := f.enter("C_GetMechanismInfo"); err != nil {
		return pkcs11.MechanismInfo{}, err
	}
	err := f.token("C_GetMechanismInfo", func(t *FakeToken) error {
		if !slices.Contains(t.Mechanisms, mechanism) {
			return fail("C_GetMechanismInfo", pkcs11.CKR_MECHANISM_INVALID)
		}
		return nil
	})
	return pkcs11.MechanismInfo{Flags: pkcs11.CKF_ENCRYPT | pkcs11.CKF_DECRYPT | pkcs11.CKF_SIGN | pkcs11.CKF_VERIFY | pkcs11.CKF_UNWRAP}, err
}

// OpenSession implements p11.Cryptoki.
func (f *Fake) OpenSession(uint) (pkcs11.SessionHandle, error) {
	defer f.mu.Unlock()
	if err := f.enter("C_OpenSession"); err != nil {
		return 0, err
	}
	err := f.token("C_OpenSession", func(t *FakeToken) error {
		if t.SessionsLeft > 0 && len(f.open) >= t.SessionsLeft {
			return fail("C_OpenSession", pkcs11.CKR_SESSION_COUNT)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	s := f.nextSession
	f.nextSession++
	f.open[s] = true
	return s, nil
}

// SessionState implements p11.Cryptoki.
func (f *Fake) SessionState(s pkcs11.SessionHandle) (uint, error) {
	defer f.mu.Unlock()
	if err := f.enter("C_GetSessionInfo"); err != nil {
		return 0, err
	}
	if f.loggedIn {
		return pkcs11.CKS_RW_USER_FUNCTIONS, f.session("C_GetSessionInfo", s)
	}
	return pkcs11.CKS_RW_PUBLIC_SESSION, f.session("C_GetSessionInfo", s)
}

// CloseSession implements p11.Cryptoki. Closing the last one logs out.
func (f *Fake) CloseSession(s pkcs11.SessionHandle) error {
	defer f.mu.Unlock()
	if err := f.enter("C_CloseSession"); err != nil {
		return err
	}
	if err := f.session("C_CloseSession", s); err != nil {
		return err
	}
	delete(f.open, s)
	delete(f.active, s)
	if len(f.open) == 0 {
		f.loggedIn = false
	}
	return nil
}

// Login implements p11.Cryptoki.
func (f *Fake) Login(s pkcs11.SessionHandle, pin secret.Bytes) error {
	defer f.mu.Unlock()
	if err := f.enter("C_Login"); err != nil {
		return err
	}
	if err := f.session("C_Login", s); err != nil {
		return err
	}
	return f.token("C_Login", func(t *FakeToken) error {
		t.Logins++
		switch {
		case t.TriesLeft == 0:
			return fail("C_Login", pkcs11.CKR_PIN_LOCKED)
		case t.PIN != string(pin):
			t.TriesLeft--
			return fail("C_Login", pkcs11.CKR_PIN_INCORRECT)
		}
		t.TriesLeft = 3
		f.loggedIn = true
		return nil
	})
}

// FindObjects implements p11.Cryptoki.
func (f *Fake) FindObjects(s pkcs11.SessionHandle, template []*pkcs11.Attribute, limit int) ([]pkcs11.ObjectHandle, error) {
	defer f.mu.Unlock()
	if err := f.enter("C_FindObjects"); err != nil {
		return nil, err
	}
	if err := f.session("C_FindObjectsInit", s); err != nil {
		return nil, err
	}
	var found []pkcs11.ObjectHandle
	err := f.token("C_FindObjects", func(t *FakeToken) error {
		for _, o := range t.Objects {
			match := f.loggedIn // all keys are private
			for _, a := range template {
				match = match && bytes.Equal(o.Attributes[a.Type], a.Value)
			}
			if match && len(found) < limit {
				found = append(found, pkcs11.ObjectHandle(o.Handle))
			}
		}
		return nil
	})
	return found, err
}

// GetAttribute implements p11.Cryptoki.
func (f *Fake) GetAttribute(s pkcs11.SessionHandle, h pkcs11.ObjectHandle, attribute uint) ([]byte, error) {
	defer f.mu.Unlock()
	if err := f.enter("C_GetAttributeValue"); err != nil {
		return nil, err
	}
	if err := f.session("C_GetAttributeValue", s); err != nil {
		return nil, err
	}
	var v []byte
	err := f.token("C_GetAttributeValue", func(t *FakeToken) error {
		o := t.object(h)
		if o == nil {
			return fail("C_GetAttributeValue", pkcs11.CKR_OBJECT_HANDLE_INVALID)
		}
		var ok bool
		if v, ok = o.Attributes[attribute]; !ok {
			return fail("C_GetAttributeValue", pkcs11.CKR_ATTRIBUTE_TYPE_INVALID)
		}
		return nil
	})
	return v, err
}

// SetAttribute implements p11.Cryptoki.
func (f *Fake) SetAttribute(s pkcs11.SessionHandle, h pkcs11.ObjectHandle, a *pkcs11.Attribute) error {
	defer f.mu.Unlock()
	if err := f.enter("C_SetAttributeValue"); err != nil {
		return err
	}
	if err := f.session("C_SetAttributeValue", s); err != nil {
		return err
	}
	return f.token("C_SetAttributeValue", func(t *FakeToken) error {
		o := t.object(h)
		switch {
		case o == nil:
			return fail("C_SetAttributeValue", pkcs11.CKR_OBJECT_HANDLE_INVALID)
		case slices.Contains(t.ReadOnly, a.Type):
			return fail("C_SetAttributeValue", pkcs11.CKR_ATTRIBUTE_READ_ONLY)
		case !slices.Contains(t.Deaf, a.Type):
			o.Attributes[a.Type] = a.Value
		}
		return nil
	})
}

func (t *FakeToken) object(h pkcs11.ObjectHandle) *FakeObject {
	for _, o := range t.Objects {
		if o.Handle == uint(h) {
			return o
		}
	}
	return nil
}

// GenerateKey implements p11.Cryptoki.
func (f *Fake) GenerateKey(s pkcs11.SessionHandle, _ uint, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	defer f.mu.Unlock()
	if err := f.enter("C_GenerateKey"); err != nil {
		return 0, err
	}
	if err := f.session("C_GenerateKey", s); err != nil {
		return 0, err
	}
	var h uint
	err := f.token("C_GenerateKey", func(t *FakeToken) error {
		h = t.Add(attributesOf(template))
		return nil
	})
	return pkcs11.ObjectHandle(h), err
}

// Add puts a random key with these attributes on the token and returns its handle.
func (t *FakeToken) Add(attributes map[uint][]byte) uint {
	size := 32
	if v := attributes[pkcs11.CKA_VALUE_LEN]; len(v) == 8 {
		size = int(binary.NativeEndian.Uint64(v))
	}
	value := make([]byte, size)
	_, _ = rand.Read(value) // never fails
	return t.add(value, attributes)
}

func (t *FakeToken) add(value []byte, attributes map[uint][]byte) uint {
	h := uint(1)
	for _, o := range t.Objects {
		h = max(h, o.Handle+1)
	}
	t.Objects = append(t.Objects, &FakeObject{Handle: h, Value: value, Attributes: attributes})
	return h
}

// attributesOf is a template as a map, with what the token adds by itself.
func attributesOf(template []*pkcs11.Attribute, more ...*pkcs11.Attribute) map[uint][]byte {
	attributes := map[uint][]byte{}
	for _, a := range append(slices.Clone(template), more...) {
		attributes[a.Type] = a.Value
	}
	return attributes
}

// DestroyObject implements p11.Cryptoki.
func (f *Fake) DestroyObject(s pkcs11.SessionHandle, h pkcs11.ObjectHandle) error {
	defer f.mu.Unlock()
	if err := f.enter("C_DestroyObject"); err != nil {
		return err
	}
	if err := f.session("C_DestroyObject", s); err != nil {
		return err
	}
	return f.token("C_DestroyObject", func(t *FakeToken) error {
		i := slices.IndexFunc(t.Objects, func(o *FakeObject) bool { return o.Handle == uint(h) })
		if i < 0 {
			return fail("C_DestroyObject", pkcs11.CKR_OBJECT_HANDLE_INVALID)
		}
		if bytes.Equal(t.Objects[i].Attributes[pkcs11.CKA_DESTROYABLE], []byte{0}) {
			return fail("C_DestroyObject", rvActionProhibited)
		}
		t.Objects = slices.Delete(t.Objects, i, i+1)
		return nil
	})
}

// Encrypt implements p11.Cryptoki.
func (f *Fake) Encrypt(s pkcs11.SessionHandle, h pkcs11.ObjectHandle, m p11.Mechanism, in []byte) ([]byte, error) {
	return f.operate("C_Encrypt", s, h, m.Type, pkcs11.CKA_ENCRYPT, func(t *FakeToken, key []byte) ([]byte, uint) {
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, pkcs11.CKR_KEY_SIZE_RANGE
		}
		switch m.Type {
		case pkcs11.CKM_AES_ECB:
			out := make([]byte, len(in))
			block.Encrypt(out, in)
			return out, 0
		case pkcs11.CKM_AES_CBC:
			out := make([]byte, len(in))
			cipher.NewCBCEncrypter(block, m.IV).CryptBlocks(out, in)
			return out, 0
		case p11.CKMAESKeyWrapKWP:
			return kwpWrap(block, in), 0
		}
		iv := m.IV
		if t.IVMode != "" {
			if t.IVMode == "written" && !bytes.Equal(iv, make([]byte, 12)) {
				return nil, pkcs11.CKR_MECHANISM_PARAM_INVALID
			}
			iv = make([]byte, map[string]int{"written": 12, "appended": 16, "zero": 12}[t.IVMode])
			if t.IVMode != "zero" {
				_, _ = rand.Read(iv) // never fails
			}
		}
		gcm, err := cipher.NewGCMWithNonceSize(block, len(iv))
		if err != nil {
			return nil, pkcs11.CKR_MECHANISM_PARAM_INVALID
		}
		out := gcm.Seal(nil, iv, in, m.AAD)
		switch t.IVMode {
		case "written":
			copy(m.IV, iv)
		case "appended":
			out = append(out, iv...)
		}
		return out, 0
	})
}

// Decrypt implements p11.Cryptoki.
func (f *Fake) Decrypt(s pkcs11.SessionHandle, h pkcs11.ObjectHandle, m p11.Mechanism, in []byte) (secret.Bytes, error) {
	return f.operate("C_Decrypt", s, h, m.Type, pkcs11.CKA_DECRYPT, func(t *FakeToken, key []byte) ([]byte, uint) {
		bad := uint(pkcs11.CKR_ENCRYPTED_DATA_INVALID)
		if t.AmbiguousDecrypt {
			bad = pkcs11.CKR_GENERAL_ERROR
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, pkcs11.CKR_KEY_SIZE_RANGE
		}
		switch m.Type {
		case pkcs11.CKM_AES_CBC:
			out := make([]byte, len(in))
			cipher.NewCBCDecrypter(block, m.IV).CryptBlocks(out, in)
			return out, 0
		case p11.CKMAESKeyWrapKWP:
			out := KWPUnwrap(block, in)
			if out == nil {
				return nil, bad
			}
			return out, 0
		}
		iv := m.IV
		if t.IVMode == "zero" {
			iv = make([]byte, 12)
		}
		gcm, err := cipher.NewGCMWithNonceSize(block, len(iv))
		if err != nil {
			return nil, pkcs11.CKR_MECHANISM_PARAM_INVALID
		}
		out, err := gcm.Open(nil, iv, in, m.AAD)
		if err != nil {
			return nil, bad
		}
		return out, 0
	})
}

// Sign implements p11.Cryptoki.
func (f *Fake) Sign(s pkcs11.SessionHandle, h pkcs11.ObjectHandle, mechanism uint, data []byte) ([]byte, error) {
	return f.operate("C_Sign", s, h, mechanism, pkcs11.CKA_SIGN, func(_ *FakeToken, key []byte) ([]byte, uint) {
		mac := hmac.New(sha256.New, key)
		mac.Write(data)
		return mac.Sum(nil), 0
	})
}

// operate is what the three operations have in common: Init's checks, then fn.
// A fault of the operation itself leaves it active, as some modules do.
func (f *Fake) operate(call string, s pkcs11.SessionHandle, h pkcs11.ObjectHandle, mechanism, right uint, fn func(t *FakeToken, key []byte) ([]byte, uint)) ([]byte, error) {
	initErr := f.enter(call + "Init")
	f.mu.Unlock()
	if initErr != nil {
		return nil, initErr
	}
	var out []byte
	err := f.enter(call)
	defer f.mu.Unlock()
	if err != nil {
		f.active[s] = true
		return nil, err
	}
	if err := f.session(call+"Init", s); err != nil {
		return nil, err
	}
	if f.active[s] {
		return nil, fail(call+"Init", pkcs11.CKR_OPERATION_ACTIVE)
	}
	return out, f.token(call, func(t *FakeToken) error {
		if !f.loggedIn {
			return fail(call+"Init", pkcs11.CKR_USER_NOT_LOGGED_IN)
		}
		o := t.object(h)
		switch {
		case o == nil:
			return fail(call+"Init", pkcs11.CKR_KEY_HANDLE_INVALID)
		case !slices.Contains(t.Mechanisms, mechanism) && mechanism != pkcs11.CKM_AES_ECB:
			return fail(call+"Init", pkcs11.CKR_MECHANISM_INVALID)
		case !o.flag(right):
			return fail(call+"Init", pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED)
		}
		result, rv := fn(t, o.Value)
		if rv != 0 {
			return fail(call, rv)
		}
		out = result
		return nil
	})
}

// String implements fmt.Stringer, without the keys.
func (t *FakeToken) String() string { return fmt.Sprintf("fake token %q", t.Label) }
