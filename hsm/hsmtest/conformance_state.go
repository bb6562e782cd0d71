package hsmtest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"kekd/hsm"
	"kekd/internal/kek"
	"kekd/internal/secret"
)

// keyOf lists the ring and returns one key of it.
func keyOf(t *testing.T, token *hsm.Token, id kek.ID) kek.Info {
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

func changeOfState(t *testing.T, f *Fixture) {
	ids := []kek.ID{NewID(t)}
	token := f.Open(t)
	_, mech, err := token.Create(t.Context(), ids[0])
	must(t, err)
	if f.ForeignKey != nil {
		f.ForeignKey(t, Ring, "01")
		ids = append(ids, "\x01")
	}
	day := time.Date(2031, 2, 3, 23, 59, 59, 0, time.FixedZone("", -3600))
	for _, id := range ids {
		before := keyOf(t, token, id)
		seed, blob := seal(t, token, id, mech, []byte("aad"))
		for _, step := range []struct {
			use     hsm.Use
			label   string
			state   kek.State
			date    string
			allowed bool
		}{
			{hsm.Disabled(), Ring + "/disabled", kek.Disabled, "", false},
			{hsm.DestroyAfter(day), Ring + "/destroy-after-2031-02-04", kek.Scheduled, "2031-02-04", false},
			{hsm.Disabled(), Ring + "/disabled", kek.Disabled, "", false},
			{hsm.Disabled(), Ring + "/disabled", kek.Disabled, "", false},
			{hsm.Enabled(), Ring, 0, "", true},
			{hsm.Enabled(), Ring, 0, "", true},
			{hsm.DestroyAfter(day), Ring + "/destroy-after-2031-02-04", kek.Scheduled, "2031-02-04", false},
			{hsm.Enabled(), Ring, 0, "", true},
		} {
			got, err := token.SetUse(t.Context(), keyOf(t, token, id), step.use)
			must(t, err)
			for from, k := range map[string]kek.Info{"answer": got, "another process": keyOf(t, f.Open(t), id)} {
				date := ""
				if !k.DestroyAfter.IsZero() {
					date = k.DestroyAfter.Format(time.DateOnly)
				}
				if k.Attributes.Label != step.label || k.State != step.state || date != step.date {
					t.Errorf("key %s, %s: label %q, state %v, date %q; want %q, %v, %q",
						id, from, k.Attributes.Label, k.State, date, step.label, step.state, step.date)
				}
				for name, v := range map[string]*bool{"encrypt": k.Attributes.Encrypt, "decrypt": k.Attributes.Decrypt} {
					if v == nil || *v != step.allowed {
						t.Errorf("key %s, %s: in state %q the right to %s is not %t", id, from, step.label, name, step.allowed)
					}
				}
			}
		}
		back, err := token.Unwrap(t.Context(), id, mech, blob, []byte("aad"))
		must(t, err)
		if string(back) != string(seed) {
			t.Error("what was wrapped before no longer opens")
		}
		if after := keyOf(t, token, id); after.KeyID() != before.KeyID() {
			t.Errorf("the key_id is %s and was %s", after.KeyID(), before.KeyID())
		}
	}
	if _, err := token.SetUse(t.Context(), kek.Info{ID: NewID(t)}, hsm.Disabled()); !errors.Is(err, kek.ErrUnknownKey) {
		t.Errorf("a key that is not there: %v, want ErrUnknownKey", err)
	}
	if f.ForeignKey == nil {
		return
	}
	one := keyOf(t, token, "\x01")
	f.ForeignKey(t, Ring, "01")
	if _, err := token.SetUse(t.Context(), one, hsm.Disabled()); !errors.Is(err, kek.ErrAmbiguous) {
		t.Errorf("two keys of one id: %v, want ErrAmbiguous", err)
	}
}

// A worker that met a key while nothing could compute its check value must not
// hold on to that: the key_id would change with the next restart.
func checkValueAfterEnable(t *testing.T, f *Fixture) {
	token := f.Open(t)
	id := NewID(t)
	made, _, err := token.Create(t.Context(), id)
	must(t, err)
	_, err = token.SetUse(t.Context(), keyOf(t, token, id), hsm.Disabled())
	must(t, err)
	late := f.Open(t) // as kekd that starts now, on another node
	keyOf(t, late, id)
	pid := late.WorkerPID()
	_, err = token.SetUse(t.Context(), keyOf(t, token, id), hsm.Enabled())
	must(t, err)
	if got := keyOf(t, late, id); got.KeyID() != made.KeyID() {
		t.Errorf("the key_id is %s, created as %s", got.KeyID(), made.KeyID())
	}
	if late.WorkerPID() != pid {
		t.Error("it took another worker")
	}
}

func destroy(t *testing.T, f *Fixture) {
	for _, m := range f.Mechanisms {
		token := f.Open(t, func(c *hsm.Config) { c.Mechanism = family(m) })
		keep, id := NewID(t), NewID(t)
		for _, id := range []kek.ID{keep, id} {
			_, _, err := token.Create(t.Context(), id)
			must(t, err)
		}
		seed, blob := seal(t, token, keep, m, []byte("aad"))
		pid := token.WorkerPID()
		seen := keyOf(t, token, id)
		must(t, token.Destroy(t.Context(), seen))
		for from, other := range map[string]*hsm.Token{"same": token, "another": f.Open(t)} {
			keys, err := other.Keys(t.Context())
			must(t, err)
			for _, k := range keys {
				if k.ID == id {
					t.Errorf("%s: the %s process still lists the key", m, from)
				}
			}
			if _, err := other.Wrap(t.Context(), id, m, secret.Bytes("seed"), []byte("aad")); !errors.Is(err, kek.ErrUnknownKey) {
				t.Errorf("%s: wrap in the %s process: %v, want ErrUnknownKey", m, from, err)
			}
		}
		if err := token.Destroy(t.Context(), seen); !errors.Is(err, kek.ErrUnknownKey) {
			t.Errorf("%s: destroyed again: %v, want ErrUnknownKey", m, err)
		}
		if token.WorkerPID() != pid {
			t.Errorf("%s: it cost the worker its life", m)
		}
		back, err := token.Unwrap(t.Context(), keep, m, blob, []byte("aad"))
		must(t, err)
		if string(back) != string(seed) {
			t.Errorf("%s: the other key no longer opens what it wrapped", m)
		}
	}
}

// unchanged fails the test unless a key is listed as it was before.
func unchanged(t *testing.T, f *Fixture, what string, before kek.Info) {
	t.Helper()
	if diff := cmp.Diff(before, keyOf(t, f.Open(t), before.ID), anyCheckValue()); diff != "" {
		t.Errorf("%s: the key was changed (-before +after):\n%s", what, diff)
	}
}

// anyCheckValue ignores check values: most tokens can't compute that of a disabled
// key, which a process that has met it before still knows.
func anyCheckValue() cmp.Option { return cmpopts.IgnoreFields(kek.Info{}, "CheckValue") }

func changeUnseen(t *testing.T, f *Fixture) {
	token := f.Open(t)
	id := NewID(t)
	_, _, err := token.Create(t.Context(), id)
	must(t, err)
	key := keyOf(t, token, id)
	yes, no := true, false
	for name, c := range map[string]struct {
		change func(k *kek.Info)
		use    hsm.Use
		want   string
	}{
		"label":            {func(k *kek.Info) { k.Attributes.Label = Ring + "/disabled" }, hsm.DestroyAfter(time.Now()), `"k8s-kek" now, not "k8s-kek/disabled"`},
		"no label":         {func(k *kek.Info) { k.Attributes.Label = "" }, hsm.Disabled(), `"k8s-kek" now, not ""`},
		"right to encrypt": {func(k *kek.Info) { k.Attributes.Encrypt = &no }, hsm.Disabled(), "CKA_ENCRYPT=true now, not false"},
		"both rights":      {func(k *kek.Info) { k.Attributes.Encrypt, k.Attributes.Decrypt = &no, &no }, hsm.Disabled(), "CKA_ENCRYPT=true and CKA_DECRYPT=true now, not false and false"},
		"check value":      {func(k *kek.Info) { k.CheckValue[1] ^= 1 }, hsm.Disabled(), "check value " + key.CheckValue.String() + " now"},
	} {
		stale := key
		c.change(&stale)
		_, err := token.SetUse(t.Context(), stale, c.use)
		for what, err := range map[string]error{"change": err, "destroy": token.Destroy(t.Context(), stale)} {
			if !errors.Is(err, kek.ErrChanged) || !strings.Contains(err.Error(), c.want) || !strings.Contains(hsm.Hint(err), "kekctl key list") {
				t.Errorf("%s by another %s: %v, hint %q; want ErrChanged with %q", what, name, err, hsm.Hint(err), c.want)
			}
		}
		unchanged(t, f, name, key)
	}
	// What neither side knows is not compared.
	unknown := key
	unknown.CheckValue, unknown.Attributes.Encrypt, unknown.Attributes.Decrypt = kek.CheckValue{}, nil, nil
	disabled, err := token.SetUse(t.Context(), unknown, hsm.Disabled())
	must(t, err)
	// Rights that are gone meanwhile.
	stale := disabled
	stale.Attributes.Encrypt, stale.Attributes.Decrypt = &yes, &yes
	if _, err := token.SetUse(t.Context(), stale, hsm.Enabled()); !errors.Is(err, kek.ErrChanged) {
		t.Errorf("rights that are gone: %v, want ErrChanged", err)
	}
	unchanged(t, f, "rights that are gone", disabled)
	must(t, token.Destroy(t.Context(), disabled))
}

func changeTooLate(t *testing.T, f *Fixture) {
	token := f.Open(t)
	id := NewID(t)
	_, _, err := token.Create(t.Context(), id)
	must(t, err)
	key := keyOf(t, token, id)
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Millisecond))
	defer cancel()
	_, err = token.SetUse(ctx, key, hsm.Disabled())
	for what, err := range map[string]error{"change": err, "destroy": token.Destroy(ctx, key)} {
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, kek.ErrUnavailable) || !strings.Contains(err.Error(), "too late to begin") {
			t.Errorf("%s: %v, want DeadlineExceeded without ErrUnavailable", what, err)
		}
	}
	unchanged(t, f, "too late", key)
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	key, err = token.SetUse(ctx, key, hsm.Disabled())
	must(t, err)
	must(t, token.Destroy(ctx, key))
}

// A change whose answer was lost is asked for again by what was seen before it.
func changeTwice(t *testing.T, f *Fixture) {
	token := f.Open(t)
	id := NewID(t)
	_, _, err := token.Create(t.Context(), id)
	must(t, err)
	for _, use := range []hsm.Use{hsm.Disabled(), hsm.DestroyAfter(time.Now()), hsm.Enabled()} {
		seen := keyOf(t, token, id)
		first, err := token.SetUse(t.Context(), seen, use)
		must(t, err)
		again, err := f.Open(t).SetUse(t.Context(), seen, use)
		must(t, err)
		if diff := cmp.Diff(first, again, anyCheckValue()); diff != "" {
			t.Errorf("made twice (-first +second):\n%s", diff)
		}
	}
}

// Of two administrators who saw the same key, and want different things, one is
// refused.
func changesConflict(t *testing.T, f *Fixture) {
	one, other := f.Open(t), f.Open(t)
	id := NewID(t)
	_, _, err := one.Create(t.Context(), id)
	must(t, err)
	seen := keyOf(t, other, id)
	scheduled, err := one.SetUse(t.Context(), seen, hsm.DestroyAfter(time.Now()))
	must(t, err)
	if _, err := other.SetUse(t.Context(), seen, hsm.Disabled()); !errors.Is(err, kek.ErrChanged) {
		t.Errorf("disable after schedule: %v, want ErrChanged", err)
	}
	unchanged(t, f, "disable after schedule", scheduled)
	enabled, err := one.SetUse(t.Context(), scheduled, hsm.Enabled()) // restored
	must(t, err)
	if err := other.Destroy(t.Context(), scheduled); !errors.Is(err, kek.ErrChanged) {
		t.Errorf("destroy after restore: %v, want ErrChanged", err)
	}
	unchanged(t, f, "destroy after restore", enabled)
}

// A KEK without its HMAC key, or the reverse, is what an interrupted destruction
// leaves.
func destroyHalfDone(t *testing.T, f *Fixture) {
	token := f.Open(t, func(c *hsm.Config) { c.Mechanism = "aes-cbc-hmac" })
	id := NewID(t)
	_, _, err := token.Create(t.Context(), id)
	must(t, err)
	seen, err := token.SetUse(t.Context(), keyOf(t, token, id), hsm.Disabled())
	must(t, err)
	// To a ring of this label the HMAC key does not belong.
	half := f.Open(t, func(c *hsm.Config) { c.Ring = Ring + "/disabled" })
	must(t, half.Destroy(t.Context(), keyOf(t, half, id)))
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Millisecond))
	defer cancel()
	rest := f.Open(t)
	keys, err := rest.Keys(t.Context())
	must(t, err)
	if len(keys) != 0 {
		t.Fatalf("%d keys are listed, want none", len(keys))
	}
	if err := rest.Destroy(late, seen); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("finished too late: %v, want DeadlineExceeded", err)
	}
	must(t, rest.Destroy(t.Context(), seen))
	if err := rest.Destroy(t.Context(), seen); !errors.Is(err, kek.ErrUnknownKey) {
		t.Errorf("nothing is left: %v, want ErrUnknownKey", err)
	}
}
