package hsm_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"kekd/hsm"
	"kekd/hsm/hsmtest"
	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// newImport is a rig with a key that is ready to be imported.
func newImport(t *testing.T, configure ...func(*hsm.Config)) (*rig, *hsmtest.Owner, wire.ImportRequest) {
	t.Helper()
	r := newRig(t, nil, configure...)
	o := hsmtest.NewOwner(t, r.Fixture, r.token)
	req := o.Wrap(wire.RSAOAEP, wire.SHA256, bytes.Repeat([]byte{7}, 32))
	req.ID = []byte(hsmtest.NewID(t))
	return r, o, req
}

// leftovers are the ids of what cut off imports have left.
func (r *rig) leftovers(t *testing.T) []string {
	t.Helper()
	state, err := r.token.ImportState(t.Context())
	must(t, err)
	ids := []string{}
	for _, id := range state.Leftovers {
		ids = append(ids, kek.ID(id).String())
	}
	return ids
}

// listed reports whether the ring has a key.
func (r *rig) listed(t *testing.T, id []byte) bool {
	t.Helper()
	keys, err := r.token.Keys(t.Context())
	must(t, err)
	return slices.ContainsFunc(keys, func(k kek.Info) bool { return k.ID == kek.ID(id) })
}

func TestImportFailures(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		faults   []string
		readOnly []uint
		want     error
		hint     string
	}{
		"a vague failure of a token that answers": {faults: []string{"C_UnwrapKey rv=0x5"}, want: kek.ErrCorrupt, hint: "damaged"},
		"a vague failure of one that does not":    {faults: []string{"C_UnwrapKey rv=0x5", "C_GetTokenInfo rv=0x5"}, want: kek.ErrUnavailable},
		"no unwrapping for this role":             {faults: []string{"C_UnwrapKey rv=0x68"}, want: kek.ErrRefused, hint: "kekctl key import begin"},
		"no changing of labels":                   {readOnly: []uint{pkcs11.CKA_LABEL}, want: kek.ErrRefused, hint: "CKA_LABEL"},
		"the key does not encrypt":                {faults: []string{"C_EncryptInit rv=0x68"}, want: kek.ErrRefused, hint: "CKA_ENCRYPT"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, _, req := newImport(t)
			r.edit(t, func(token *hsmtest.FakeToken) { token.ReadOnly = c.readOnly })
			r.faults(t, c.faults...)
			if _, _, err := r.token.Import(t.Context(), req); !errors.Is(err, c.want) || !strings.Contains(hsm.Hint(err), c.hint) {
				t.Errorf("got %v, hint %q; want %v, hint %q", err, hsm.Hint(err), c.want, c.hint)
			}
			r.faults(t)
			eventually(t, "the token answers", func() bool { return r.keys(t.Context()) == nil })
			if left := r.leftovers(t); len(left) != 0 || r.listed(t, req.ID) {
				t.Errorf("left beside the ring: %v; in it: %t", left, r.listed(t, req.ID))
			}
		})
	}
}

// Some tokens make every unwrapped key extractable, whatever they are told.
func TestImportOnALooseToken(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		readOnly, deaf []uint
		faults         []string
		want           error
	}{
		"that can be tightened":            {},
		"that stays extractable":           {readOnly: []uint{pkcs11.CKA_EXTRACTABLE}, want: kek.ErrRefused},
		"that stays readable":              {readOnly: []uint{pkcs11.CKA_SENSITIVE}, want: kek.ErrRefused},
		"that only says that it tightened": {deaf: []uint{pkcs11.CKA_SENSITIVE, pkcs11.CKA_EXTRACTABLE}, want: kek.ErrRefused},
		"that breaks down over it":         {faults: []string{"C_SetAttributeValue rv=0x32 n=1"}, want: kek.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, _, req := newImport(t)
			r.edit(t, func(token *hsmtest.FakeToken) {
				token.LooseUnwrap, token.ReadOnly, token.Deaf = true, c.readOnly, c.deaf
			})
			r.faults(t, c.faults...)
			got, _, err := r.token.Import(t.Context(), req)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if left := r.leftovers(t); len(left) != 0 || r.listed(t, req.ID) != (c.want == nil) {
				t.Errorf("left beside the ring: %v; in it: %t", left, r.listed(t, req.ID))
			}
			if c.want == nil && (!*got.Attributes.Sensitive || *got.Attributes.Extractable) {
				t.Errorf("imported with %+v, want sensitive and not extractable", got.Attributes)
			}
		})
	}
}

// Some tokens want to be told the size of what they unwrap.
func TestImportWithSize(t *testing.T) {
	t.Parallel()
	r, _, req := newImport(t)
	r.faults(t, "C_UnwrapKey rv=0xd0 n=1")
	_, _, err := r.token.Import(t.Context(), req)
	must(t, err)
}

// An import that is cut off leaves a key that no kekd sees, and that can be removed
// later where that did not work at once.
func TestImportCutOff(t *testing.T) {
	t.Parallel()
	r, _, req := newImport(t, func(c *hsm.Config) { c.Mechanism = "aes-cbc-hmac" })
	r.faults(t, "C_SetAttributeValue crash n=1", "C_DestroyObject rv=0x30")
	id := kek.ID(req.ID)
	_, _, err := r.token.Import(t.Context(), req)
	if left, ok := errors.AsType[*hsm.LeftoverError](err); !ok || !errors.Is(err, kek.ErrUnavailable) || left.ID != id || left.Found {
		t.Fatalf("got %v, want ErrUnavailable that tells of a key that may be left", err)
	}
	r.faults(t)
	eventually(t, "the token answers", func() bool { return r.keys(t.Context()) == nil })
	if left := r.leftovers(t); !slices.Equal(left, []string{id.String()}) || r.listed(t, req.ID) {
		t.Errorf("left beside the ring: %v, want %s; in it: %t", left, id, r.listed(t, req.ID))
	}
	if r.object(t, string(id)+"/hmac") == nil {
		t.Fatal("there is no HMAC key to be left")
	}
	must(t, r.token.AbortImport(t.Context(), id))
	if left := r.leftovers(t); len(left) != 0 || r.object(t, string(id)) != nil || r.object(t, string(id)+"/hmac") != nil {
		t.Errorf("still there: %v, or its HMAC key", left)
	}
	must(t, r.unwrap(t.Context())) // the ring's own key is untouched
}

func TestImportAbortHalfAPair(t *testing.T) {
	t.Parallel()
	r, o, _ := newImport(t)
	r.edit(t, func(token *hsmtest.FakeToken) {
		token.Objects = slices.DeleteFunc(token.Objects, func(o *hsmtest.FakeObject) bool {
			return bytes.Equal(o.Attributes[pkcs11.CKA_CLASS], pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY).Value)
		})
	})
	id := kek.ID(o.Pair.ID)
	if left := r.leftovers(t); !slices.Equal(left, []string{id.String()}) {
		t.Errorf("leftovers %v, want the public key %s", left, id)
	}
	must(t, r.token.AbortImport(t.Context(), id))
	if left := r.leftovers(t); len(left) != 0 {
		t.Errorf("still there: %v", left)
	}
	if err := r.token.AbortImport(t.Context(), r.id); !errors.Is(err, kek.ErrUnknownKey) || !r.listed(t, []byte(r.id)) {
		t.Errorf("abort of a KEK: %v, want ErrUnknownKey and the KEK untouched", err)
	}
}

func TestImportWrappingKeys(t *testing.T) {
	t.Parallel()
	r, o, _ := newImport(t)
	req := o.Wrap(wire.AESKWP, "", bytes.Repeat([]byte{7}, 32))
	req.ID = []byte(hsmtest.NewID(t))
	req.WrappingKey = []byte(r.id)
	if _, _, err := r.token.Import(t.Context(), req); !errors.Is(err, kek.ErrRefused) || !matches("a KEK must not unwrap", err) {
		t.Errorf("under a KEK: %v, want ErrRefused", err)
	}
	req.WrappingKey = []byte(hsmtest.TransportID)
	r.WrappingKey(t, hsmtest.TransportID, make([]byte, 32))
	if _, _, err := r.token.Import(t.Context(), req); !errors.Is(err, kek.ErrAmbiguous) {
		t.Errorf("two wrapping keys of one id: %v, want ErrAmbiguous", err)
	}
}
