package hsm_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"kekd/hsm"
	"kekd/hsm/hsmtest"
	"kekd/hsm/p11"
	"kekd/internal/kek"
)

// without is a token that lacks some mechanisms.
func without(mechanisms ...uint) func(*hsmtest.FakeToken) {
	return func(token *hsmtest.FakeToken) {
		token.Mechanisms = slices.DeleteFunc(token.Mechanisms, func(m uint) bool { return slices.Contains(mechanisms, m) })
	}
}

func ivMode(mode string) func(*hsmtest.FakeToken) {
	return func(token *hsmtest.FakeToken) { token.IVMode = mode }
}

func TestMechanismIsFound(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*hsmtest.FakeToken)
		want   kek.Mechanism
		size   int // of a wrapped seed of 32 bytes
	}{
		"the caller's IV":     {nil, kek.GCMCallerIV, 12 + 32 + 16},
		"an IV written back":  {ivMode("written"), kek.GCMWrittenIV, 12 + 32 + 16},
		"an IV appended":      {ivMode("appended"), kek.GCMAppendedIV, 16 + 32 + 16},
		"a hidden zero IV":    {ivMode("zero"), kek.KWP, 8 + 32 + 32},
		"no GCM":              {without(pkcs11.CKM_AES_GCM), kek.KWP, 8 + 32 + 32},
		"neither GCM nor KWP": {without(pkcs11.CKM_AES_GCM, p11.CKMAESKeyWrapKWP), kek.CBCHMAC, 16 + 48 + 32},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, c.change)
			if r.mech != c.want {
				t.Errorf("proven %s, want %s", r.mech, c.want)
			}
			if len(r.blob) != c.size {
				t.Errorf("a seed of 32 bytes makes a blob of %d, want %d", len(r.blob), c.size)
			}
			must(t, r.unwrap(t.Context()))
			r.token = r.Open(t) // another process, as on another node
			must(t, r.unwrap(t.Context()))
			must(t, r.token.Probe(t.Context(), r.id, r.mech))
			for i := range r.blob {
				bad := slices.Clone(r.blob)
				bad[i] ^= 0x80
				if _, err := r.token.Unwrap(t.Context(), r.id, r.mech, bad, []byte(aad)); !errors.Is(err, kek.ErrCorrupt) {
					t.Fatalf("byte %d changed: %v, want ErrCorrupt", i, err)
				}
			}
		})
	}
}

func TestMechanismIsRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*hsmtest.FakeToken)
		pin    string
		says   string
	}{
		"a hidden zero IV":         {ivMode("zero"), "aes-gcm", "two encryptions gave the same ciphertext"},
		"pinned and missing":       {without(p11.CKMAESKeyWrapKWP), "aes-kwp", "the token has no CKM_AES_KEY_WRAP_KWP"},
		"another IV mode than pin": {ivMode("written"), "aes-gcm/caller-iv", "the token does aes-gcm/written-iv now"},
		"none at all":              {func(token *hsmtest.FakeToken) { token.Mechanisms = nil }, "", "the token has no CKM_AES_GCM"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := hsmtest.NewFake(t, c.change)
			token := f.Open(t, func(cfg *hsm.Config) { cfg.Mechanism = c.pin })
			_, _, err := token.Create(t.Context(), hsmtest.NewID(t))
			if !errors.Is(err, kek.ErrRefused) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want ErrRefused that says %q", err, c.says)
			}
		})
	}
}

// A token that treats IVs otherwise after a firmware update is refused, not
// followed: the new way could be a repeated nonce.
func TestIVModeChanges(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ before, after string }{
		{"", "written"}, {"", "appended"}, {"written", ""}, {"written", "appended"}, {"written", "zero"}, {"appended", ""}, {"appended", "zero"},
	} {
		t.Run(c.before+" to "+c.after, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, ivMode(c.before))
			pid := r.token.WorkerPID()
			r.edit(t, ivMode(c.after))
			if err := r.wrap(t.Context()); err == nil {
				t.Error("it wrapped all the same")
			}
			if _, _, err := r.token.Prove(t.Context(), r.id); !errors.Is(err, kek.ErrRefused) {
				t.Errorf("proven again: %v, want ErrRefused", err)
			}
			if r.token.WorkerPID() != pid {
				t.Error("it cost the worker its life")
			}
			r.edit(t, ivMode(c.before))
			must(t, r.wrap(t.Context()))
			must(t, r.unwrap(t.Context()))
		})
	}
}

// A key that the token lets decrypt only.
func TestKeyWithoutEncrypt(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.edit(t, func(token *hsmtest.FakeToken) { token.Objects[0].Attributes[pkcs11.CKA_ENCRYPT] = []byte{0} })
	if err := r.wrap(t.Context()); !errors.Is(err, kek.ErrRefused) {
		t.Errorf("wrap: %v, want ErrRefused", err)
	}
	if _, _, err := r.token.Prove(t.Context(), r.id); !errors.Is(err, kek.ErrRefused) {
		t.Errorf("prove: %v, want ErrRefused", err)
	}
	must(t, r.unwrap(t.Context()))
	if n := r.watch.restarted(); n != 0 {
		t.Errorf("%d restarts", n)
	}
}
