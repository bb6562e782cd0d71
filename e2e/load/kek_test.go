// Package load drives real kekd processes, on SoftHSM behind a module that does harm
// on command, until they have too much to do or nothing to do it with: a soak under
// faults, more requests than kekd takes, a cold start with more seeds than any
// cluster has, and readers who never stop asking for what can't be read.
//
//	go test ./load/                                  a few minutes
//	go test ./load/ -run TestSoak -soak=10m -update  the report in docs/reliability.md
package load

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// ring is the label of the daemons' key ring.
const ring = "k8s-kek"

// knownKEK is a KEK whose bytes the test knows, as nobody else does: so it can make
// thousands of seeds that no kekd has met, and no HSM has to wrap them. It
// follows docs/design.md alone; that kekd opens what it makes holds the page to
// the code.
type knownKEK struct {
	id    []byte // CKA_ID
	check []byte // check value
	aead  cipher.AEAD
}

// importKEK makes a KEK and puts it on a token, by SoftHSM's own tool.
func importKEK(tb testing.TB, token *harness.Token) *knownKEK {
	tb.Helper()
	// The tool takes some bytes for the key's end.
	key := []byte(base64.StdEncoding.EncodeToString(random(24)))
	block, err := aes.NewCipher(key)
	must(tb, err)
	zero := make([]byte, aes.BlockSize)
	block.Encrypt(zero, zero)
	k := &knownKEK{check: zero[:3], aead: gcm(key)}
	// Activated a moment ago.
	k.id = binary.BigEndian.AppendUint64([]byte{1}, uint64(time.Now().Add(-time.Minute).Unix()))
	k.id = append(k.id, random(8)...)

	file := filepath.Join(tb.TempDir(), "kek")
	must(tb, os.WriteFile(file, key, 0o600))
	cmd := exec.CommandContext(tb.Context(), "softhsm2-util", "--import", file, "--aes", "--module", token.Module,
		"--token", token.Label, "--pin", token.PIN(), "--label", ring, "--id", hex.EncodeToString(k.id))
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+token.Conf)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("import the KEK: %v\n%s", err, out)
	}
	return k
}

// keyID is the key_id towards Kubernetes.
func (k *knownKEK) keyID() string {
	return fmt.Sprintf("%s/%x/%x", ring, k.id, k.check)
}

// sealed is a value as kekd's Encrypt returns it, and what it holds.
type sealed struct {
	keyID      string
	ciphertext []byte
	plaintext  []byte
}

// seal makes a value under a seed of its own; damaged makes one whose seed the HSM
// will refuse to unwrap.
func (k *knownKEK) seal() sealed { return k.make(func([]byte) {}) }
func (k *knownKEK) damaged() sealed {
	return k.make(func(wrapped []byte) { wrapped[len(wrapped)-1] ^= 1 })
}

func (k *knownKEK) make(spoil func(wrapped []byte)) sealed {
	seed, iv, salt, nonce := random(32), random(12), random(32), random(12)
	aad := slices.Concat([]byte("kekd/v1/seed\x00"+ring+"\x00"), k.id)
	wrapped := k.aead.Seal(iv, iv, seed, aad)
	spoil(wrapped)

	const version, seeded, gcmCallerIV = 1, 1, 1
	header := slices.Concat([]byte{version, seeded, gcmCallerIV, byte(len(k.id))}, k.id, k.check)
	header = binary.BigEndian.AppendUint16(header, uint16(len(wrapped)))
	header = slices.Concat(header, wrapped, salt)
	key, err := hkdf.Expand(sha256.New, seed, "kekd/v1/dek"+string(salt), 32)
	if err != nil {
		panic(err)
	}
	s := sealed{keyID: k.keyID(), plaintext: random(32)}
	body := gcm(key).Seal(nil, nonce, s.plaintext, slices.Concat(header, []byte(s.keyID)))
	s.ciphertext = slices.Concat(header, nonce, body)
	return s
}

// many makes n values with a seed each.
func many(n int, seal func() sealed) []sealed {
	all := make([]sealed, n)
	for i := range all {
		all[i] = seal()
	}
	return all
}

func gcm(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// readyWorkers are the daemon's worker processes that have logged in. Whoever kills one
// earlier may find SoftHSM's token gone: it writes the token's file anew at each
// C_Login, in place.
func (r *rig) readyWorkers(tb testing.TB) []int {
	tb.Helper()
	log := r.Log(tb)
	return slices.DeleteFunc(r.Workers(), func(pid int) bool {
		return !strings.Contains(log, fmt.Sprintf(`"msg":"hsm worker ready","pid":%d,`, pid))
	})
}

// rig is a token behind the fault-injecting module, a KEK on it and a daemon.
type rig struct {
	*harness.Kekd
	token *harness.Token
	kek   *knownKEK
}

// startRig starts a daemon that logs no requests, and waits until it is ready.
func startRig(tb testing.TB, options harness.KekdOptions) *rig {
	tb.Helper()
	token := harness.NewToken(tb)
	kek := importKEK(tb, token)
	faulty := token.WithFaults(tb)
	options.LogLevel = "info"
	r := &rig{Kekd: harness.NewSibling(tb, faulty, options), token: faulty, kek: kek}
	faulty.Faults(tb)
	r.StartReady(tb)
	status, err := r.Status(tb.Context())
	must(tb, err)
	if status.State(kek.keyID()) != "primary" {
		tb.Fatalf("kekd's keys are %+v, want %s", status.KeyRing.Keys, kek.keyID())
	}
	return r
}

// What this package makes is what kekd makes: in both directions.
func TestKnownKEK(t *testing.T) {
	t.Parallel()
	r := startRig(t, harness.KekdOptions{})
	c := r.connect(t)
	for range 3 {
		if err := c.opens(t.Context(), r.kek.seal()); err != nil {
			t.Errorf("a value of the test's own: %v", err)
		}
	}
	if err := c.opens(t.Context(), r.kek.damaged()); !refused(err) {
		t.Errorf("a damaged seed: %v, want a refusal of the request", err)
	}
	v, err := c.seals(t.Context())
	must(t, err)
	if v.keyID != r.kek.keyID() {
		t.Errorf("kekd encrypts under %s, want %s", v.keyID, r.kek.keyID())
	}
	// The KEK's own bytes open kekd's wrapped seed.
	at := 4 + len(r.kek.id) + 3
	wrapped := v.ciphertext[at+2:][:binary.BigEndian.Uint16(v.ciphertext[at:])]
	aad := slices.Concat([]byte("kekd/v1/seed\x00"+ring+"\x00"), r.kek.id)
	if seed, err := r.kek.aead.Open(nil, wrapped[:12], wrapped[12:], aad); err != nil || len(seed) != 32 || bytes.Equal(seed, v.plaintext) {
		t.Errorf("the seed of kekd's own value has %d bytes: %v", len(seed), err)
	}
	must(t, c.opens(context.Background(), v))
}
