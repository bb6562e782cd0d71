package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"kekd/hsm"
	"kekd/hsm/hsmtest"
	"kekd/internal/kek"
)

// object returns the only object of a fake token whose CKA_ID ends so.
func (r *rig) object(t *testing.T, suffix string) *hsmtest.FakeObject {
	t.Helper()
	token, err := hsmtest.ReadFake(r.Config.Module)
	must(t, err)
	for _, o := range token.Objects {
		if strings.HasSuffix(string(o.Attributes[pkcs11.CKA_ID]), suffix) {
			return o
		}
	}
	return nil
}

// state is what a key's object says: its label, and whether it encrypts and decrypts.
func (r *rig) state(t *testing.T) (label string, encrypts, decrypts bool) {
	t.Helper()
	o := r.object(t, string(r.id))
	yes := []byte{1}
	return string(o.Attributes[pkcs11.CKA_LABEL]), bytes.Equal(o.Attributes[pkcs11.CKA_ENCRYPT], yes), bytes.Equal(o.Attributes[pkcs11.CKA_DECRYPT], yes)
}

// seen is the rig's key as it is listed.
func (r *rig) seen(t *testing.T) kek.Info {
	t.Helper()
	return seen(t, r.token, r.id)
}

// seen is a key as it is listed.
func seen(t *testing.T, token *hsm.Token, id kek.ID) kek.Info {
	t.Helper()
	keys, err := token.Keys(t.Context())
	must(t, err)
	for _, k := range keys {
		if k.ID == id {
			return k
		}
	}
	t.Fatalf("key %s is not listed", id)
	return kek.Info{}
}

func matches(pattern string, err error) bool {
	return err != nil && regexp.MustCompile(pattern).MatchString(err.Error())
}

// What a token does not let itself be told, and what is left then. The order of
// the changes shows in what is left: nothing half done is usable.
func TestSetUseOnStubbornTokens(t *testing.T) {
	t.Parallel()
	const live, disabled = hsmtest.Ring, hsmtest.Ring + "/disabled"
	for name, c := range map[string]struct {
		from, to       hsm.Use
		readOnly, deaf []uint
		want           string // of the error, empty for none
		hint           string
		label          string
		encrypts       bool
		decrypts       bool
	}{
		"disable, rights are read-only":       {to: hsm.Disabled(), readOnly: []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT}, label: disabled, encrypts: true, decrypts: true},
		"disable, one right is read-only":     {to: hsm.Disabled(), readOnly: []uint{pkcs11.CKA_ENCRYPT}, label: disabled, encrypts: true},
		"disable, rights do not change":       {to: hsm.Disabled(), deaf: []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT}, label: disabled, encrypts: true, decrypts: true},
		"disable, the label is read-only":     {to: hsm.Disabled(), readOnly: []uint{pkcs11.CKA_LABEL}, want: `label .*"k8s-kek/disabled".*CKR_ATTRIBUTE_READ_ONLY`, hint: `CKA_LABEL to "k8s-kek/disabled"`, label: live, encrypts: true, decrypts: true},
		"disable, the label does not change":  {to: hsm.Disabled(), deaf: []uint{pkcs11.CKA_LABEL}, want: "does not make it", hint: "vendor's tool", label: live, encrypts: true, decrypts: true},
		"enable, rights are read-only":        {from: hsm.Disabled(), readOnly: []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT}, want: "the token keeps key .* unusable: set CKA_ENCRYPT", hint: "CKA_ENCRYPT=true", label: disabled},
		"enable, one right does not come":     {from: hsm.Disabled(), deaf: []uint{pkcs11.CKA_DECRYPT}, want: "the token keeps key .* unusable: set CKA_DECRYPT", hint: "CKA_DECRYPT=true", label: disabled, encrypts: true},
		"enable, the label is read-only":      {from: hsm.Disabled(), readOnly: []uint{pkcs11.CKA_LABEL}, want: "CKR_ATTRIBUTE_READ_ONLY", hint: `CKA_LABEL to "k8s-kek"`, label: disabled, encrypts: true, decrypts: true},
		"enable what is, all is read-only":    {readOnly: []uint{pkcs11.CKA_LABEL, pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT}, label: live, encrypts: true, decrypts: true},
		"disable what is, all is read-only":   {from: hsm.Disabled(), to: hsm.Disabled(), readOnly: []uint{pkcs11.CKA_LABEL, pkcs11.CKA_ENCRYPT}, label: disabled},
		"schedule, the label does not change": {from: hsm.Disabled(), to: hsm.DestroyAfter(time.Now()), deaf: []uint{pkcs11.CKA_LABEL}, want: "does not make it", hint: "vendor's tool", label: disabled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			_, err := r.token.SetUse(t.Context(), r.seen(t), c.from)
			must(t, err)
			r.edit(t, func(token *hsmtest.FakeToken) { token.ReadOnly, token.Deaf = c.readOnly, c.deaf })
			_, err = r.token.SetUse(t.Context(), r.seen(t), c.to)
			switch {
			case c.want == "":
				must(t, err)
			case !errors.Is(err, kek.ErrRefused) || !matches(c.want, err) || !strings.Contains(hsm.Hint(err), c.hint):
				t.Errorf("got %v, hint %q; want ErrRefused, %q, %q", err, hsm.Hint(err), c.want, c.hint)
			}
			if label, encrypts, decrypts := r.state(t); label != c.label || encrypts != c.encrypts || decrypts != c.decrypts {
				t.Errorf("label %q, encrypts %t, decrypts %t; want %q, %t, %t", label, encrypts, decrypts, c.label, c.encrypts, c.decrypts)
			}
			if r.watch.restarted() != 0 {
				t.Error("a refusal cost the worker its life")
			}
		})
	}
}

// A change of state is the same however often it is made, so a lost answer is no
// reason to stop.
func TestSetUseIsDoneAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.faults(t, "C_SetAttributeValue crash n=1")
	k, err := r.token.SetUse(t.Context(), r.seen(t), hsm.Disabled())
	must(t, err)
	if k.State != kek.Disabled || r.watch.restarted() != 1 {
		t.Errorf("state %s after %d restarts, want disabled after 1", k.State, r.watch.restarted())
	}
}

// Vague failures count as refusals where the label has done it already.
func TestSetUseVagueRefusal(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	_, err := r.token.SetUse(t.Context(), r.seen(t), hsm.Disabled())
	must(t, err)
	r.edit(t, func(token *hsmtest.FakeToken) {
		for _, o := range token.Objects {
			o.Attributes[pkcs11.CKA_ENCRYPT] = []byte{1}
		}
	})
	r.faults(t, "C_SetAttributeValue rv=0x5")
	if _, err := r.token.SetUse(t.Context(), r.seen(t), hsm.Disabled()); err != nil {
		t.Errorf("the token does not let go of a right: %v", err)
	}
}

func TestDestroyRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(token *hsmtest.FakeToken) { token.Mechanisms = token.Mechanisms[2:] }) // aes-cbc-hmac
	protect := func(suffix string, yes bool) {
		r.edit(t, func(token *hsmtest.FakeToken) {
			for _, o := range token.Objects {
				if strings.HasSuffix(string(o.Attributes[pkcs11.CKA_ID]), suffix) {
					delete(o.Attributes, pkcs11.CKA_DESTROYABLE)
					if yes {
						o.Attributes[pkcs11.CKA_DESTROYABLE] = []byte{0}
					}
				}
			}
		})
	}
	protect(string(r.id), true)
	seen := r.seen(t)
	err := r.token.Destroy(t.Context(), seen)
	if !errors.Is(err, kek.ErrRefused) || !matches("CKA_DESTROYABLE=false.*CKR_ACTION_PROHIBITED", err) || !strings.Contains(hsm.Hint(err), "disabled") {
		t.Errorf("a KEK with CKA_DESTROYABLE=false: %v, hint %q", err, hsm.Hint(err))
	}
	must(t, r.unwrap(t.Context())) // with both of its keys

	// The KEK goes first; what is left of a destruction is taken by the next.
	protect(string(r.id), false)
	protect("/hmac", true)
	if err := r.token.Destroy(t.Context(), seen); !errors.Is(err, kek.ErrRefused) {
		t.Errorf("an HMAC key that can't be destroyed: %v, want ErrRefused", err)
	}
	if r.object(t, string(r.id)) != nil || r.object(t, "/hmac") == nil {
		t.Error("want the KEK gone and the HMAC key left")
	}
	protect("/hmac", false)
	must(t, r.token.Destroy(t.Context(), seen))
	if r.object(t, "/hmac") != nil {
		t.Error("the HMAC key is still there")
	}
	if err := r.token.Destroy(t.Context(), seen); !errors.Is(err, kek.ErrUnknownKey) {
		t.Errorf("nothing is left: %v, want ErrUnknownKey", err)
	}
	if r.watch.restarted() != 0 {
		t.Error("it cost the worker its life")
	}
}

// Nobody knows what a destruction did whose answer is lost, so it is not repeated
// by itself.
func TestDestroyLostAnswer(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	seen := r.seen(t)
	r.faults(t, "C_DestroyObject crash n=1")
	if err := r.token.Destroy(t.Context(), seen); !errors.Is(err, kek.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	if r.object(t, string(r.id)) == nil {
		t.Fatal("it was tried again")
	}
	must(t, r.token.Destroy(t.Context(), seen))
}

// A change that stopped half way is finished by the next one that asks for it, with what
// was seen before, and by a retry of the same call.
func TestSetUseHalfDone(t *testing.T) {
	t.Parallel()
	const spared = "C_SetAttributeValue ms=1 n=1"
	for name, c := range map[string]struct{ from, to hsm.Use }{
		"disable": {to: hsm.Disabled()}, "enable": {from: hsm.Disabled()},
	} {
		for i, faults := range [][]string{
			{"C_SetAttributeValue crash n=1"}, {spared, "C_SetAttributeValue crash n=1"}, {spared, spared, "C_SetAttributeValue crash n=1"},
		} {
			t.Run(fmt.Sprintf("%s, step %d", name, i+1), func(t *testing.T) {
				t.Parallel()
				r := newRig(t, nil)
				_, err := r.token.SetUse(t.Context(), r.seen(t), c.from)
				must(t, err)
				before := r.seen(t)
				r.faults(t, append(faults, "C_Initialize rv=0x5")...) // so that no retry finishes it
				if _, err := r.token.SetUse(t.Context(), before, c.to); !errors.Is(err, kek.ErrUnavailable) {
					t.Fatalf("got %v, want ErrUnavailable", err)
				}
				r.faults(t)
				if label, encrypts, decrypts := r.state(t); i > 0 && label == hsmtest.Ring && (!encrypts || !decrypts) {
					t.Errorf("half way the label is %q with the rights %t, %t", label, encrypts, decrypts)
				}
				token := r.Open(t)
				_, err = token.SetUse(t.Context(), before, c.to)
				must(t, err)
				after := seen(t, token, r.id)
				want := c.to == hsm.Enabled()
				if (after.State == 0) != want || *after.Attributes.Encrypt != want || *after.Attributes.Decrypt != want {
					t.Errorf("finished as %+v", after)
				}
			})
		}
	}
}

// A change that another process makes between the reading and the end of the change
// shows when it is read back.
func TestSetUseIsReadBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	before := r.seen(t)
	r.faults(t, "C_SetAttributeValue ms=1 n=1", "C_SetAttributeValue ms=700 n=1") // the label, then a right
	done := make(chan error, 1)
	go func() {
		_, err := r.token.SetUse(t.Context(), before, hsm.Disabled())
		done <- err
	}()
	eventually(t, "the label is set", func() bool { label, _, _ := r.state(t); return label != hsmtest.Ring })
	r.edit(t, func(token *hsmtest.FakeToken) {
		for _, o := range token.Objects {
			o.Attributes[pkcs11.CKA_LABEL] = []byte(hsmtest.Ring + "/destroy-after-2031-02-04")
		}
	})
	if err := <-done; !errors.Is(err, kek.ErrChanged) || !matches("destroy-after-2031", err) {
		t.Errorf("got %v, want ErrChanged that names the other label", err)
	}
}

// A worker that has no free session, or starts late, begins nothing after the
// caller's deadline.
func TestDestroyNotAfterTheDeadline(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	before := r.seen(t)
	r.faults(t, "C_GetAttributeValue ms=600 n=1") // the look before the change takes longer than the caller has
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := r.token.Destroy(ctx, before); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, kek.ErrUnavailable) || !matches("too late to begin", err) {
		t.Errorf("got %v, want DeadlineExceeded: too late to begin", err)
	}
	must(t, r.unwrap(t.Context()))
	if r.watch.results["destroy timeout"] != 1 {
		t.Errorf("results %v, want one timeout of destroy", r.watch.results)
	}
}

// A key that has no usable value, such as a half-made one, is listed, and Try says
// that it can't be used.
func TestUnusableKeyIsListed(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	id := hsmtest.NewID(t)
	_, _, err := r.token.Create(t.Context(), id)
	must(t, err)
	r.edit(t, func(token *hsmtest.FakeToken) {
		for _, o := range token.Objects {
			if string(o.Attributes[pkcs11.CKA_ID]) == string(id) {
				o.Value = nil
			}
		}
	})
	token := r.Open(t)
	if k := seen(t, token, id); k.CheckValue != (kek.CheckValue{}) {
		t.Errorf("listed with the check value %s", k.CheckValue)
	}
	if _, err := token.Try(t.Context(), id); err == nil {
		t.Error("tried without an error")
	}
	must(t, token.Destroy(t.Context(), seen(t, token, id)))
}
