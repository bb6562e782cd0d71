package hsm_test

import (
	"strings"
	"testing"

	"kekd/hsm"
	"kekd/hsm/hsmtest"
	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// With nothing to do the module is as good as the one behind it.
func TestConformanceFaultModule(t *testing.T) {
	t.Parallel()
	hsmtest.Conformance(t, func(t *testing.T) *hsmtest.Fixture {
		f := hsmtest.NewSoftHSM(t)
		f.FaultModule(t)
		return f
	})
}

func TestConformanceLikeCloudHSM(t *testing.T) {
	t.Parallel()
	hsmtest.Conformance(t, ivChosenByToken("cloudhsm", kek.GCMWrittenIV))
}

func TestConformanceLikeLuna(t *testing.T) {
	t.Parallel()
	hsmtest.Conformance(t, ivChosenByToken("luna", kek.GCMAppendedIV))
}

// ivChosenByToken makes SoftHSM tokens that treat the IV of AES-GCM as a vendor's do.
func ivChosenByToken(like string, mechanism kek.Mechanism) func(t *testing.T) *hsmtest.Fixture {
	return func(t *testing.T) *hsmtest.Fixture {
		f := hsmtest.NewSoftHSM(t)
		must(t, hsmtest.SetFaults(f.FaultModule(t), "C_EncryptInit iv="+like))
		f.Mechanisms = []kek.Mechanism{mechanism, kek.CBCHMAC}
		return f
	}
}

// Faults that are counted are spent, the others stay, and every call is counted.
func TestFaultModule(t *testing.T) {
	t.Parallel()
	f := hsmtest.NewSoftHSM(t)
	path := f.FaultModule(t)
	token := f.Open(t)
	must(t, hsmtest.SetFaults(path, "C_FindObjectsInit rv=0x30 n=1", "C_GetAttributeValue ms=1"))
	if _, err := token.Keys(t.Context()); err != nil {
		t.Errorf("one failing call: %v, want it to be done again", err)
	}
	first, err := hsmtest.CallCounts(path)
	must(t, err)
	if first["C_Initialize"] == 0 || first["C_Login"] == 0 || first["C_FindObjectsInit"] < 2 {
		t.Errorf("counted %v, want a start and two searches", first)
	}
	_, err = token.Keys(t.Context())
	must(t, err)
	second, err := hsmtest.CallCounts(path)
	must(t, err)
	if got := second["C_FindObjectsInit"] - first["C_FindObjectsInit"]; got == 0 {
		t.Error("the second list did not search")
	}
	if second["C_Initialize"] != first["C_Initialize"] {
		t.Error("the fault was not spent: a worker was started")
	}
}

// A trail that anyone can verify is given up for a token that says that it has no
// ECDSA, not for one that fails once.
func TestAuditKeyIsNotDowngradedByAFailure(t *testing.T) {
	t.Parallel()
	f := hsmtest.NewSoftHSM(t)
	path := f.FaultModule(t)
	token := f.Open(t)

	must(t, hsmtest.SetFaults(path, "C_GenerateKeyPair rv=0x5")) // CKR_GENERAL_ERROR
	key, err := token.CreateAuditKey(t.Context(), "")
	if !strings.Contains(hsm.Hint(err), "--algorithm") {
		t.Errorf("a vague failure: %+v, %v, want an error whose hint names --algorithm", key, err)
	}
	key, err = token.CreateAuditKey(t.Context(), wire.HMACSHA256)
	if err != nil || key.Algorithm != wire.HMACSHA256 {
		t.Errorf("HMAC by choice: %+v, %v", key, err)
	}

	must(t, hsmtest.SetFaults(path, "C_GenerateKeyPair rv=0x70")) // CKR_MECHANISM_INVALID
	key, err = token.CreateAuditKey(t.Context(), "")
	if err != nil || key.Algorithm != wire.HMACSHA256 {
		t.Errorf("a token without ECDSA: %+v, %v, want a key for HMAC", key, err)
	}

	must(t, hsmtest.SetFaults(path))
	key, err = token.CreateAuditKey(t.Context(), "")
	if err != nil || key.Algorithm != wire.ECDSAP256 {
		t.Errorf("a sound token: %+v, %v, want a key for ECDSA", key, err)
	}
}

// A token that once encrypts to wrong bytes must not make a key look like another
// one, which would revoke it.
func TestWrongCheckValueIsNotBelieved(t *testing.T) {
	t.Parallel()
	f := hsmtest.NewSoftHSM(t)
	path := f.FaultModule(t)
	maker := f.Open(t)
	id := hsmtest.NewID(t)
	made, _, err := maker.Create(t.Context(), id)
	must(t, err)
	maker.Close()
	token := f.Open(t)
	must(t, hsmtest.SetFaults(path, "C_Encrypt garble n=1"))
	eventually(t, "the key is listed", func() bool {
		keys, err := token.Keys(t.Context())
		if err == nil && (len(keys) != 1 || keys[0].CheckValue != made.CheckValue) {
			t.Fatalf("listed %v, want the check value %s", keys, made.CheckValue)
		}
		return err == nil
	})
}

// A module that has logged out by itself shows no private object, and says CKR_OK.
// That is not a ring without keys: nothing is revoked by it.
func TestLoggedOutTokenIsNotEmpty(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"logout", "closeall"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			f := hsmtest.NewSoftHSM(t)
			path := f.FaultModule(t)
			maker := f.Open(t)
			_, _, err := maker.Create(t.Context(), hsmtest.NewID(t))
			must(t, err)
			maker.Close()
			token := f.Open(t) // which has met no key yet that it could miss
			must(t, hsmtest.SetFaults(path, "C_FindObjectsInit "+what+" n=1"))
			for range 5 {
				keys, err := token.Keys(t.Context())
				must(t, err)
				if len(keys) != 1 {
					t.Fatalf("%d keys, want 1", len(keys))
				}
			}
		})
	}
}
