package worker

import (
	"errors"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"kekd/hsm/p11"
	"kekd/hsm/wire"
	"kekd/internal/kek"
)

func tokenInfo(label, serial string, flags uint) pkcs11.TokenInfo {
	return pkcs11.TokenInfo{Label: label, SerialNumber: serial, ManufacturerID: "ACME\x00\x00", Model: "v2   ", Flags: flags}
}

func TestSelectToken(t *testing.T) {
	t.Parallel()
	const ready = pkcs11.CKF_TOKEN_INITIALIZED
	tokens := map[uint]pkcs11.TokenInfo{
		1: tokenInfo("kekd      ", "0001", ready),
		2: tokenInfo("kekd\x00\x00", "0002\x00", ready),
		3: tokenInfo("other", "0003", ready),
		4: tokenInfo("blank", "0004", 0),
		5: tokenInfo("  lead", "0005", ready),
	}
	slots := []uint{9, 4, 3, 2, 1, 5} // 9 can't be read
	for name, c := range map[string]struct {
		slots []uint
		want  wire.Selector
		slot  uint
		err   error
		says  []string
	}{
		"label":                    {slots, wire.Selector{Label: "other"}, 3, nil, nil},
		"label with its padding":   {slots, wire.Selector{Label: "other  "}, 3, nil, nil},
		"serial":                   {slots, wire.Selector{Serial: "0002"}, 2, nil, nil},
		"label and serial":         {slots, wire.Selector{Label: "kekd", Serial: "0001"}, 1, nil, nil},
		"all four":                 {slots, wire.Selector{Label: "other", Serial: "0003", Manufacturer: "ACME", Model: "v2"}, 3, nil, nil},
		"leading spaces count":     {slots, wire.Selector{Label: "lead"}, 0, kek.ErrUnavailable, []string{`"  lead"`}},
		"two of one label":         {slots, wire.Selector{Label: "kekd"}, 0, kek.ErrAmbiguous, []string{"2 tokens", `"0001"`, `"0002"`}},
		"two of one model":         {[]uint{1, 3}, wire.Selector{Model: "v2"}, 0, kek.ErrAmbiguous, []string{"slot 0x1", "slot 0x3"}},
		"no match":                 {slots, wire.Selector{Label: "nowhere"}, 0, kek.ErrUnavailable, []string{`label "nowhere"`, `"other"`, "slot 0x9: unreadable", "CKR_TOKEN_NOT_RECOGNIZED", "not initialised"}},
		"label right, serial not":  {slots, wire.Selector{Label: "other", Serial: "0001"}, 0, kek.ErrUnavailable, []string{`serial "0001"`}},
		"case counts":              {slots, wire.Selector{Label: "KEKD"}, 0, kek.ErrUnavailable, nil},
		"a token without a format": {slots, wire.Selector{Label: "blank"}, 0, kek.ErrUnavailable, []string{"not initialised"}},
		"no slots":                 {nil, wire.Selector{Label: "kekd"}, 0, kek.ErrUnavailable, []string{"no slot with a token"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			slot, info, err := selectToken(&stubModule{slots: c.slots, tokens: tokens}, c.want)
			if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if slot != c.slot || (err == nil) != (info.Label != "") {
				t.Errorf("slot %d with label %q, want %d", slot, info.Label, c.slot)
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
			if e, ok := errors.AsType[*wire.Error](err); err != nil && (!ok || e.Hint == "") {
				t.Error("no hint")
			}
		})
	}
}

func TestSelectTokenWithoutSlots(t *testing.T) {
	t.Parallel()
	m := &stubModule{slotErr: p11.Error{Call: "C_GetSlotList", RV: pkcs11.CKR_GENERAL_ERROR}}
	if _, _, err := selectToken(m, wire.Selector{Label: "kekd"}); !errors.Is(err, kek.ErrUnavailable) || !strings.Contains(err.Error(), "C_GetSlotList") {
		t.Errorf("got %v, want ErrUnavailable that names the call", err)
	}
}

// Where two tokens share a serial as well, it is no way to tell them apart.
func TestSelectTokenHint(t *testing.T) {
	t.Parallel()
	for second, hint := range map[string]string{"0002": "hsm.token.serial", "0001": "a label of its own"} {
		tokens := map[uint]pkcs11.TokenInfo{
			1: tokenInfo("kekd", "0001", pkcs11.CKF_TOKEN_INITIALIZED),
			2: tokenInfo("kekd", second, pkcs11.CKF_TOKEN_INITIALIZED),
		}
		_, _, err := selectToken(&stubModule{slots: []uint{1, 2}, tokens: tokens}, wire.Selector{Label: "kekd"})
		if e, ok := errors.AsType[*wire.Error](err); !ok || !strings.Contains(e.Hint, hint) {
			t.Errorf("serials 0001 and %s: %v, want a hint with %q", second, err, hint)
		}
	}
}
