package hsmtest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kekd/hsm"
	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// TransportID is the CKA_ID of the AES key that unwraps.
const TransportID = kek.ID("\x0a\x0b")

// Owner is somebody who brings his own key to a token.
type Owner struct {
	t *testing.T
	// Pair is the one-time key pair, public its public half, and transport the AES key that both sides have.
	Pair      wire.WrappingKey
	public    *rsa.PublicKey
	transport []byte
}

// NewOwner begins an import on a token.
func NewOwner(t *testing.T, f *Fixture, token *hsm.Token) *Owner {
	t.Helper()
	o := &Owner{t: t, transport: newKey()}
	if f.WrappingKey != nil {
		f.WrappingKey(t, TransportID, o.transport)
	}
	var err error
	o.Pair, err = token.BeginImport(t.Context(), 2048)
	must(t, err)
	public, err := x509.ParsePKIXPublicKey(o.Pair.PublicKey)
	must(t, err)
	var ok bool
	if o.public, ok = public.(*rsa.PublicKey); !ok || o.public.Size() != 256 {
		t.Fatalf("the wrapping key is %T, want RSA of 2048 bits", public)
	}
	return o
}

// Wrap wraps a key for the token. The request lacks the CKA_ID.
func (o *Owner) Wrap(m wire.ImportMethod, h wire.OAEPHash, key []byte) wire.ImportRequest {
	o.t.Helper()
	kwp := func(by []byte) []byte {
		block, err := aes.NewCipher(by)
		must(o.t, err)
		return kwpWrap(block, key)
	}
	if m == wire.AESKWP {
		return wire.ImportRequest{Method: m, WrappingKey: []byte(TransportID), Wrapped: kwp(o.transport)}
	}
	first, rest := key, []byte(nil)
	if m == wire.RSAAESKeyWrap {
		first = newKey()
		rest = kwp(first)
	}
	sum := sha256.New()
	if h == wire.SHA1 {
		sum = sha1.New()
	}
	blob, err := rsa.EncryptOAEP(sum, rand.Reader, o.public, first, nil)
	must(o.t, err)
	return wire.ImportRequest{Method: m, Hash: h, WrappingKey: o.Pair.ID, Wrapped: append(blob, rest...)}
}

// newKey makes an AES-256 key.
func newKey() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return b
}

// checkValueOf is a key's check value as its owner computes it.
func checkValueOf(t *testing.T, key []byte) kek.CheckValue {
	t.Helper()
	block, err := aes.NewCipher(key)
	must(t, err)
	out := make([]byte, 16)
	block.Encrypt(out, out)
	return kek.CheckValue(out[:3])
}

// hashesFor are the hashes to try a method with.
func hashesFor(f *Fixture, m wire.ImportMethod) []wire.OAEPHash {
	if m == wire.AESKWP {
		return []wire.OAEPHash{""}
	}
	return f.Hashes
}

func importKeys(t *testing.T, f *Fixture) {
	token := f.Open(t)
	before, err := token.ImportState(t.Context())
	must(t, err)
	if diff := cmp.Diff(wire.ImportState{Methods: f.ImportMethods, Pairs: []wire.WrappingKey{}, Leftovers: [][]byte{}}, before); diff != "" {
		t.Errorf("before anything was begun (-want +got):\n%s", diff)
	}
	o := NewOwner(t, f, token)
	begun, err := f.Open(t).ImportState(t.Context())
	must(t, err)
	if diff := cmp.Diff([]wire.WrappingKey{o.Pair}, begun.Pairs); diff != "" || len(begun.Leftovers) != 0 {
		t.Errorf("another process finds %d leftovers and (-begun +found):\n%s", len(begun.Leftovers), diff)
	}
	if !slices.Equal(o.Pair.Hashes, f.Hashes) {
		t.Errorf("unwraps with %v, want %v", o.Pair.Hashes, f.Hashes)
	}
	for _, m := range f.ImportMethods {
		for _, h := range hashesFor(f, m) {
			t.Run(fmt.Sprintf("%s %s", m, h), func(t *testing.T) { importOne(t, f, token, o, m, h) })
		}
	}
	must(t, token.AbortImport(t.Context(), kek.ID(o.Pair.ID)))
	after, err := token.ImportState(t.Context())
	must(t, err)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("after the abort (-before +after):\n%s", diff)
	}
	if err := token.AbortImport(t.Context(), kek.ID(o.Pair.ID)); !errors.Is(err, kek.ErrUnknownKey) {
		t.Errorf("aborted again: %v, want ErrUnknownKey", err)
	}
}

func importOne(t *testing.T, f *Fixture, token *hsm.Token, o *Owner, m wire.ImportMethod, h wire.OAEPHash) {
	key, id := newKey(), NewID(t)
	kcv := checkValueOf(t, key)
	req := o.Wrap(m, h, key)
	req.ID, req.CheckValue = []byte(id), &kcv
	got, mech, err := token.Import(t.Context(), req)
	must(t, err)
	if got.ID != id || got.State != 0 || got.Attributes.Label != Ring || got.CheckValue != kcv {
		t.Errorf("imported %+v, want key %s of the ring with check value %s", got, id, kcv)
	}
	for name, v := range map[string]struct {
		got  *bool
		want bool
	}{
		"extractable": {got.Attributes.Extractable, false}, "sensitive": {got.Attributes.Sensitive, true},
		"encrypt": {got.Attributes.Encrypt, true}, "decrypt": {got.Attributes.Decrypt, true},
		"local": {got.Attributes.Local, false}, "never extractable": {got.Attributes.NeverExtractable, false},
	} {
		if v.got == nil || *v.got != v.want {
			t.Errorf("attribute %s is not %t", name, v.want)
		}
	}
	if told := got.Attributes.Bits == 256; told != f.SizeTold {
		t.Errorf("the token tells a size of %d bits", got.Attributes.Bits)
	}
	// What the token encrypts opens under the owner's own copy of the key.
	if mech != f.Mechanisms[0] {
		t.Fatalf("proven with %s, want %s", mech, f.Mechanisms[0])
	}
	seed, blob := seal(t, token, id, mech, []byte("aad"))
	if plain, err := openByHand(key, mech, blob, []byte("aad")); err != nil || !bytes.Equal(plain, seed) {
		t.Errorf("the token does not encrypt under the owner's key: %v", err)
	}
	back, err := f.Open(t).Unwrap(t.Context(), id, mech, blob, []byte("aad"))
	must(t, err)
	if !bytes.Equal(back, seed) {
		t.Error("another process unwraps something else")
	}
	if _, _, err := token.Import(t.Context(), req); !errors.Is(err, kek.ErrAmbiguous) {
		t.Errorf("the same id again: %v, want ErrAmbiguous", err)
	}
}

// openByHand opens a blob of docs/design.md's forms with nothing but the KEK. The
// HMAC key of aes-cbc-hmac stays on the token, so its MAC is not looked at.
func openByHand(key []byte, m kek.Mechanism, blob, aad []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	n := 12
	switch m {
	case kek.CBCHMAC:
		padded := slices.Clone(blob[aes.BlockSize : len(blob)-sha256.Size])
		cipher.NewCBCDecrypter(block, blob[:aes.BlockSize]).CryptBlocks(padded, padded)
		return bytes.TrimSuffix(padded, bytes.Repeat([]byte{16}, 16)), nil // a seed has 32 bytes
	case kek.GCMAppendedIV:
		n = 16
	}
	gcm, err := cipher.NewGCMWithNonceSize(block, n)
	if err != nil {
		return nil, err
	}
	return gcm.Open(nil, blob[:n], blob[n:], aad)
}

func importRefused(t *testing.T, f *Fixture) {
	token := f.Open(t)
	o := NewOwner(t, f, token)
	pid := token.WorkerPID()
	key := newKey()
	right, wrong := checkValueOf(t, key), kek.CheckValue{1, 2, 3}
	for _, m := range f.ImportMethods {
		good := o.Wrap(m, f.Hashes[len(f.Hashes)-1], key)
		short := o.Wrap(m, f.Hashes[len(f.Hashes)-1], key[:16])
		short.CheckValue = &right // computed under AES-256
		other := good
		other.CheckValue = &wrong
		damaged := good
		damaged.Wrapped = slices.Clone(good.Wrapped)
		damaged.Wrapped[7] ^= 1
		long := good
		long.Wrapped = append(slices.Clone(good.Wrapped), 0)
		lost := good
		lost.WrappingKey = []byte("nowhere")
		type attempt struct {
			req  wire.ImportRequest
			want error
		}
		cases := map[string]attempt{
			"another check value":  {other, kek.ErrCorrupt},
			"half a key":           {short, kek.ErrCorrupt},
			"damaged":              {damaged, kek.ErrCorrupt},
			"one byte more":        {long, kek.ErrCorrupt},
			"nothing":              {wire.ImportRequest{Method: m, WrappingKey: good.WrappingKey}, kek.ErrCorrupt},
			"unknown wrapping key": {lost, kek.ErrUnknownKey},
		}
		if m == wire.RSAOAEP && !f.SizeTold {
			cases["nothing shows the size"] = attempt{good, kek.ErrRefused}
		}
		for _, h := range []wire.OAEPHash{wire.SHA256, wire.SHA1} {
			if m != wire.AESKWP && !slices.Contains(f.Hashes, h) {
				cases["hash "+string(h)] = attempt{o.Wrap(m, h, key), kek.ErrRefused}
			}
		}
		for name, c := range cases {
			c.req.ID = []byte(NewID(t))
			if _, _, err := token.Import(t.Context(), c.req); !errors.Is(err, c.want) || hsm.Hint(err) == "" {
				t.Errorf("%s, %s: %v, hint %q; want %v and a hint", m, name, err, hsm.Hint(err), c.want)
			}
		}
	}
	keys, err := token.Keys(t.Context())
	must(t, err)
	state, err := token.ImportState(t.Context())
	must(t, err)
	if len(keys) != 0 || len(state.Leftovers) != 0 || len(state.Pairs) != 1 {
		t.Errorf("left: %d keys in the ring, %d beside it, %d pairs; want 0, 0, 1", len(keys), len(state.Leftovers), len(state.Pairs))
	}
	if token.WorkerPID() != pid {
		t.Error("a refusal cost the worker its life")
	}
}

func importWithHMAC(t *testing.T, f *Fixture) {
	token := f.Open(t, func(c *hsm.Config) { c.Mechanism = "aes-cbc-hmac" })
	o := NewOwner(t, f, token)
	key, id := newKey(), NewID(t)
	kcv := checkValueOf(t, key)
	req := o.Wrap(wire.RSAOAEP, f.Hashes[0], key)
	req.ID, req.CheckValue = []byte(id), &kcv
	_, mech, err := token.Import(t.Context(), req)
	must(t, err)
	if mech != kek.CBCHMAC {
		t.Errorf("proven with %s, want %s", mech, kek.CBCHMAC)
	}
	other := f.Open(t)
	must(t, other.Probe(t.Context(), id, kek.CBCHMAC))
	seen := keyOf(t, other, id)
	must(t, other.Destroy(t.Context(), seen))
	if err := other.Destroy(t.Context(), seen); !errors.Is(err, kek.ErrUnknownKey) {
		t.Errorf("something was left: %v", err)
	}
}
