package keycache

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"

	"github.com/google/go-cmp/cmp"

	"kekd/internal/kek"
)

// Values sealed by the first version, under keyA of the fake HSM. They must
// open for ever.
const (
	goldenPlaintext = "0123456789abcdef0123456789abcdef"
	goldenSeeded    = "0101011101000000000000000100000000000000eecafe01003c0cd87274d67084caaf0e0d3670b8" +
		"7a400fd615c89ad28cb69965504813cc0f176a25dbe540546df97ba5ff27d5cad6ae7a325092c094" +
		"a7a8eb05341dc8496db7fef55fe0e125750aa608d5e20ffc2d1212f4a4654efa2bd11e3a9e97e2e2" +
		"30e1ee635acca8a1e2d743bc03868b4c37350b497a214565c0632e4142316058d5723b21ca21ddad" +
		"2224e063908fcd85c49cc596d214cc429a2d"
	goldenDirect = "0102011101000000000000000100000000000000eecafe01c8496db7fef55fe0e125750a3c04dc27" +
		"32b34562d05437039aaacb1ff5128a544ef07863f01bf6c548cecd6d4b6948da224b601966a2a0df" +
		"1e3da5bc"
)

func golden(t *testing.T, encoded string) kek.Sealed {
	t.Helper()
	ciphertext, err := hex.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	return kek.Sealed{KeyID: "k8s-kek/01000000000000000100000000000000ee/cafe01", Ciphertext: ciphertext}
}

func TestGoldenEnvelopesOpen(t *testing.T) {
	for name, cfg := range map[string]Config{"seeded": seededConfig(), "direct": directConfig()} {
		t.Run(name+" mode", func(t *testing.T) {
			s := newSealer(t, cfg, &fakeHSM{})
			s.SetRing(ringOf(keyA))
			opens(t, s, golden(t, goldenSeeded), goldenPlaintext)
			opens(t, s, golden(t, goldenDirect), goldenPlaintext)
		})
	}
}

func TestSealWritesGoldenEnvelopes(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"seeded", seededConfig(), goldenSeeded},
		{"direct", directConfig(), goldenDirect},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cryptotest.SetGlobalRandom(t, 1)
			s := readySealer(t, tc.cfg, &fakeHSM{})
			sealed := seal(t, s, goldenPlaintext)
			if diff := cmp.Diff(golden(t, tc.want).KeyID, sealed.KeyID); diff != "" {
				t.Errorf("key_id changed (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.want, hex.EncodeToString(sealed.Ciphertext)); diff != "" {
				t.Errorf("format changed (-want +got):\n%s", diff)
			}
		})
	}
}

// The header, spelt out by hand.
func TestEnvelopeLayout(t *testing.T) {
	seeded, direct := golden(t, goldenSeeded).Ciphertext, golden(t, goldenDirect).Ciphertext
	id := "\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xee"
	if want := []byte("\x01\x01\x01\x11" + id + "\xca\xfe\x01\x00\x3c"); !bytes.HasPrefix(seeded, want) {
		t.Errorf("seeded starts\n%x, want\n%x", seeded[:len(want)], want)
	}
	if got, want := len(seeded), 4+17+3+2+60+32+12+32+16; got != want {
		t.Errorf("seeded has %d bytes, want %d", got, want)
	}
	if want := []byte("\x01\x02\x01\x11" + id + "\xca\xfe\x01"); !bytes.HasPrefix(direct, want) {
		t.Errorf("direct starts\n%x, want\n%x", direct[:len(want)], want)
	}
	if got, want := len(direct), 4+17+3+12+32+16; got != want {
		t.Errorf("direct has %d bytes, want %d", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	wrap := func(n int) []byte { return make([]byte, n) }
	// envelopeOf builds what parse takes apart, with a body of n bytes.
	envelopeOf := func(scheme byte, m kek.Mechanism, idSize, wrapped, n int) []byte {
		b := newPrefix(scheme, m, kek.ID(strings.Repeat("i", idSize)), kek.CheckValue{}, wrap(wrapped))
		if scheme == schemeSeeded {
			b = append(b, make([]byte, saltSize)...)
		}
		return append(b, make([]byte, n)...)
	}
	good := envelopeOf(schemeSeeded, kek.GCMCallerIV, 17, 60, 60)
	with := func(at int, value byte) []byte {
		b := slices.Clone(good)
		b[at] = value
		return b
	}
	for _, tc := range []struct {
		name string
		b    []byte
		ok   bool
	}{
		{"good", good, true},
		{"nil", nil, false},
		{"version 0", with(0, 0), false},
		{"version 2", with(0, 2), false},
		{"scheme 0", with(1, 0), false},
		{"scheme 3", with(1, 3), false},
		{"mechanism 0", with(2, 0), false},
		{"mechanism 6", with(2, 6), false},
		{"no key id", with(3, 0), false},
		{"key id of 65 bytes", with(3, 65), false},
		{"key id of 1 byte", envelopeOf(schemeSeeded, kek.KWP, 1, 72, 60), true},
		{"key id of 64 bytes", envelopeOf(schemeSeeded, kek.CBCHMAC, 64, 96, 60), true},
		{"wrapped seed of 47 bytes", envelopeOf(schemeSeeded, kek.KWP, 17, 47, 60), false},
		{"wrapped seed of 48 bytes", envelopeOf(schemeSeeded, kek.KWP, 17, 48, 60), true},
		{"wrapped seed of 512 bytes", envelopeOf(schemeSeeded, kek.KWP, 17, 512, 60), true},
		{"wrapped seed of 513 bytes", envelopeOf(schemeSeeded, kek.KWP, 17, 513, 60), false},
		{"empty seeded body", envelopeOf(schemeSeeded, kek.KWP, 17, 72, minSeededBody-1), false},
		{"smallest seeded body", envelopeOf(schemeSeeded, kek.KWP, 17, 72, minSeededBody), true},
		{"empty direct body", envelopeOf(schemeDirect, kek.KWP, 17, 0, minDirectBody-1), false},
		{"smallest direct body", envelopeOf(schemeDirect, kek.KWP, 17, 0, minDirectBody), true},
		{"1024 bytes", envelopeOf(schemeDirect, kek.KWP, 17, 0, 1024-24), true},
		{"1025 bytes", envelopeOf(schemeDirect, kek.KWP, 17, 0, 1025-24), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := parse(tc.b)
			if tc.ok && err != nil {
				t.Error(err)
			}
			if !tc.ok && !errors.Is(err, kek.ErrCorrupt) {
				t.Errorf("parse() = %v, want ErrCorrupt", err)
			}
		})
	}
	for n := range len(good) - 60 + minSeededBody {
		if _, err := parse(good[:n]); !errors.Is(err, kek.ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v, want ErrCorrupt", n, err)
		}
	}
}

// What parses, and only that, is what appendPrefix with salt and body writes.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{goldenSeeded, goldenDirect, "", "0101", "01010111"} {
		b, err := hex.DecodeString(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parse(b)
		if err != nil {
			if !errors.Is(err, kek.ErrCorrupt) {
				t.Errorf("parse() = %v, want ErrCorrupt", err)
			}
			return
		}
		again := newPrefix(e.scheme, e.mechanism, e.id, e.check, e.wrapped)
		if !bytes.Equal(again, e.prefix) {
			t.Errorf("prefix %x, written again %x", e.prefix, again)
		}
		again = append(append(again, e.salt...), e.body...)
		if !bytes.Equal(again, b) {
			t.Errorf("envelope %x, written again %x", b, again)
		}
		if !bytes.Equal(append(slices.Clone(e.header), e.body...), b) {
			t.Error("header and body are not the whole")
		}
	})
}

// Arbitrary bytes never open, never panic and never look like a broken HSM.
func FuzzOpen(f *testing.F) {
	for _, seed := range []string{goldenSeeded, goldenDirect, ""} {
		b, err := hex.DecodeString(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, "k8s-kek/01000000000000000100000000000000ee/cafe01")
	}
	s := newSealer(f, seededConfig(), &fakeHSM{})
	s.SetRing(ringOf(keyA))
	f.Fuzz(func(t *testing.T, b []byte, keyID string) {
		plaintext, err := s.Open(t.Context(), kek.Sealed{KeyID: keyID, Ciphertext: b})
		switch encoded := hex.EncodeToString(b); {
		case err == nil && (encoded == goldenSeeded || encoded == goldenDirect):
		case err == nil:
			t.Errorf("opened to %q", plaintext)
		case errors.Is(err, kek.ErrCorrupt), errors.Is(err, kek.ErrWrongKeyID), errors.Is(err, kek.ErrUnknownKey):
		default:
			t.Errorf("Open() = %v", err)
		}
	})
}
