package chaos

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"kekd/e2e/internal/harness"
)

// tokenArgument marks the test binary's call of itself: SoftHSM finds its token by the
// environment, so each look at a token has a process of its own.
const tokenArgument = "chaos-token"

// tokenRequest is what a look at the token shall do.
type tokenRequest struct {
	Module, Label, PIN string

	// Op is list, relabel, destroy or half-made.
	Op string
	// ID is the key's CKA_ID in hexadecimal.
	ID string
	// NewLabel is what relabel and half-made write.
	NewLabel string
}

// tokenKey is a key as the token has it, read without kekd's code.
type tokenKey struct {
	ID, Label string
	Decrypt   bool
}

// state is what the label says; activated or not is for clocks to tell.
func (k tokenKey) state() string {
	switch {
	case strings.Contains(k.Label, "/destroy-after-"):
		return "scheduled"
	case strings.Contains(k.Label, "/"):
		return "disabled"
	}
	return "enabled"
}

// onToken has another process work on the token, and returns the AES keys that the
// token holds afterwards.
func onToken(t testing.TB, token *harness.Token, req tokenRequest) []tokenKey {
	t.Helper()
	keys, err := tryToken(token, req)
	if err != nil {
		t.Fatalf("%s on the token: %v", req.Op, err)
	}
	return keys
}

func tryToken(token *harness.Token, req tokenRequest) ([]tokenKey, error) {
	env := token.Env()
	req.Module, req.Label, req.PIN = token.Module, token.Label, token.PIN()
	text, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, tokenArgument, string(text))
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	out, err := cmd.Output()
	if err != nil {
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, e.Stderr)
		}
		return nil, err
	}
	var keys []tokenKey
	err = json.Unmarshal(out, &keys)
	return keys, err
}

// list reads all AES keys of the token.
func list(t testing.TB, token *harness.Token) []tokenKey {
	t.Helper()
	return onToken(t, token, tokenRequest{Op: "list"})
}

// stateOnToken is the state of one key; "gone" if the token does not have it.
func stateOnToken(t testing.TB, token *harness.Token, id string) string {
	t.Helper()
	return stateIn(list(t, token), id)
}

func stateIn(keys []tokenKey, id string) string {
	i := slices.IndexFunc(keys, func(k tokenKey) bool { return k.ID == id })
	if i < 0 {
		return "gone"
	}
	return keys[i].state()
}

// tokenMain is the other process.
func tokenMain(text string) int {
	var req tokenRequest
	err := json.Unmarshal([]byte(text), &req)
	if err == nil {
		err = req.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (r tokenRequest) run() error {
	m := pkcs11.New(r.Module)
	if m == nil {
		return fmt.Errorf("load %s", r.Module)
	}
	defer m.Destroy()
	if err := m.Initialize(); err != nil {
		return err
	}
	defer func() { _ = m.Finalize() }()
	s, err := r.login(m)
	if err != nil {
		return err
	}
	if err := r.change(m, s); err != nil {
		return err
	}
	keys, err := r.list(m, s)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(keys)
}

func (r tokenRequest) login(m *pkcs11.Ctx) (pkcs11.SessionHandle, error) {
	slots, err := m.GetSlotList(true)
	if err != nil {
		return 0, err
	}
	for _, slot := range slots {
		info, err := m.GetTokenInfo(slot)
		if err != nil || strings.TrimRight(info.Label, " \x00") != r.Label {
			continue
		}
		s, err := m.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			return 0, err
		}
		return s, m.Login(s, pkcs11.CKU_USER, r.PIN)
	}
	return 0, fmt.Errorf("no token has the label %q", r.Label)
}

func (r tokenRequest) change(m *pkcs11.Ctx, s pkcs11.SessionHandle) error {
	id, err := hex.DecodeString(r.ID)
	if err != nil {
		return err
	}
	switch r.Op {
	case "list":
		return nil
	case "half-made":
		return r.halfMade(m, s, id)
	}
	objects, err := find(m, s, pkcs11.NewAttribute(pkcs11.CKA_ID, id))
	if err != nil {
		return err
	}
	if len(objects) != 1 {
		return fmt.Errorf("the token has %d keys with the CKA_ID %s", len(objects), r.ID)
	}
	switch r.Op {
	case "relabel":
		return m.SetAttributeValue(s, objects[0], []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, r.NewLabel)})
	case "destroy":
		return m.DestroyObject(s, objects[0])
	}
	return fmt.Errorf("unknown operation %q", r.Op)
}

// halfMade makes what a failed C_GenerateKey can leave behind: an object with all the
// attributes of a KEK with which the token can neither encrypt nor decrypt.
func (r tokenRequest) halfMade(m *pkcs11.Ctx, s pkcs11.SessionHandle, id []byte) error {
	_, err := m.GenerateKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, r.NewLabel), pkcs11.NewAttribute(pkcs11.CKA_ID, id), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false), pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
		// No mechanism that kekd knows, so every C_EncryptInit fails.
		pkcs11.NewAttribute(pkcs11.CKA_ALLOWED_MECHANISMS, mechanism(pkcs11.CKM_AES_CMAC)),
	})
	return err
}

// mechanism spells one CK_MECHANISM_TYPE as an attribute's value holds it.
func mechanism(m uint64) []byte {
	b := make([]byte, 8)
	for i := range b {
		b[i] = byte(m >> (8 * i))
	}
	return b
}

func find(m *pkcs11.Ctx, s pkcs11.SessionHandle, more ...*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	template := append(more, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES))
	if err := m.FindObjectsInit(s, template); err != nil {
		return nil, err
	}
	objects, _, err := m.FindObjects(s, 1000)
	return objects, errors.Join(err, m.FindObjectsFinal(s))
}

func (r tokenRequest) list(m *pkcs11.Ctx, s pkcs11.SessionHandle) ([]tokenKey, error) {
	objects, err := find(m, s)
	if err != nil {
		return nil, err
	}
	keys := []tokenKey{}
	for _, o := range objects {
		at, err := m.GetAttributeValue(s, o, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_ID, nil), pkcs11.NewAttribute(pkcs11.CKA_LABEL, nil), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, nil),
		})
		if err != nil {
			continue // it was destroyed meanwhile
		}
		keys = append(keys, tokenKey{hex.EncodeToString(at[0].Value), string(at[1].Value), len(at[2].Value) == 1 && at[2].Value[0] == 1})
	}
	return keys, nil
}
