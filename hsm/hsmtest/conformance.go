package hsmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"kekd/hsm"
	"kekd/hsm/wire"
	"kekd/internal/kek"
	"kekd/internal/secret"
)

// Open makes a Token that is closed with the test.
func (f *Fixture) Open(t *testing.T, change ...func(*hsm.Config)) *hsm.Token {
	t.Helper()
	cfg := f.Config
	for _, c := range change {
		c(&cfg)
	}
	token := hsm.New(cfg)
	t.Cleanup(token.Close)
	return token
}

// NewID makes a CKA_ID that is active since an hour.
func NewID(t *testing.T) kek.ID {
	t.Helper()
	id, err := kek.NewID(time.Now().Add(-time.Hour), rand.Reader)
	must(t, err)
	return id
}

// Conformance runs what every token must do through the whole of package hsm,
// worker process included. make is called for each part and returns a fresh
// token.
func Conformance(t *testing.T, make func(t *testing.T) *Fixture) {
	for _, part := range []struct {
		name string
		run  func(t *testing.T, f *Fixture)
	}{
		{"token by serial", bySerial},
		{"no such token", noSuchToken},
		{"two tokens of one label", twoTokens},
		{"wrong PIN is tried once", wrongPIN},
		{"create and list", createAndList},
		{"other labels are not the ring", otherLabels},
		{"every mechanism", everyMechanism},
		{"pinned mechanism that the token lacks", pinnedMissing},
		{"damaged ciphertexts", damaged},
		{"unknown key", unknownKey},
		{"concurrent use", concurrent},
		{"killed worker", killedWorker},
		{"foreign keys", foreignKeys},
		{"change of state", changeOfState},
		{"check value of a key met while disabled", checkValueAfterEnable},
		{"destroy", destroy},
		{"change of a key that is not as it was seen", changeUnseen},
		{"change that comes too late", changeTooLate},
		{"change made twice", changeTwice},
		{"two changes of one key", changesConflict},
		{"destruction half done", destroyHalfDone},
		{"import", importKeys},
		{"import of what is no AES-256 key of its owner", importRefused},
		{"import with an HMAC key", importWithHMAC},
		{"audit keys", auditKeys},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, make(t)) })
	}
}

func bySerial(t *testing.T, f *Fixture) {
	info, err := f.Open(t).Info(t.Context())
	must(t, err)
	again := f.Open(t, func(c *hsm.Config) {
		c.Token = wire.Selector{Label: info.Label, Serial: info.Serial, Model: info.Model}
	})
	got, err := again.Info(t.Context())
	must(t, err)
	if got.Label != info.Label || got.Label != strings.TrimRight(got.Label, " \x00") {
		t.Errorf("label by serial %q, by label %q; want the same, trimmed", got.Label, info.Label)
	}
	if got.Sessions != f.Config.Sessions {
		t.Errorf("pool of %d sessions, want %d", got.Sessions, f.Config.Sessions)
	}
}

func noSuchToken(t *testing.T, f *Fixture) {
	token := f.Open(t, func(c *hsm.Config) { c.Token = wire.Selector{Label: "nowhere"} })
	_, err := token.Keys(t.Context())
	if !errors.Is(err, kek.ErrUnavailable) || !strings.Contains(fmt.Sprint(err), f.Config.Token.Label) {
		t.Errorf("got %v, want ErrUnavailable with a list that names %q", err, f.Config.Token.Label)
	}
	if hsm.Hint(err) == "" {
		t.Error("no hint")
	}
}

func twoTokens(t *testing.T, f *Fixture) {
	if f.Twin == nil {
		return // a module with one token only
	}
	f.Twin(t)
	_, err := f.Open(t).Keys(t.Context())
	if !errors.Is(err, kek.ErrAmbiguous) || strings.Count(fmt.Sprint(err), "serial") < 2 {
		t.Errorf("got %v, want ErrAmbiguous with both serials", err)
	}
}

func wrongPIN(t *testing.T, f *Fixture) {
	right := f.PIN.value
	f.PIN.Set("654321")
	for i := range 3 { // each as after a restart of kekd
		token := f.Open(t)
		for range 3 {
			if _, err := token.Keys(t.Context()); !errors.Is(err, kek.ErrPIN) {
				t.Fatalf("start %d with a wrong PIN: %v, want ErrPIN", i, err)
			}
		}
	}
	if !f.Latch.Set() {
		t.Error("no latch is stored")
	}
	f.PIN.Set(right)
	if _, err := f.Open(t).Keys(t.Context()); err != nil {
		t.Errorf("with the right PIN: %v", err)
	}
	if f.Latch.Set() {
		t.Error("the latch is still stored after the PIN changed")
	}
}

func createAndList(t *testing.T, f *Fixture) {
	token := f.Open(t)
	id := NewID(t)
	made, mech, err := token.Create(t.Context(), id)
	must(t, err)
	if mech != f.Mechanisms[0] {
		t.Errorf("proven with %s, want %s", mech, f.Mechanisms[0])
	}
	if made.ID != id || made.Attributes.Label != Ring || made.CheckValue == (kek.CheckValue{}) {
		t.Errorf("made %+v, want id %s in the ring with a check value", made, id)
	}
	for name, v := range map[string]struct {
		got  *bool
		want bool
	}{
		"extractable": {made.Attributes.Extractable, false}, "sensitive": {made.Attributes.Sensitive, true},
		"encrypt": {made.Attributes.Encrypt, true}, "decrypt": {made.Attributes.Decrypt, true},
	} {
		if v.got == nil || *v.got != v.want {
			t.Errorf("attribute %s is not %t", name, v.want)
		}
	}
	if _, _, err := token.Create(t.Context(), id); !errors.Is(err, kek.ErrAmbiguous) {
		t.Errorf("the same id again: %v, want ErrAmbiguous", err)
	}
	keys, err := f.Open(t).Keys(t.Context())
	must(t, err)
	if len(keys) != 1 || keys[0].ID != id || keys[0].CheckValue != made.CheckValue {
		t.Errorf("another process lists %+v, want the one key", keys)
	}
}

func otherLabels(t *testing.T, f *Fixture) {
	other := f.Open(t, func(c *hsm.Config) { c.Ring = Ring + "-other" })
	id := NewID(t)
	_, mech, err := other.Create(t.Context(), id)
	must(t, err)
	token := f.Open(t)
	keys, err := token.Keys(t.Context())
	must(t, err)
	if len(keys) != 0 {
		t.Errorf("the ring has %d keys, want none", len(keys))
	}
	if _, err := token.Wrap(t.Context(), id, mech, secret.Bytes("seed"), []byte("aad")); !errors.Is(err, kek.ErrUnknownKey) {
		t.Errorf("wrap under another ring's key: %v, want ErrUnknownKey", err)
	}
}

// seal wraps a random seed and returns both.
func seal(t *testing.T, token *hsm.Token, id kek.ID, m kek.Mechanism, aad []byte) (seed secret.Bytes, blob []byte) {
	t.Helper()
	seed = make(secret.Bytes, 32)
	_, _ = rand.Read(seed) // never fails
	blob, err := token.Wrap(t.Context(), id, m, seed, aad)
	must(t, err)
	return seed, blob
}

// family is a mechanism as the configuration pins it, without its IV mode.
func family(m kek.Mechanism) string {
	name, _, _ := strings.Cut(m.String(), "/")
	return name
}

func everyMechanism(t *testing.T, f *Fixture) {
	aad := []byte("context")
	for _, m := range f.Mechanisms {
		t.Run(m.String(), func(t *testing.T) {
			token := f.Open(t, func(c *hsm.Config) { c.Mechanism = family(m) })
			id := NewID(t)
			_, got, err := token.Create(t.Context(), id)
			must(t, err)
			if got != m {
				t.Fatalf("proven %s, want %s", got, m)
			}
			must(t, token.Probe(t.Context(), id, m))
			seed, blob := seal(t, token, id, m, aad)
			_, second := seal(t, token, id, m, aad)
			if bytes.Equal(blob, second) {
				t.Error("two seeds gave the same blob")
			}
			// Another process, as on another node, and with no pin of its own.
			back, err := f.Open(t).Unwrap(t.Context(), id, m, blob, aad)
			must(t, err)
			if !bytes.Equal(back, seed) {
				t.Error("unwrapped something else than was wrapped")
			}
			// Direct mode wraps values of any length.
			for _, n := range []int{1, 15, 16, 17, 100, 800} {
				plain := bytes.Repeat([]byte{7}, n)
				blob, err := token.Wrap(t.Context(), id, m, plain, aad)
				must(t, err)
				back, err := token.Unwrap(t.Context(), id, m, blob, aad)
				must(t, err)
				if !bytes.Equal(back, plain) {
					t.Errorf("%d bytes came back as %d others", n, len(back))
				}
			}
		})
	}
}

func pinnedMissing(t *testing.T, f *Fixture) {
	have := make(map[string]bool)
	for _, m := range f.Mechanisms {
		have[family(m)] = true
	}
	for _, name := range []string{"aes-gcm", "aes-kwp", "aes-cbc-hmac"} {
		if have[name] {
			continue
		}
		token := f.Open(t, func(c *hsm.Config) { c.Mechanism = name })
		if _, _, err := token.Create(t.Context(), NewID(t)); !errors.Is(err, kek.ErrRefused) || !strings.Contains(fmt.Sprint(err), name) {
			t.Errorf("create with %s: %v, want ErrRefused that names it", name, err)
		}
		keys, err := token.Keys(t.Context())
		must(t, err)
		if len(keys) != 0 {
			t.Errorf("%d keys are left behind", len(keys))
		}
	}
}

func damaged(t *testing.T, f *Fixture) {
	aad := []byte("context")
	for _, m := range f.Mechanisms {
		t.Run(m.String(), func(t *testing.T) {
			token := f.Open(t, func(c *hsm.Config) { c.Mechanism = family(m) })
			id := NewID(t)
			_, _, err := token.Create(t.Context(), id)
			must(t, err)
			if _, _, err := token.Prove(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			seed, blob := seal(t, token, id, m, aad)
			pid := token.WorkerPID()
			refused := func(name string, b, aad []byte) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				if _, err := token.Unwrap(ctx, id, m, b, aad); !errors.Is(err, kek.ErrCorrupt) {
					t.Errorf("%s: %v, want ErrCorrupt", name, err)
				}
			}
			// One bit in each part: a canary costs up to a tenth of a second.
			for _, i := range []int{0, 13, len(blob) / 2, len(blob) - 1} {
				b := bytes.Clone(blob)
				b[i] ^= 1
				refused(fmt.Sprintf("bit in byte %d", i), b, aad)
			}
			refused("other AAD", blob, []byte("other"))
			refused("truncated", blob[:len(blob)-8], aad)
			refused("short", blob[:5], aad)
			refused("empty", nil, aad)
			refused("foreign", bytes.Repeat([]byte{0x42}, len(blob)), aad)
			refused("no AAD", blob, nil)
			back, err := token.Unwrap(t.Context(), id, m, blob, aad)
			must(t, err)
			if !bytes.Equal(back, seed) {
				t.Error("the intact blob no longer opens")
			}
			if token.WorkerPID() != pid {
				t.Error("a damaged ciphertext cost the worker its life")
			}
		})
	}
}

func unknownKey(t *testing.T, f *Fixture) {
	token := f.Open(t)
	_, mech, err := token.Create(t.Context(), NewID(t))
	must(t, err)
	pid := token.WorkerPID()
	_, err = token.Unwrap(t.Context(), NewID(t), mech, make([]byte, 96), []byte("aad"))
	if !errors.Is(err, kek.ErrUnknownKey) {
		t.Errorf("got %v, want ErrUnknownKey", err)
	}
	if token.WorkerPID() != pid {
		t.Error("an unknown key cost the worker its life")
	}
}

func concurrent(t *testing.T, f *Fixture) {
	token := f.Open(t)
	id := NewID(t)
	_, mech, err := token.Create(t.Context(), id)
	must(t, err)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 20 {
				aad := []byte("aad")
				seed := make(secret.Bytes, 32)
				_, _ = rand.Read(seed) // never fails
				blob, err := token.Wrap(t.Context(), id, mech, seed, aad)
				if err != nil {
					t.Error(err)
					return
				}
				back, err := token.Unwrap(t.Context(), id, mech, blob, aad)
				if err != nil || !bytes.Equal(back, seed) {
					t.Errorf("unwrap: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func killedWorker(t *testing.T, f *Fixture) {
	token := f.Open(t)
	id := NewID(t)
	_, mech, err := token.Create(t.Context(), id)
	must(t, err)
	seed, blob := seal(t, token, id, mech, []byte("aad"))
	pid := token.WorkerPID()
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	back, err := token.Unwrap(t.Context(), id, mech, blob, []byte("aad"))
	must(t, err)
	if !bytes.Equal(back, seed) {
		t.Error("unwrapped something else after the restart")
	}
	if now := token.WorkerPID(); now == pid || now == 0 {
		t.Errorf("worker %d after %d was killed", now, pid)
	}
}

func foreignKeys(t *testing.T, f *Fixture) {
	if f.ForeignKey == nil {
		return // no other tool makes keys on this token
	}
	f.ForeignKey(t, Ring, "01")
	token := f.Open(t)
	keys, err := token.Keys(t.Context())
	must(t, err)
	ring, err := hsm.BuildRing(Ring, keys, hsm.RingOptions{Now: time.Now()})
	must(t, err)
	primary, ok := ring.Primary()
	if !ok || primary.ID.String() != "01" {
		t.Fatalf("primary %+v, want the one foreign key", primary)
	}
	mech, _, err := token.Prove(t.Context(), primary.ID)
	must(t, err)
	must(t, token.Probe(t.Context(), primary.ID, mech))
	f.ForeignKey(t, Ring, "02")
	keys, err = token.Keys(t.Context())
	must(t, err)
	if _, err := hsm.BuildRing(Ring, keys, hsm.RingOptions{Now: time.Now()}); !errors.Is(err, kek.ErrAmbiguous) {
		t.Errorf("two foreign keys: %v, want ErrAmbiguous", err)
	}
	f.ForeignKey(t, Ring, "02")
	keys, err = token.Keys(t.Context())
	must(t, err)
	if _, err := hsm.BuildRing(Ring, keys, hsm.RingOptions{Now: time.Now(), Primary: "\x01"}); !errors.Is(err, kek.ErrAmbiguous) {
		t.Errorf("two keys of one id: %v, want ErrAmbiguous", err)
	}
}
