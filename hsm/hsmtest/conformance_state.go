package hsmtest

import (
	"errors"
	"testing"
	"time"

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
