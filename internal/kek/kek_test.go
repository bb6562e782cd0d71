package kek_test

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"kekd/internal/kek"
)

func TestKeyID(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		info kek.Info
		want string
	}{
		{kek.Info{Ring: "k8s-kek", ID: "\x01\xff", CheckValue: kek.CheckValue{0xab, 0xcd, 0xef}}, "k8s-kek/01ff/abcdef"},
		{kek.Info{Ring: "r", ID: "\x00"}, "r/00/000000"},
	} {
		if got := c.info.KeyID(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	longest := kek.KeyID(strings.Repeat("r", 127), kek.ID(strings.Repeat("\xff", kek.MaxIDSize)), kek.CheckValue{})
	if len(longest) > 1024 || !utf8.ValidString(longest) {
		t.Errorf("the longest key_id has %d bytes; Kubernetes takes 1024 of UTF-8", len(longest))
	}
}

func TestStates(t *testing.T) {
	t.Parallel()
	for s, c := range map[kek.State]struct {
		name     string
		decrypts bool
	}{
		0: {"State(0)", false}, kek.Pending: {"pending", true}, kek.Primary: {"primary", true}, kek.Retired: {"retired", true},
		kek.Disabled: {"disabled", false}, kek.Scheduled: {"scheduled-for-destruction", false}, 6: {"State(6)", false},
	} {
		if s.String() != c.name || s.Decrypts() != c.decrypts {
			t.Errorf("state %d: %s, decrypts %t; want %s, %t", uint8(s), s, s.Decrypts(), c.name, c.decrypts)
		}
	}
}

// The numbers are in every envelope that was ever stored.
func TestMechanismNumbers(t *testing.T) {
	t.Parallel()
	want := []string{1: "aes-gcm/caller-iv", 2: "aes-gcm/written-iv", 3: "aes-gcm/appended-iv", 4: "aes-kwp", 5: "aes-cbc-hmac"}
	for i, m := range kek.Mechanisms() {
		if int(m) != i+1 || m.String() != want[i+1] || !m.Valid() {
			t.Errorf("mechanism %d is %s, valid %t; want %d, %s", uint8(m), m, m.Valid(), i+1, want[i+1])
		}
	}
	if n := len(kek.Mechanisms()); n != len(want)-1 {
		t.Errorf("%d mechanisms, want %d", n, len(want)-1)
	}
	for _, m := range []kek.Mechanism{0, 6, 255} {
		if m.Valid() || m.String() != fmt.Sprintf("Mechanism(%d)", uint8(m)) {
			t.Errorf("mechanism %d is %s, valid %t", uint8(m), m, m.Valid())
		}
	}
}

func TestRing(t *testing.T) {
	t.Parallel()
	ring := &kek.Ring{Keys: []kek.Info{{ID: "a", State: kek.Retired}, {ID: "b", State: kek.Primary}, {ID: "c", State: kek.Pending}}}
	if k, ok := ring.Lookup("c"); !ok || k.State != kek.Pending {
		t.Errorf("Lookup(c) = %+v, %t", k, ok)
	}
	if k, ok := ring.Primary(); !ok || k.ID != "b" {
		t.Errorf("Primary = %+v, %t", k, ok)
	}
	for name, none := range map[string]*kek.Ring{"nil": nil, "empty": {}, "no primary": {Keys: ring.Keys[:1]}} {
		if k, ok := none.Primary(); ok || k.ID != "" {
			t.Errorf("%s ring: primary %+v", name, k)
		}
		if k, ok := none.Lookup("d"); ok || k.ID != "" {
			t.Errorf("%s ring: found %+v", name, k)
		}
	}
}
