package inventory

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	kmstypes "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"

	"kekd/internal/kek"
)

const keyID = "k8s-kek/0102/a1b2c3"

// sealed makes a value as kube-apiserver stores it, after a change to it.
func sealed(change func(o *kmstypes.EncryptedObject)) []byte {
	o := &kmstypes.EncryptedObject{
		EncryptedData:          make([]byte, 100),
		KeyID:                  keyID,
		EncryptedDEKSource:     make([]byte, 178),
		Annotations:            map[string][]byte{"kekd.example.com": {1}},
		EncryptedDEKSourceType: kmstypes.EncryptedDEKSourceType_HKDF_SHA256_XNONCE_AES_GCM_SEED,
	}
	if change != nil {
		change(o)
	}
	b, err := proto.Marshal(o)
	if err != nil {
		panic(err)
	}
	return append([]byte("k8s:enc:kms:v2:kekd:"), b...)
}

// values are of every kind.
func values() map[string]struct {
	value []byte
	want  Object
} {
	type row = struct {
		value []byte
		want  Object
	}
	plain := Object{Class: Unencrypted}
	good := Object{Class: KMSv2, Provider: "kekd", KeyID: keyID}
	other := func(provider string) Object { return Object{Class: OtherProvider, Provider: provider} }
	bad := func(provider, problem string) Object {
		return Object{Class: Unparsable, Provider: provider, Problem: problem}
	}
	// damaged objects still tell the key_id.
	damaged := func(problem string) Object {
		return Object{Class: Unparsable, Provider: "kekd", KeyID: keyID, Problem: problem}
	}
	whole := sealed(nil)
	return map[string]row{
		"protobuf": {[]byte("k8s\x00\n\x0c"), plain},
		"JSON":     {[]byte(`{"kind":"Widget"}`), plain},
		"empty":    {nil, plain},
		"text":     {[]byte("k8s:en"), plain},

		"a seed's":         {whole, good},
		"a data key's":     {sealed(func(o *kmstypes.EncryptedObject) { o.EncryptedDEKSourceType = 0 }), good},
		"no annotations":   {sealed(func(o *kmstypes.EncryptedObject) { o.Annotations = nil }), good},
		"a dot at an end":  {sealed(func(o *kmstypes.EncryptedObject) { o.Annotations = map[string][]byte{"a.b.": nil} }), good},
		"an unknown field": {append(slices.Clone(whole), 0x32, 0x00), good},
		"largest": {
			sealed(func(o *kmstypes.EncryptedObject) {
				o.KeyID = strings.Repeat("k", 1024)
				o.EncryptedDEKSource = make([]byte, 1024)
				o.Annotations = map[string][]byte{"a.b": make([]byte, 32*1024-3)}
			}),
			Object{Class: KMSv2, Provider: "kekd", KeyID: strings.Repeat("k", 1024)},
		},

		"aescbc":      {[]byte("k8s:enc:aescbc:v1:key1:\x00\x01"), other("aescbc:v1:key1")},
		"aesgcm":      {[]byte("k8s:enc:aesgcm:v1:key-2:"), other("aesgcm:v1:key-2")},
		"secretbox":   {[]byte("k8s:enc:secretbox:v1:key1:x"), other("secretbox:v1:key1")},
		"KMS v1":      {[]byte("k8s:enc:kms:v1:old:\x00"), other("kms:v1:old")},
		"a long name": {[]byte("k8s:enc:aescbc:v1:" + strings.Repeat("n", 1024) + ":x"), other("aescbc:v1:" + strings.Repeat("n", 1024))},

		"unknown type":    {[]byte("k8s:enc:rot13:v1:key1:x"), bad("", "the provider is of an unknown type")},
		"unknown version": {[]byte("k8s:enc:kms:v3:kekd:x"), bad("", "the provider is of an unknown type")},
		"only a prefix":   {[]byte("k8s:enc:"), bad("", "the provider is of an unknown type")},
		"no name":         {[]byte("k8s:enc:kms:v2::x"), bad("", "the provider has no proper name")},
		"no colon":        {[]byte("k8s:enc:kms:v2:kekd"), bad("", "the provider has no proper name")},
		"too long a name": {[]byte("k8s:enc:aescbc:v1:" + strings.Repeat("n", 1025) + ":x"), bad("aescbc:v1:", "the provider has no proper name")},
		"a name of bytes": {[]byte("k8s:enc:aescbc:v1:\xff:x"), bad("aescbc:v1:", "the provider has no proper name")},

		"no object": {[]byte("k8s:enc:kms:v2:kekd:garbage"), bad("kekd", "it is not an EncryptedObject of KMS v2")},
		"cut off":   {whole[:len(whole)-1], bad("kekd", "it is not an EncryptedObject of KMS v2")},
		"nothing":   {[]byte("k8s:enc:kms:v2:kekd:"), bad("kekd", "encryptedData is empty")},
		"key_id of bytes": {
			// proto.Marshal would refuse it.
			slices.Concat([]byte("k8s:enc:kms:v2:kekd:\x0a\x01d\x12\x01\xff\x1a\x01s")), bad("kekd", "it is not an EncryptedObject of KMS v2"),
		},
		"no data":      {sealed(func(o *kmstypes.EncryptedObject) { o.EncryptedData = nil }), damaged("encryptedData is empty")},
		"no key_id":    {sealed(func(o *kmstypes.EncryptedObject) { o.KeyID = "" }), bad("kekd", "keyID has 0 bytes, not 1 to 1024")},
		"long key_id":  {sealed(func(o *kmstypes.EncryptedObject) { o.KeyID = strings.Repeat("k", 1025) }), bad("kekd", "keyID has 1025 bytes, not 1 to 1024")},
		"no seed":      {sealed(func(o *kmstypes.EncryptedObject) { o.EncryptedDEKSource = nil }), damaged("encryptedDEKSource has 0 bytes, not 1 to 1024")},
		"long seed":    {sealed(func(o *kmstypes.EncryptedObject) { o.EncryptedDEKSource = make([]byte, 1025) }), damaged("encryptedDEKSource has 1025 bytes, not 1 to 1024")},
		"unknown seed": {sealed(func(o *kmstypes.EncryptedObject) { o.EncryptedDEKSourceType = 7 }), damaged("encryptedDEKSourceType is 7, which kube-apiserver does not know")},
		"annotation's name": {
			sealed(func(o *kmstypes.EncryptedObject) { o.Annotations = map[string][]byte{"plain": nil} }),
			damaged("an annotation's name is not a domain name"),
		},
		"large annotations": {
			sealed(func(o *kmstypes.EncryptedObject) { o.Annotations = map[string][]byte{"a.b": make([]byte, 32*1024-2)} }),
			damaged("the annotations have 32769 bytes, more than 32768"),
		},
	}
}

func TestObject(t *testing.T) {
	t.Parallel()
	s := newStore(nil, "", "/registry", nil)
	for name, c := range values() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.want.Key, c.want.Resource, c.want.Path, c.want.ModRevision = "/registry/secrets/ns/x", "secrets", []string{"ns", "x"}, 7
			if diff := cmp.Diff(c.want, s.object([]byte(c.want.Key), c.value, 7)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestUnder(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		o     Object
		ring  string
		id    kek.ID
		under bool
	}{
		{"its key", Object{Class: KMSv2, KeyID: "ring/0102/a1b2c3"}, "ring", "\x01\x02", true},
		{"without a check value", Object{Class: KMSv2, KeyID: "ring/0102/000000"}, "ring", "\x01\x02", true},
		{"another ring", Object{Class: KMSv2, KeyID: "ring2/0102/a1b2c3"}, "ring", "\x01\x02", false},
		{"another key", Object{Class: KMSv2, KeyID: "ring/0103/a1b2c3"}, "ring", "\x01\x02", false},
		{"a key of the same beginning", Object{Class: KMSv2, KeyID: "ring/010203/a1b2c3"}, "ring", "\x01\x02", false},
		{"one part more", Object{Class: KMSv2, KeyID: "ring/01/02/a1b2c3"}, "ring", "\x01", false},
		{"another plugin's", Object{Class: KMSv2, KeyID: "arn:aws:kms:1"}, "ring", "\x01\x02", false},
		{"not encrypted", Object{Class: Unencrypted}, "ring", "\x01\x02", false},
	} {
		if got := c.o.Under(c.ring, c.id); got != c.under {
			t.Errorf("%s: %t, want %t", c.name, got, c.under)
		}
	}
}

// FuzzClassify: whatever etcd holds, it gets a class, and what is reported of it
// is bounded and is text.
func FuzzClassify(f *testing.F) {
	all := values()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		f.Add("/registry/secrets/ns/name", all[name].value)
	}
	for _, key := range []string{"", "/registry", "/registry/", "/registry//", "/registry/a.b/c/d", "/registry/services/specs/x/y", "/registry/\xff/\x00"} {
		f.Add(key, []byte("x"))
	}
	s := newStore(nil, "", "/registry", nil)
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		o := s.object([]byte(key), value, 1)
		if o.Key != key {
			t.Errorf("the key is %q, want %q", o.Key, key)
		}
		for what, s := range map[string]string{"provider": o.Provider, "key_id": o.KeyID, "problem": o.Problem} {
			if !utf8.ValidString(s) || len(s) > maxProvider+20 {
				t.Errorf("the %s is %q", what, s)
			}
		}
		got := fmt.Sprintf("%s provider=%t keyID=%t problem=%t", o.Class, o.Provider != "", o.KeyID != "", o.Problem != "")
		switch got {
		case "unencrypted provider=false keyID=false problem=false",
			"kms-v2 provider=true keyID=true problem=false",
			"other-provider provider=true keyID=false problem=false",
			"unparsable provider=false keyID=false problem=true",
			"unparsable provider=true keyID=false problem=true",
			"unparsable provider=true keyID=true problem=true":
		default:
			t.Error(got)
		}
		if (o.Class == Unencrypted) == strings.HasPrefix(string(value), "k8s:enc:") {
			t.Errorf("%q is %s", value, o.Class)
		}
	})
}
