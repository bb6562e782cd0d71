package p11

/*
#cgo linux LDFLAGS: -ldl
#include <stdlib.h>
#include "oneshot.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/miekg/pkcs11"

	"kekd/internal/secret"
)

// Module is a PKCS#11 shared library. It is never unloaded: vendors' libraries
// crash when they are, and the process is about to end anyway.
type Module struct {
	ctx *pkcs11.Ctx
	raw *C.struct_kekd_functions

	// serial is not nil for a module that can't lock by itself: one call at a
	// time, then. Set by Initialize, before any other call.
	serial *sync.Mutex
}

var _ Cryptoki = (*Module)(nil)

// Open loads the library at path, an absolute path, and calls nothing in it but
// C_GetFunctionList.
func Open(path string) (*Module, error) {
	p := C.CString(path)
	defer C.free(unsafe.Pointer(p))
	if why := C.kekd_check(p); why != nil {
		defer C.free(unsafe.Pointer(why))
		return nil, errors.New(C.GoString(why))
	}
	m := &Module{raw: C.kekd_load(p), ctx: pkcs11.New(path)}
	if m.raw == nil || m.ctx == nil {
		return nil, errors.New("C_GetFunctionList returned no functions")
	}
	return m, nil
}

// enter begins a call into the module; the returned function ends it.
func (m *Module) enter() func() {
	if m.serial == nil {
		return func() {}
	}
	m.serial.Lock()
	return m.serial.Unlock
}

// check names the call in a binding's error.
func check(call string, err error) error {
	if err == nil {
		return nil
	}
	if rv, ok := errors.AsType[pkcs11.Error](err); ok {
		return Error{Call: call, RV: uint(rv)}
	}
	return fmt.Errorf("%s: %w", call, err)
}

// Initialize implements Cryptoki. A module that can't use the system's locks is
// initialised without and called by one goroutine at a time.
func (m *Module) Initialize(initArgs string) error {
	opts := []pkcs11.InitializeOption{}
	if initArgs != "" {
		// Not freed: a module may keep the pointer.
		opts = append(opts, pkcs11.InitializeWithReserved(unsafe.Pointer(C.CString(initArgs))))
	}
	err := check("C_Initialize", m.ctx.Initialize(opts...))
	var e Error
	if errors.As(err, &e) && (e.RV == pkcs11.CKR_CANT_LOCK || e.RV == pkcs11.CKR_NEED_TO_CREATE_THREADS) {
		m.serial = new(sync.Mutex)
		return check("C_Initialize", m.ctx.Initialize(append(opts, pkcs11.InitializeWithFlags(0))...))
	}
	return err
}

// Finalize implements Cryptoki. No other call may be running.
func (m *Module) Finalize() error { return check("C_Finalize", m.ctx.Finalize()) }

// GetInfo implements Cryptoki.
func (m *Module) GetInfo() (pkcs11.Info, error) {
	defer m.enter()()
	i, err := m.ctx.GetInfo()
	return i, check("C_GetInfo", err)
}

// GetSlotList implements Cryptoki.
func (m *Module) GetSlotList() ([]uint, error) {
	defer m.enter()()
	l, err := m.ctx.GetSlotList(true)
	return l, check("C_GetSlotList", err)
}

// GetTokenInfo implements Cryptoki.
func (m *Module) GetTokenInfo(slot uint) (pkcs11.TokenInfo, error) {
	defer m.enter()()
	i, err := m.ctx.GetTokenInfo(slot)
	return i, check("C_GetTokenInfo", err)
}

// GetMechanismInfo implements Cryptoki.
func (m *Module) GetMechanismInfo(slot, mechanism uint) (pkcs11.MechanismInfo, error) {
	defer m.enter()()
	i, err := m.ctx.GetMechanismInfo(slot, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)})
	return i, check("C_GetMechanismInfo", err)
}

// OpenSession implements Cryptoki. Read-write even for reading: CloudHSM has no
// read-only sessions.
func (m *Module) OpenSession(slot uint) (pkcs11.SessionHandle, error) {
	defer m.enter()()
	s, err := m.ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	return s, check("C_OpenSession", err)
}

// CloseSession implements Cryptoki.
func (m *Module) CloseSession(s pkcs11.SessionHandle) error {
	defer m.enter()()
	return check("C_CloseSession", m.ctx.CloseSession(s))
}

// SessionState implements Cryptoki.
func (m *Module) SessionState(s pkcs11.SessionHandle) (uint, error) {
	defer m.enter()()
	i, err := m.ctx.GetSessionInfo(s)
	return i.State, check("C_GetSessionInfo", err)
}

// Login implements Cryptoki.
func (m *Module) Login(s pkcs11.SessionHandle, pin secret.Bytes) error {
	defer m.enter()()
	return result("C_Login", C.kekd_login(m.raw, C.ck_ulong(s), ptr(pin), C.ck_ulong(len(pin))))
}

// FindObjects implements Cryptoki.
func (m *Module) FindObjects(s pkcs11.SessionHandle, template []*pkcs11.Attribute, limit int) ([]pkcs11.ObjectHandle, error) {
	defer m.enter()()
	if err := m.ctx.FindObjectsInit(s, template); err != nil {
		return nil, check("C_FindObjectsInit", err)
	}
	var found []pkcs11.ObjectHandle
	for len(found) < limit {
		some, _, err := m.ctx.FindObjects(s, min(limit-len(found), 128))
		if err != nil {
			return nil, check("C_FindObjects", err)
		}
		if len(some) == 0 {
			break
		}
		found = append(found, some...)
	}
	return found, check("C_FindObjectsFinal", m.ctx.FindObjectsFinal(s))
}

// GetAttribute implements Cryptoki.
func (m *Module) GetAttribute(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, attribute uint) ([]byte, error) {
	defer m.enter()()
	a, err := m.ctx.GetAttributeValue(s, o, []*pkcs11.Attribute{pkcs11.NewAttribute(attribute, nil)})
	if err != nil {
		return nil, check("C_GetAttributeValue", err)
	}
	return a[0].Value, nil
}

// SetAttribute implements Cryptoki.
func (m *Module) SetAttribute(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, a *pkcs11.Attribute) error {
	defer m.enter()()
	return check("C_SetAttributeValue", m.ctx.SetAttributeValue(s, o, []*pkcs11.Attribute{a}))
}

// GenerateKey implements Cryptoki.
func (m *Module) GenerateKey(s pkcs11.SessionHandle, mechanism uint, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	defer m.enter()()
	o, err := m.ctx.GenerateKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, template)
	return o, check("C_GenerateKey", err)
}

// GenerateKeyPair implements Cryptoki.
func (m *Module) GenerateKeyPair(s pkcs11.SessionHandle, mechanism uint, public, private []*pkcs11.Attribute) (pub, priv pkcs11.ObjectHandle, err error) {
	defer m.enter()()
	pub, priv, err = m.ctx.GenerateKeyPair(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, public, private)
	return pub, priv, check("C_GenerateKeyPair", err)
}

// UnwrapKey implements Cryptoki. The wrapped key is no secret, so the binding may
// leave copies.
func (m *Module) UnwrapKey(s pkcs11.SessionHandle, key pkcs11.ObjectHandle, mech Mechanism, wrapped []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	defer m.enter()()
	o, err := m.ctx.UnwrapKey(s, []*pkcs11.Mechanism{unwrapMechanism(mech)}, key, wrapped, template)
	return o, check("C_UnwrapKey", err)
}

// unwrapMechanism is mech as the binding spells it.
func unwrapMechanism(mech Mechanism) *pkcs11.Mechanism {
	mgf := uint(pkcs11.CKG_MGF1_SHA256)
	if mech.Hash == pkcs11.CKM_SHA_1 {
		mgf = pkcs11.CKG_MGF1_SHA1
	}
	oaep := pkcs11.NewOAEPParams(mech.Hash, mgf, pkcs11.CKZ_DATA_SPECIFIED, nil)
	switch mech.Type {
	case pkcs11.CKM_RSA_PKCS_OAEP:
		return pkcs11.NewMechanism(mech.Type, oaep)
	case pkcs11.CKM_RSA_AES_KEY_WRAP:
		return pkcs11.NewMechanism(mech.Type, &pkcs11.RSAAESKeyWrapParams{AESKeyBits: 256, OAEPParams: *oaep})
	}
	return pkcs11.NewMechanism(mech.Type, nil)
}

// DestroyObject implements Cryptoki.
func (m *Module) DestroyObject(s pkcs11.SessionHandle, o pkcs11.ObjectHandle) error {
	defer m.enter()()
	return check("C_DestroyObject", m.ctx.DestroyObject(s, o))
}

// outputSlack is how much longer than its input an output may be: IV, tag,
// padding or MAC in any combination.
const outputSlack = 64

// Encrypt implements Cryptoki.
func (m *Module) Encrypt(s pkcs11.SessionHandle, key pkcs11.ObjectHandle, mech Mechanism, in []byte) ([]byte, error) {
	return m.run(C.KEKD_ENCRYPT, "C_Encrypt", s, key, mech, in, make([]byte, len(in)+outputSlack))
}

// Decrypt implements Cryptoki.
func (m *Module) Decrypt(s pkcs11.SessionHandle, key pkcs11.ObjectHandle, mech Mechanism, in []byte) (secret.Bytes, error) {
	out := make([]byte, len(in)+outputSlack)
	plain, err := m.run(C.KEKD_DECRYPT, "C_Decrypt", s, key, mech, in, out)
	if err != nil {
		clear(out) // a module may have written before it failed
		return nil, err
	}
	return plain, nil
}

// Sign implements Cryptoki.
func (m *Module) Sign(s pkcs11.SessionHandle, key pkcs11.ObjectHandle, mechanism uint, data []byte) ([]byte, error) {
	return m.run(C.KEKD_SIGN, "C_Sign", s, key, Mechanism{Type: mechanism}, data, make([]byte, outputSlack))
}

// run calls Init and the operation, and returns out cut to the output's length.
func (m *Module) run(op C.enum_kekd_op, call string, s pkcs11.SessionHandle, key pkcs11.ObjectHandle, mech Mechanism, in, out []byte) ([]byte, error) {
	defer m.enter()()
	var tag C.ck_ulong
	if mech.Type == pkcs11.CKM_AES_GCM {
		tag = tagBits
	}
	n := C.ck_ulong(len(out))
	var atInit C.int
	rv := C.kekd_run(m.raw, op, C.ck_ulong(s), C.ck_ulong(key), C.ck_ulong(mech.Type),
		ptr(mech.IV), C.ck_ulong(len(mech.IV)), ptr(mech.AAD), C.ck_ulong(len(mech.AAD)), tag,
		ptr(in), C.ck_ulong(len(in)), ptr(out), &n, &atInit)
	if atInit != 0 {
		call += "Init"
	}
	if err := result(call, rv); err != nil {
		return nil, err
	}
	if n > C.ck_ulong(len(out)) { // a module that says it wrote past the buffer
		return nil, Error{Call: call, RV: pkcs11.CKR_BUFFER_TOO_SMALL}
	}
	return out[:n], nil
}

func result(call string, rv C.ck_ulong) error {
	if rv == 0 {
		return nil
	}
	return Error{Call: call, RV: uint(rv)}
}

// ptr points at a slice's bytes, nil for an empty one.
func ptr(b []byte) *C.uchar {
	if len(b) == 0 {
		return nil
	}
	return (*C.uchar)(unsafe.Pointer(unsafe.SliceData(b)))
}
