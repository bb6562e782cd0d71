// Package naive uses a token in the way that is usual for small KMS plugins:
// the module is loaded into the process itself, sessions come from a pool, and
// each value is one AES-GCM operation of the token under the KEK. It is what
// kekd is measured against. There are no deadlines, no way back from a lost
// session, and the binding's two calls (size, then content) for each operation.
package naive

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"
)

const (
	ivSize  = 12 // bytes
	tagBits = 128
)

// Overhead is how much longer than its plaintext a ciphertext is, in bytes.
const Overhead = ivSize + tagBits/8

// Token is one AES key on a token. It is safe for concurrent use, but for Close.
type Token struct {
	ctx  *pkcs11.Ctx
	key  pkcs11.ObjectHandle
	id   []byte
	idle chan pkcs11.SessionHandle
}

// Open loads the module, logs in, finds the newest AES key of a label, by CKA_ID,
// and opens all sessions.
func Open(module, tokenLabel, pin, keyLabel string, sessions int) (_ *Token, err error) {
	t := &Token{ctx: pkcs11.New(module), idle: make(chan pkcs11.SessionHandle, sessions)}
	if t.ctx == nil {
		return nil, fmt.Errorf("load %s", module)
	}
	if err := t.ctx.Initialize(); err != nil {
		return nil, fmt.Errorf("initialize %s: %w", module, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	slot, err := t.findSlot(tokenLabel)
	if err != nil {
		return nil, err
	}
	for i := range sessions {
		s, err := t.ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
		if err != nil {
			return nil, fmt.Errorf("open session %d: %w", i+1, err)
		}
		if i == 0 {
			if err := t.ctx.Login(s, pkcs11.CKU_USER, pin); err != nil {
				return nil, fmt.Errorf("log in: %w", err)
			}
			if err := t.findKey(s, keyLabel); err != nil {
				return nil, err
			}
		}
		t.idle <- s
	}
	return t, nil
}

func (t *Token) findSlot(label string) (uint, error) {
	slots, err := t.ctx.GetSlotList(true)
	if err != nil {
		return 0, fmt.Errorf("list the slots: %w", err)
	}
	for _, slot := range slots {
		info, err := t.ctx.GetTokenInfo(slot)
		if err == nil && strings.TrimRight(info.Label, " \x00") == label {
			return slot, nil
		}
	}
	return 0, fmt.Errorf("no token has the label %q", label)
}

// maxKeys is how many keys of one label are looked at.
const maxKeys = 64

func (t *Token) findKey(s pkcs11.SessionHandle, label string) error {
	err := t.ctx.FindObjectsInit(s, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
	})
	if err != nil {
		return fmt.Errorf("look for the key: %w", err)
	}
	keys, _, err := t.ctx.FindObjects(s, maxKeys)
	if err := errors.Join(err, t.ctx.FindObjectsFinal(s)); err != nil {
		return fmt.Errorf("look for the key: %w", err)
	}
	for _, key := range keys {
		a, err := t.ctx.GetAttributeValue(s, key, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, nil)})
		if err != nil {
			return fmt.Errorf("read the key's CKA_ID: %w", err)
		}
		if string(a[0].Value) > string(t.id) {
			t.key, t.id = key, a[0].Value
		}
	}
	if t.id == nil {
		return fmt.Errorf("no key has the label %q", label)
	}
	return nil
}

// ID is the key's CKA_ID.
func (t *Token) ID() []byte { return t.id }

// Encrypt returns IV ‖ ciphertext ‖ tag.
func (t *Token) Encrypt(plaintext, aad []byte) ([]byte, error) {
	iv := make([]byte, ivSize)
	_, _ = rand.Read(iv) // never fails, see its documentation
	s := <-t.idle
	defer func() { t.idle <- s }()
	params := pkcs11.NewGCMParams(iv, aad, tagBits)
	defer params.Free()
	if err := t.ctx.EncryptInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, t.key); err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	out, err := t.ctx.Encrypt(s, plaintext)
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	return append(iv, out...), nil
}

// Decrypt is the inverse of Encrypt.
func (t *Token) Decrypt(ciphertext, aad []byte) ([]byte, error) {
	if len(ciphertext) < Overhead {
		return nil, errors.New("decrypt: the ciphertext is too short")
	}
	s := <-t.idle
	defer func() { t.idle <- s }()
	params := pkcs11.NewGCMParams(ciphertext[:ivSize], aad, tagBits)
	defer params.Free()
	if err := t.ctx.DecryptInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, t.key); err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	out, err := t.ctx.Decrypt(s, ciphertext[ivSize:])
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	return out, nil
}

// Close ends all sessions. Nobody may be using the token. The library stays
// loaded: some crash when they are unloaded, and the process is about to end.
func (t *Token) Close() error { return t.ctx.Finalize() }
