package keycache

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"kekd/internal/kek"
)

func TestSealAndOpen(t *testing.T) {
	modes := map[string]func() Config{"seeded": seededConfig, "direct": directConfig}
	for sealing, sealConfig := range modes {
		for opening, openConfig := range modes {
			for _, m := range kek.Mechanisms() {
				t.Run(fmt.Sprintf("%s to %s, %s", sealing, opening, strings.ReplaceAll(m.String(), "/", " ")), func(t *testing.T) {
					sealer, opener := newSealer(t, sealConfig(), &fakeHSM{}), newSealer(t, openConfig(), &fakeHSM{})
					sealer.SetRing(ringOf(keyA))
					opener.SetRing(ringOf(keyA))
					if err := sealer.Use(t.Context(), keyA, m); err != nil {
						t.Fatal(err)
					}
					for _, size := range []int{1, 16, 32, 64, 512} {
						plaintext := strings.Repeat("p", size)
						sealed := seal(t, sealer, plaintext)
						if sealed.KeyID != keyA.KeyID() {
							t.Errorf("key_id %q, want %q", sealed.KeyID, keyA.KeyID())
						}
						opens(t, opener, sealed, plaintext)
						opens(t, sealer, sealed, plaintext)
					}
				})
			}
		}
	}
}

func TestSealedValuesDiffer(t *testing.T) {
	for name, cfg := range map[string]Config{"seeded": seededConfig(), "direct": directConfig()} {
		t.Run(name, func(t *testing.T) {
			s := readySealer(t, cfg, &fakeHSM{})
			if a, b := seal(t, s, "same"), seal(t, s, "same"); slices.Equal(a.Ciphertext, b.Ciphertext) {
				t.Error("equal plaintexts gave equal ciphertexts")
			}
		})
	}
}

func TestSealLimits(t *testing.T) {
	// Direct: 24 bytes of header and 28 of the fake's own. Seeded: 86 bytes up
	// to the salt, then 32, 12 and 16.
	for _, tc := range []struct {
		name    string
		cfg     Config
		longest int
	}{
		{"seeded", seededConfig(), 1024 - 86 - 32 - 12 - 16},
		{"direct", directConfig(), 1024 - 24 - 28},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := readySealer(t, tc.cfg, &fakeHSM{})
			longest := strings.Repeat("p", tc.longest)
			sealed := seal(t, s, longest)
			if len(sealed.Ciphertext) != 1024 {
				t.Errorf("%d bytes of ciphertext, want 1024", len(sealed.Ciphertext))
			}
			opens(t, s, sealed, longest)
			for _, size := range []int{tc.longest + 1, 1024, 1 << 20} {
				if _, err := s.Seal(t.Context(), make([]byte, size)); !errors.Is(err, kek.ErrTooLarge) {
					t.Errorf("Seal of %d bytes: %v, want ErrTooLarge", size, err)
				}
			}
			for _, empty := range [][]byte{nil, {}} {
				if _, err := s.Seal(t.Context(), empty); !errors.Is(err, kek.ErrEmpty) {
					t.Errorf("Seal of nothing: %v, want ErrEmpty", err)
				}
			}
		})
	}
}

// Every single bit of envelope and key_id counts.
func TestAnyFlippedBitIsRefused(t *testing.T) {
	const idAt, checkAt, checkEnd = 4, 4 + 17, 4 + 17 + 3
	for name, cfg := range map[string]Config{"seeded": seededConfig(), "direct": directConfig()} {
		sealed := seal(t, readySealer(t, cfg, &fakeHSM{}), goldenPlaintext)
		for _, opening := range []Config{seededConfig(), directConfig()} {
			t.Run(fmt.Sprintf("%s, opened in %s mode", name, opening.Mode), func(t *testing.T) {
				hsm := &fakeHSM{}
				s := newSealer(t, opening, hsm)
				s.SetRing(ringOf(keyA))
				for bit := range len(sealed.Ciphertext) * 8 {
					damaged := slices.Clone(sealed.Ciphertext)
					damaged[bit/8] ^= 1 << (bit % 8)
					asked := hsm.ops()
					_, err := s.Open(t.Context(), kek.Sealed{KeyID: sealed.KeyID, Ciphertext: damaged})
					named := bit/8 >= idAt && bit/8 < checkEnd
					lengths := bit/8 == 3 // another length of the id moves its border
					switch {
					case named && errors.Is(err, kek.ErrWrongKeyID):
					case lengths && errors.Is(err, kek.ErrWrongKeyID):
					case !named && errors.Is(err, kek.ErrCorrupt):
					default:
						t.Errorf("byte %d, bit %d: %v", bit/8, bit%8, err)
					}
					if bit/8 < checkEnd && bit/8 != 2 && hsm.ops() != asked {
						t.Errorf("byte %d, bit %d reached the HSM", bit/8, bit%8)
					}
				}
				asked := hsm.ops()
				for bit := range len(sealed.KeyID) * 8 {
					damaged := []byte(sealed.KeyID)
					damaged[bit/8] ^= 1 << (bit % 8)
					refuses(t, s, kek.Sealed{KeyID: string(damaged), Ciphertext: sealed.Ciphertext}, kek.ErrWrongKeyID)
				}
				if hsm.ops() != asked {
					t.Error("a wrong key_id reached the HSM")
				}
				opens(t, s, sealed, goldenPlaintext)
			})
		}
	}
}

// A consistent change of check value and key_id passes the comparison of the
// two; the AAD refuses it.
func TestForgedCheckValueIsRefused(t *testing.T) {
	for name, cfg := range map[string]Config{"seeded": seededConfig(), "direct": directConfig()} {
		t.Run(name, func(t *testing.T) {
			hsm := &fakeHSM{}
			s := readySealer(t, cfg, hsm)
			sealed := seal(t, s, "value")
			sealed.Ciphertext[4+17] ^= 1
			sealed.KeyID = strings.Replace(sealed.KeyID, "/cafe01", "/cbfe01", 1)
			refuses(t, s, sealed, kek.ErrCorrupt)
		})
	}
}

// ... and one seed with many check values is still one seed to the HSM.
func TestForgedCheckValuesShareOneUnwrap(t *testing.T) {
	hsm := &fakeHSM{}
	s := newSealer(t, seededConfig(), hsm)
	s.SetRing(ringOf(keyA))
	sealed := strangers(t, 1, keyA)[0]
	for n := range byte(50) {
		forged := kek.Sealed{
			KeyID:      strings.Replace(sealed.KeyID, "/cafe01", fmt.Sprintf("/cafe%02x", n+2), 1),
			Ciphertext: slices.Clone(sealed.Ciphertext),
		}
		forged.Ciphertext[4+17+2] = n + 2
		refuses(t, s, forged, kek.ErrCorrupt)
	}
	if got := hsm.ops(); got != 1 {
		t.Errorf("the HSM was asked %d times, want 1", got)
	}
}

func TestTruncatedAndExtendedEnvelopesAreRefused(t *testing.T) {
	for name, cfg := range map[string]Config{"seeded": seededConfig(), "direct": directConfig()} {
		t.Run(name, func(t *testing.T) {
			s := readySealer(t, cfg, &fakeHSM{})
			sealed := seal(t, s, "value")
			for n := range sealed.Ciphertext {
				if n == 4 || n == len(sealed.Ciphertext)-1 || n%7 == 0 {
					refuses(t, s, kek.Sealed{KeyID: sealed.KeyID, Ciphertext: sealed.Ciphertext[:n]}, kek.ErrCorrupt)
				}
			}
			long := append(slices.Clone(sealed.Ciphertext), 0)
			refuses(t, s, kek.Sealed{KeyID: sealed.KeyID, Ciphertext: long}, kek.ErrCorrupt)
		})
	}
}

// What the ring forbids never reaches the HSM.
func TestRingDecidesBeforeTheHSM(t *testing.T) {
	sealed := strangers(t, 1, keyA)[0]
	for _, tc := range []struct {
		name string
		ring *kek.Ring
		want error // nil: opens
	}{
		{"no ring yet", nil, kek.ErrUnavailable},
		{"key not on it", ringOf(keyB), kek.ErrUnknownKey},
		{"empty", ringOf(), kek.ErrUnknownKey},
		{"disabled", ringOf(in(keyA, kek.Disabled)), kek.ErrRevoked},
		{"scheduled", ringOf(in(keyA, kek.Scheduled)), kek.ErrRevoked},
		{"pending", ringOf(in(keyA, kek.Pending)), nil},
		{"primary", ringOf(in(keyA, kek.Primary)), nil},
		{"retired", ringOf(in(keyA, kek.Retired)), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hsm := &fakeHSM{}
			s := newSealer(t, seededConfig(), hsm)
			if tc.ring != nil {
				s.SetRing(tc.ring)
			}
			if tc.want == nil {
				opens(t, s, sealed, "value 0")
				return
			}
			refuses(t, s, sealed, tc.want)
			if hsm.ops() != 0 {
				t.Error("the HSM was asked")
			}
		})
	}
}

// A token that computes another check value today, or none, still opens what
// was sealed before.
func TestCheckValueOfTodayDoesNotMatter(t *testing.T) {
	sealed := strangers(t, 1, keyA)[0]
	today := keyA
	today.CheckValue = kek.CheckValue{}
	s := newSealer(t, seededConfig(), &fakeHSM{})
	s.SetRing(ringOf(today))
	opens(t, s, sealed, "value 0")
}

// A seed taken from another ring, or put under another key, does not unwrap.
func TestSeedIsBoundToRingAndKey(t *testing.T) {
	sealed := strangers(t, 1, keyA)[0]
	cfg := seededConfig()
	cfg.Ring = "other"
	s := newSealer(t, cfg, &fakeHSM{})
	s.SetRing(ringOf(keyA))
	moved := kek.Sealed{KeyID: strings.Replace(sealed.KeyID, ringLabel, "other", 1), Ciphertext: sealed.Ciphertext}
	refuses(t, s, sealed, kek.ErrWrongKeyID)
	refuses(t, s, moved, kek.ErrCorrupt)

	s = newSealer(t, seededConfig(), &fakeHSM{})
	s.SetRing(ringOf(keyA, keyB))
	moved = kek.Sealed{KeyID: keyB.KeyID(), Ciphertext: slices.Clone(sealed.Ciphertext)}
	copy(moved.Ciphertext[4:], keyB.ID)
	copy(moved.Ciphertext[4+17:], keyB.CheckValue[:])
	refuses(t, s, moved, kek.ErrCorrupt)
}
