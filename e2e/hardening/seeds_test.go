package hardening

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"kekd/e2e/internal/harness"
)

// TestSeeds learns seeds of a running kekd from the token itself, as only the holder
// of the PIN can, and looks for them in kekd's memory: as long as they are of use they
// stand in the locked mapping and nowhere else, and afterwards nowhere.
func TestSeeds(t *testing.T) {
	k := started(t)
	c := connect(t, k)
	retired := c.encrypt(t)
	rotate(t, k, c)
	primary := c.encrypt(t)
	seeds := unwrap(t, k.Token, retired, primary)
	if string(seeds[0]) == string(seeds[1]) {
		t.Fatal("one seed for both keys")
	}
	// Uses of both in number, some at the same time, which leave their traces on the
	// heap and on the stacks of goroutines.
	use(t, c, retired, primary)
	requireInArena(t, k, seeds[0])
	requireInArena(t, k, seeds[1])

	// A cold cache: both come from the HSM, by the worker, for many callers at once.
	k.Stop(t)
	k.StartReady(t)
	c = connect(t, k)
	use(t, c, retired, primary)
	requireInArena(t, k, seeds[0])
	requireInArena(t, k, seeds[1])
	for i, seed := range seeds {
		for _, f := range search(t, k.WorkerPID(t), forms(seed)) {
			t.Errorf("the worker's memory holds, of seed %d, %v", i, f)
		}
	}

	// Out of use: wiped, while the other stays.
	k.Command(t, "key", "disable", "--yes", keyOf(retired), "--force", keyOf(retired))
	refused(t, c, retired)
	requireNowhere(t, k, seeds[0])
	requireInArena(t, k, seeds[1])
	// The primary in an emergency: another takes over, and it is wiped.
	k.Command(t, "revoke", "--yes", keyOf(primary))
	refused(t, c, primary)
	requireNowhere(t, k, seeds[0])
	requireNowhere(t, k, seeds[1])
}

// keyOf is the CKA_ID in a value's key_id.
func keyOf(v value) string { return strings.Split(v.sealed.KeyID, "/")[1] }

func use(t *testing.T, c client, values ...value) {
	t.Helper()
	errs := make(chan error)
	const callers, calls = 16, 20
	for range callers {
		go func() {
			var err error
			for range calls {
				for _, v := range values {
					err = errors.Join(err, c.decrypt(t.Context(), v))
				}
			}
			errs <- err
		}()
	}
	for range callers {
		if err := <-errs; err != nil {
			t.Fatalf("decrypt: %v", err)
		}
	}
	for range calls {
		c.encrypt(t)
	}
}

// refused waits until kekd opens a value no more.
func refused(t *testing.T, c client, v value) {
	t.Helper()
	harness.Eventually(t, readyWithin, "kekd refuses the key", func(ctx context.Context) error {
		err := c.decrypt(ctx, v)
		if err == nil {
			return errors.New("kekd decrypts")
		}
		if !strings.Contains(err.Error(), "FailedPrecondition") {
			return fmt.Errorf("%w: %w", harness.ErrHopeless, err)
		}
		return nil
	})
}

// forms are a seed and what HMAC makes of it, which is as good as the seed.
func forms(seed []byte) map[string][]byte {
	inner, outer := make([]byte, len(seed)), make([]byte, len(seed))
	for i, b := range seed {
		inner[i], outer[i] = b^0x36, b^0x5c
	}
	// A part of it gives the rest away to nobody, yet shows a copy that was cut up.
	return map[string][]byte{
		"the seed": seed, "the seed's first half": seed[:16], "the seed's second half": seed[16:],
		"the inner HMAC key": inner, "the outer HMAC key": outer,
	}
}

func requireInArena(t *testing.T, k *harness.Kekd, seed []byte) {
	t.Helper()
	whole := 0
	for _, f := range search(t, k.PID(), forms(seed)) {
		switch {
		case !f.in.locked():
			t.Errorf("kekd's memory holds, outside the locked mapping, %v", f)
		case f.what == "the seed":
			whole++
		}
	}
	if whole != 1 && whole != 2 { // the seed in use, and its copy in the cache
		t.Errorf("the locked mapping holds the seed %d times, so the test shows nothing", whole)
	}
}

func requireNowhere(t *testing.T, k *harness.Kekd, seed []byte) {
	t.Helper()
	for _, f := range search(t, k.PID(), forms(seed)) {
		t.Errorf("kekd's memory holds what should be wiped: %v", f)
	}
}

// unwrap decrypts the values' wrapped seeds by PKCS#11, after docs/design.md.
func unwrap(t *testing.T, token *harness.Token, values ...value) [][]byte {
	t.Helper()
	t.Setenv("SOFTHSM2_CONF", token.Conf)
	p := pkcs11.New(token.Module)
	if p == nil {
		t.Fatalf("%s is no PKCS#11 module", token.Module)
	}
	defer p.Destroy()
	must := func(what string, err error) {
		if t.Helper(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	must("C_Initialize", p.Initialize())
	defer func() { must("C_Finalize", p.Finalize()) }()
	slots, err := p.GetSlotList(true)
	must("C_GetSlotList", err)
	s, err := p.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION)
	must("C_OpenSession", err)
	must("C_Login", p.Login(s, pkcs11.CKU_USER, token.PIN()))
	var seeds [][]byte
	for _, v := range values {
		// version, scheme, mechanism; id; check value; wrapped seed.
		e := v.sealed.Ciphertext
		if e[0] != 1 || e[1] != 1 || e[2] != 1 {
			t.Fatalf("envelope %x…, want version 1, seeded, AES-GCM with an IV of kekd's", e[:3])
		}
		id := e[4 : 4+int(e[3])]
		rest := e[4+len(id)+3:]
		wrapped := rest[2 : 2+int(binary.BigEndian.Uint16(rest))]
		label, _, _ := strings.Cut(v.sealed.KeyID, "/")
		bound := append([]byte("kekd/v1/seed\x00"+label+"\x00"), id...)

		must("C_FindObjectsInit", p.FindObjectsInit(s, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_ID, id), pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		}))
		keys, _, err := p.FindObjects(s, 2)
		must("C_FindObjects", err)
		must("C_FindObjectsFinal", p.FindObjectsFinal(s))
		if len(keys) != 1 {
			t.Fatalf("%d keys have the id %x", len(keys), id)
		}
		params := pkcs11.NewGCMParams(wrapped[:12], bound, 128)
		must("C_DecryptInit", p.DecryptInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, keys[0]))
		seed, err := p.Decrypt(s, wrapped[12:])
		params.Free()
		must("C_Decrypt", err)
		if len(seed) != 32 {
			t.Fatalf("a seed of %d bytes", len(seed))
		}
		seeds = append(seeds, seed)
	}
	return seeds
}
