package hsm

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kekd/hsm/wire"
)

func TestParseURI(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		uri  string
		want wire.Selector
	}{
		"token":            {"pkcs11:token=kekd", wire.Selector{Label: "kekd"}},
		"all":              {"pkcs11:token=kekd;serial=0123;manufacturer=ACME;model=v2", wire.Selector{Label: "kekd", Serial: "0123", Manufacturer: "ACME", Model: "v2"}},
		"another order":    {"pkcs11:serial=0123;token=kekd", wire.Selector{Label: "kekd", Serial: "0123"}},
		"escaped":          {"pkcs11:token=my%20token%3b%25", wire.Selector{Label: "my token;%"}},
		"a plus is a plus": {"pkcs11:token=a+b", wire.Selector{Label: "a+b"}},
		"an equals sign":   {"pkcs11:token=a=b", wire.Selector{Label: "a=b"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseURI(c.uri)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("ParseURI(%q) (-want +got):\n%s", c.uri, diff)
			}
		})
	}
}

func TestParseURIRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ uri, says string }{
		"another scheme":   {"http:token=kekd", "pkcs11"},
		"capital scheme":   {"PKCS11:token=kekd", "pkcs11"},
		"nothing":          {"pkcs11:", "no value"},
		"no value":         {"pkcs11:token", "no value"},
		"empty value":      {"pkcs11:token=", "empty"},
		"twice":            {"pkcs11:token=a;token=b", "twice"},
		"trailing":         {"pkcs11:token=a;", "no value"},
		"an object":        {"pkcs11:token=a;object=kek", `"object"`},
		"a slot":           {"pkcs11:slot-id=3", `"slot-id"`},
		"unknown":          {"pkcs11:x-vendor=3", `"x-vendor"`},
		"a PIN":            {"pkcs11:token=a?pin-value=123456", "hsm.pinFile"},
		"a PIN source":     {"pkcs11:token=a?pin-source=file:/etc/pin", "hsm.pinFile"},
		"a module":         {"pkcs11:token=a?module-path=/usr/lib/x.so", "hsm.module"},
		"an empty query":   {"pkcs11:token=a?", "not supported"},
		"a broken escape":  {"pkcs11:token=%zz", "token"},
		"a cut-off escape": {"pkcs11:token=a%2", "token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseURI(c.uri)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("ParseURI(%q) = %+v, %v; want an error that says %s", c.uri, got, err, c.says)
			}
			if strings.Contains(err.Error(), "123456") {
				t.Errorf("the error holds the PIN: %v", err)
			}
		})
	}
}

// escape spells every byte so that it can mean nothing else.
func escape(s string) string {
	const hex = "0123456789abcdef"
	var b strings.Builder
	for i := range len(s) {
		b.WriteByte('%')
		b.WriteByte(hex[s[i]>>4])
		b.WriteByte(hex[s[i]&15])
	}
	return b.String()
}

func FuzzParseURI(f *testing.F) {
	for _, seed := range []string{
		"", "pkcs11:", "pkcs11:token=kekd", "pkcs11:token=a;serial=b;manufacturer=c;model=d",
		"pkcs11:token=%41", "pkcs11:token=a?pin-value=1", "pkcs11:token=%", ";;==", "pkcs11:token=a;token=a",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		s, err := ParseURI(uri)
		if err != nil {
			if s != (wire.Selector{}) {
				t.Errorf("%+v beside the error %v", s, err)
			}
			return
		}
		if s == (wire.Selector{}) {
			t.Fatalf("%q selects any token", uri)
		}
		again := "pkcs11:"
		for _, a := range []struct{ name, value string }{{"token", s.Label}, {"serial", s.Serial}, {"manufacturer", s.Manufacturer}, {"model", s.Model}} {
			if a.value != "" {
				again += a.name + "=" + escape(a.value) + ";"
			}
		}
		back, err := ParseURI(strings.TrimSuffix(again, ";"))
		if err != nil || back != s {
			t.Errorf("%q reads as %+v, spelled again as %q: %+v, %v", uri, s, again, back, err)
		}
	})
}
