package worker

import (
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"kekd/hsm/p11"
	"kekd/hsm/wire"
)

// trim removes the padding of PKCS#11's fixed-size strings: spaces by the
// standard, NULs by some modules.
func trim(s string) string { return strings.TrimRight(s, " \x00") }

// selectToken finds the one slot whose token matches. Slots whose token can't be
// read are passed over: another vendor's empty reader must not stop us.
func selectToken(m p11.Cryptoki, want wire.Selector) (uint, pkcs11.TokenInfo, error) {
	slots, err := m.GetSlotList()
	if err != nil {
		return 0, pkcs11.TokenInfo{}, failSetup("list the slots", err)
	}
	type match struct {
		slot uint
		info pkcs11.TokenInfo
	}
	var matches []match
	var seen []string
	for _, slot := range slots {
		info, err := m.GetTokenInfo(slot)
		if err != nil {
			e, _ := rvOf(err)
			seen = append(seen, fmt.Sprintf("slot 0x%x: unreadable, %s", slot, wire.RVName(e.RV)))
			continue
		}
		line := describe(slot, info)
		if info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			seen = append(seen, line+", not initialised")
			continue
		}
		seen = append(seen, line)
		if matchesToken(info, want) {
			matches = append(matches, match{slot, info})
		}
	}
	switch len(matches) {
	case 1:
		return matches[0].slot, matches[0].info, nil
	case 0:
		text := fmt.Sprintf("no token matches %s; the module shows: %s", want, orNone(seen))
		return 0, pkcs11.TokenInfo{}, &wire.Error{
			Class: wire.ClassSetup, Text: text,
			Hint: "check hsm.token against that list, and that the HSM's client reaches the token",
		}
	}
	var lines []string
	hint := "name one of them by hsm.token.serial instead"
	for i, c := range matches {
		lines = append(lines, describe(c.slot, c.info))
		for _, other := range matches[:i] {
			if trim(c.info.SerialNumber) == trim(other.info.SerialNumber) { // opencryptoki has one for all its tokens
				hint = "give each token a label of its own by the vendor's tool: their serials are the same too"
			}
		}
	}
	return 0, pkcs11.TokenInfo{}, &wire.Error{
		Class: wire.ClassAmbiguous,
		Text:  fmt.Sprintf("%d tokens match %s: %s", len(matches), want, strings.Join(lines, "; ")),
		Hint:  hint,
	}
}

func matchesToken(info pkcs11.TokenInfo, want wire.Selector) bool {
	for _, f := range []struct{ want, have string }{
		{want.Label, info.Label}, {want.Serial, info.SerialNumber},
		{want.Manufacturer, info.ManufacturerID}, {want.Model, info.Model},
	} {
		if f.want != "" && trim(f.want) != trim(f.have) {
			return false
		}
	}
	return true
}

func describe(slot uint, info pkcs11.TokenInfo) string {
	return fmt.Sprintf("slot 0x%x: label %q, serial %q, model %q", slot, trim(info.Label), trim(info.SerialNumber), trim(info.Model))
}

func orNone(lines []string) string {
	if len(lines) == 0 {
		return "no slot with a token"
	}
	return strings.Join(lines, "; ")
}
