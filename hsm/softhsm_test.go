package hsm_test

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"

	"kekd/hsm/hsmtest"
	"kekd/internal/kek"
)

// A key that one process makes survives that others list the ring meanwhile, as
// every running kekd does. SoftHSM loses one in ten to those who look at unfinished objects.
func TestSoftHSMKeysMadeWhileOthersList(t *testing.T) {
	t.Parallel()
	f := hsmtest.NewSoftHSM(t)
	maker := f.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	var lists sync.WaitGroup
	for range 2 {
		lister := f.Open(t)
		lists.Go(func() {
			for ctx.Err() == nil {
				listed, err := lister.Keys(ctx)
				if err != nil && ctx.Err() == nil {
					t.Errorf("list: %v", err)
					return
				}
				for _, k := range listed {
					if k.CheckValue == (kek.CheckValue{}) {
						t.Errorf("key %s, which is being made, has no check value for good", k.ID)
						return
					}
				}
			}
		})
	}
	const keys = 40
	for range keys {
		if _, _, err := maker.Create(ctx, hsmtest.NewID(t)); err != nil {
			t.Error(err)
		}
	}
	cancel()
	lists.Wait()
	if got, err := maker.Keys(t.Context()); err != nil || len(got) != keys {
		t.Errorf("%d keys, want %d (%v)", len(got), keys, err)
	}
}

// SoftHSM keeps what it has made so far of a key when it fails half way: an object
// with all attributes and no value, or part of one. The ring can still be read, and
// the key is seen to be of no use.
func TestSoftHSMHalfMadeKey(t *testing.T) {
	t.Parallel()
	f := hsmtest.NewSoftHSM(t)
	maker := f.Open(t)
	_, _, err := maker.Create(t.Context(), hsmtest.NewID(t))
	must(t, err)
	id := hsmtest.NewID(t)
	before := objectFiles(t, f)
	_, _, err = maker.Create(t.Context(), id)
	must(t, err)
	maker.Close()
	for _, path := range objectFiles(t, f) {
		if !slices.Contains(before, path) {
			withoutValue(t, path)
		}
	}
	token := f.Open(t)
	keys, err := token.Keys(t.Context())
	if err != nil || len(keys) != 2 {
		t.Fatalf("%d keys, %v; want both", len(keys), err)
	}
	half := seen(t, token, id)
	if half.CheckValue != (kek.CheckValue{}) {
		t.Errorf("the half-made key has the check value %s, want none", half.CheckValue)
	}
	if _, err := token.Try(t.Context(), id); err == nil {
		t.Error("tried without an error")
	}
	must(t, token.Destroy(t.Context(), half))
}

func objectFiles(t *testing.T, f *hsmtest.Fixture) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(filepath.Dir(f.Config.Env["SOFTHSM2_CONF"]), "tokens", "*", "*.object"))
	must(t, err)
	return files
}

// withoutValue drops CKA_VALUE and CKA_CHECK_VALUE of an object of SoftHSM: a generation, then
// attributes, each a type, a kind, and a byte (kind 1), a number (2) or a length and
// so many bytes (3 and more); integers of 8 bytes, big endian.
func withoutValue(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	out := slices.Clone(b[:8])
	for rest := b[8:]; len(rest) >= 16; {
		typ, kind := binary.BigEndian.Uint64(rest), binary.BigEndian.Uint64(rest[8:])
		size := 16 + map[uint64]int{1: 1, 2: 8}[kind]
		if kind > 2 {
			size = 24 + int(binary.BigEndian.Uint64(rest[16:]))
		}
		if typ != pkcs11.CKA_VALUE && typ != pkcs11.CKA_CHECK_VALUE {
			out = append(out, rest[:size]...)
		}
		rest = rest[size:]
	}
	must(t, os.WriteFile(path, out, 0o600))
}
