package hsmtest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"kekd/hsm"
	"kekd/hsm/p11"
	"kekd/hsm/wire"
	"kekd/internal/kek"
	"kekd/internal/secret"
)

// Ring is the key ring's label on all test tokens.
const Ring = "k8s-kek"

// Fixture is a fresh, initialised token with an empty ring.
type Fixture struct {
	// Config is ready for hsm.New, with a PIN source and a latch store of its own.
	Config hsm.Config
	PIN    *PIN
	Latch  *Latch
	// Mechanisms are those that the token must be found to have, best first.
	Mechanisms []kek.Mechanism
	// ImportMethods and Hashes are those that the token must be found to have for the
	// import of keys, and SizeTold whether it tells the size of an unwrapped key.
	ImportMethods []wire.ImportMethod
	Hashes        []wire.OAEPHash
	SizeTold      bool
	// NoECDSA: the token has no elliptic curves, so audit keys are for HMAC.
	NoECDSA bool
	// WrappingKey puts an AES key that may unwrap on the token; nil where the token
	// does not unwrap by AES. It must be called from one test at a time.
	WrappingKey func(t *testing.T, id kek.ID, value []byte)
	// ForeignKey makes an AES key by another tool, with this label and id (hex).
	ForeignKey func(t *testing.T, label, id string)
	// Twin makes a second token of the same label beside the first; nil where the
	// module has one token only.
	Twin func(t *testing.T)
	// Locks: wrong PINs are counted by the token.
	Locks bool
}

// PIN is a PIN source whose content a test can change.
type PIN struct {
	mu    sync.Mutex
	value string
	reads int
}

// Set changes the PIN.
func (p *PIN) Set(v string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.value = v
}

// Read implements hsm.PINSource.
func (p *PIN) Read() (secret.Bytes, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reads++
	return secret.Bytes(p.value), nil
}

// String implements hsm.PINSource.
func (p *PIN) String() string { return "the test" }

// Latch is an hsm.LatchStore in memory.
type Latch struct {
	mu  sync.Mutex
	rec *hsm.LatchRecord
}

// Load implements hsm.LatchStore.
func (l *Latch) Load(_ string, v any) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rec == nil {
		return false, nil
	}
	to, ok := v.(*hsm.LatchRecord)
	if !ok {
		return false, errors.New("not a latch record")
	}
	*to = *l.rec
	return true, nil
}

// Save implements hsm.LatchStore.
func (l *Latch) Save(_ string, v any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	rec, ok := v.(*hsm.LatchRecord)
	if !ok {
		return errors.New("not a latch record")
	}
	l.rec = rec
	return nil
}

// Remove implements hsm.LatchStore.
func (l *Latch) Remove(string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec = nil
	return nil
}

// Writable implements hsm.LatchStore.
func (l *Latch) Writable() error { return nil }

// Set reports whether something is latched.
func (l *Latch) Set() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec != nil
}

func fixture(t *testing.T, module, label, pin string) *Fixture {
	t.Helper()
	p, l := &PIN{value: pin}, &Latch{}
	return &Fixture{
		Config: hsm.Config{
			Module: module, Token: wire.Selector{Label: label}, PIN: p, Latch: l,
			Sessions: 4, CallTimeout: 10 * time.Second, Ring: Ring,
			Logger: zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)), Env: map[string]string{},
		},
		PIN: p, Latch: l,
	}
}

// AllMechanisms are the PKCS#11 mechanisms that kekd can use.
func AllMechanisms() []uint {
	return []uint{
		pkcs11.CKM_AES_GCM, p11.CKMAESKeyWrapKWP, pkcs11.CKM_AES_CBC, pkcs11.CKM_SHA256_HMAC,
		pkcs11.CKM_RSA_PKCS_OAEP, pkcs11.CKM_RSA_AES_KEY_WRAP,
	}
}

// NewFake makes a fake token. The worker binary must open paths with FakeSuffix
// by OpenFake.
func NewFake(t *testing.T, change func(*FakeToken)) *Fixture {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token"+FakeSuffix)
	token := &FakeToken{Label: "kekd-test", Serial: "4711", PIN: "123456", TriesLeft: 3, Mechanisms: AllMechanisms()}
	if change != nil {
		change(token)
	}
	must(t, WriteFake(path, token))
	f := fixture(t, path, token.Label, token.PIN)
	f.Mechanisms = []kek.Mechanism{kek.GCMCallerIV, kek.KWP, kek.CBCHMAC}
	f.Locks, f.NoECDSA = true, true
	f.ImportMethods, f.Hashes, f.SizeTold = wire.ImportMethods(), []wire.OAEPHash{wire.SHA256, wire.SHA1}, true
	f.WrappingKey = func(t *testing.T, id kek.ID, value []byte) {
		t.Helper()
		token, err := ReadFake(path)
		must(t, err)
		token.add(value, attributesOf(wrappingKeyTemplate(id)))
		must(t, WriteFake(path, token))
	}
	f.ForeignKey = func(t *testing.T, label, id string) {
		t.Helper()
		token, err := ReadFake(path)
		must(t, err)
		token.Add(ForeignAttributes(t, label, id))
		must(t, WriteFake(path, token))
	}
	return f
}

// ForeignAttributes are those of a key that another tool made.
func ForeignAttributes(t *testing.T, label, id string) map[uint][]byte {
	t.Helper()
	raw, err := hex.DecodeString(id)
	must(t, err)
	attributes := map[uint][]byte{}
	for _, a := range []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_ID, raw),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
	} {
		attributes[a.Type] = a.Value
	}
	return attributes
}

// SoftHSMModule is where Debian's softhsm2 package puts its module.
const SoftHSMModule = "/usr/lib/softhsm/libsofthsm2.so"

// NewSoftHSM makes a SoftHSM token. A missing SoftHSM fails the test.
func NewSoftHSM(t *testing.T) *Fixture {
	t.Helper()
	dir := t.TempDir()
	tokens := filepath.Join(dir, "tokens")
	must(t, os.Mkdir(tokens, 0o700))
	conf := filepath.Join(dir, "softhsm2.conf")
	must(t, os.WriteFile(conf, []byte("directories.tokendir = "+tokens+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600))
	env := []string{"SOFTHSM2_CONF=" + conf, "PATH=" + os.Getenv("PATH")}
	label := "kekd-" + suffix()
	initToken := func(t *testing.T) {
		t.Helper()
		command(t, env, "softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "87654321", "--pin", "123456")
	}
	initToken(t)
	f := fixture(t, SoftHSMModule, label, "123456")
	f.Config.Env = map[string]string{"SOFTHSM2_CONF": conf}
	f.Mechanisms = []kek.Mechanism{kek.GCMCallerIV, kek.CBCHMAC}
	f.ImportMethods, f.Hashes = []wire.ImportMethod{wire.RSAOAEP}, []wire.OAEPHash{wire.SHA1}
	f.Twin = initToken
	f.ForeignKey = func(t *testing.T, keyLabel, id string) {
		t.Helper()
		command(t, env, "pkcs11-tool", "--module", SoftHSMModule, "--token-label", label, "--login", "--pin", "123456",
			"--keygen", "--key-type", "aes:32", "--label", keyLabel, "--id", id)
	}
	return f
}

// NewNSS makes a token of NSS softokn, a second and independent implementation.
// A missing libnss3 fails the test.
func NewNSS(t *testing.T) *Fixture {
	t.Helper()
	module := ""
	for _, dir := range []string{"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"} {
		for _, sub := range []string{"", "nss"} {
			path := filepath.Join(dir, sub, "libsoftokn3.so")
			if _, err := os.Stat(path); module == "" && err == nil {
				module = path
			}
		}
	}
	if module == "" {
		t.Fatal("libsoftokn3.so is not installed: run make deps")
	}
	dir := t.TempDir()
	pinFile := filepath.Join(dir, "pin")
	must(t, os.WriteFile(pinFile, []byte("123456"), 0o600))
	command(t, []string{"PATH=" + os.Getenv("PATH")}, "certutil", "-N", "-d", "sql:"+dir, "-f", pinFile)
	f := fixture(t, module, "NSS Certificate DB", "123456")
	f.Config.InitArgs = "configdir='sql:" + dir + "' certPrefix='' keyPrefix='' secmod='secmod.db' flags="
	f.Mechanisms = []kek.Mechanism{kek.GCMCallerIV, kek.KWP, kek.CBCHMAC}
	f.ImportMethods = []wire.ImportMethod{wire.RSAOAEP, wire.AESKWP}
	f.Hashes, f.SizeTold = []wire.OAEPHash{wire.SHA256, wire.SHA1}, true
	f.WrappingKey = func(t *testing.T, id kek.ID, value []byte) {
		t.Helper()
		placeKey(t, f.Config, id, value)
	}
	return f
}

// wrappingKeyTemplate is an AES key that may unwrap.
func wrappingKeyTemplate(id kek.ID) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, "transport"), pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id)),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, true),
	}
}

// placeKey unwraps a key onto NSS's token, in this very process: it has no tool
// that does.
func placeKey(t *testing.T, cfg hsm.Config, id kek.ID, value []byte) {
	t.Helper()
	m, err := p11.Open(cfg.Module)
	must(t, err)
	must(t, m.Initialize(cfg.InitArgs))
	defer func() { must(t, m.Finalize()) }()
	slots, err := m.GetSlotList()
	must(t, err)
	s, err := m.OpenSession(slots[len(slots)-1]) // the one with keys; the first only computes
	must(t, err)
	pin, err := cfg.PIN.Read()
	must(t, err)
	must(t, m.Login(s, pin))
	public, private, err := m.GenerateKeyPair(s, pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN,
		[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, 2048), pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1})},
		[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, true)})
	must(t, err)
	modulus, err := m.GetAttribute(s, public, pkcs11.CKA_MODULUS)
	must(t, err)
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: 65537}, value, nil)
	must(t, err)
	_, err = m.UnwrapKey(s, private, p11.Mechanism{Type: pkcs11.CKM_RSA_PKCS_OAEP, Hash: pkcs11.CKM_SHA256}, wrapped, wrappingKeyTemplate(id))
	must(t, err)
}

func suffix() string {
	b := make([]byte, 4)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func command(t *testing.T, env []string, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
