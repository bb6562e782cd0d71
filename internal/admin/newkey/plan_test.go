package newkey_test

import (
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kekd/internal/admin/newkey"
	"kekd/internal/kek"
)

// keyAt makes a key that activates at a time.
func keyAt(t interface{ Fatal(...any) }, at time.Time, state kek.State) kek.Info {
	id, err := kek.NewID(at, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	at, _ = id.Activation()
	return kek.Info{Ring: "r", ID: id, Activation: at, State: state}
}

func TestDelayed(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 1, 12, 0, 0, 5e8, time.UTC)
	old := keyAt(t, now.Add(-time.Hour), kek.Primary)
	pending, gone := keyAt(t, now.Add(time.Hour), kek.Pending), keyAt(t, now.Add(time.Minute), kek.Primary)
	foreign := kek.Info{Ring: "r", ID: "\x01", State: kek.Primary}
	const given = time.Second
	for _, tc := range []struct {
		name      string
		keys      []kek.Info
		err       error // of the ring
		published kek.ID
		least     time.Duration
		delay     time.Duration // 0: not given
		want      time.Duration // from now
		refused   string
	}{
		{"the first key", nil, kek.ErrNoKey, "", 0, 0, 0, ""},
		{"beside a primary", []kek.Info{old}, nil, "", 0, 0, newkey.DefaultDelay, ""},
		{"beside a primary of another tool", []kek.Info{foreign}, nil, "", 0, 0, newkey.DefaultDelay, ""},
		{"nobody knows the primary", []kek.Info{foreign}, kek.ErrAmbiguous, "", 0, 0, newkey.DefaultDelay, ""},
		{"as given", []kek.Info{old}, nil, "", 0, given, given, ""},
		{"never the newest", []kek.Info{old, pending}, nil, "", 0, given, 0, "key " + pending.ID.String() + " activates at"},
		{"shorter than the policy", []kek.Info{old}, nil, "", time.Minute, given, 0, "--activate-in: must be at least 1m0s (keyRing.policy.minActivationDelay), got 1s"},
		{"a policy longer than the default", []kek.Info{old}, nil, "", time.Hour, 0, time.Hour, ""},
		{"a policy and no primary", nil, kek.ErrNoKey, "", time.Hour, 0, 0, ""},
		{"what was published is gone", []kek.Info{old}, kek.ErrRevoked, gone.ID, 0, given, 0, "key " + gone.ID.String() + " activates at"},
		{"what was published is there", []kek.Info{old}, nil, old.ID, 0, given, given, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			v := newkey.View{Label: "r", Err: tc.err, Keys: tc.keys, Published: []kek.ID{tc.published}}
			if !errors.Is(tc.err, kek.ErrAmbiguous) {
				v.Ring = &kek.Ring{Label: "r", Keys: tc.keys}
				if errors.Is(tc.err, kek.ErrRevoked) {
					v.Ring = &kek.Ring{Label: "r"}
				}
			}
			at, err := newkey.Delayed(tc.delay, tc.delay != 0, tc.least)(v, now)
			switch {
			case tc.refused != "":
				if err == nil || !strings.Contains(err.Error(), tc.refused) {
					t.Errorf("%v, %v; want a refusal with %q", at, err, tc.refused)
				}
			case err != nil || !at.Equal(now.Add(tc.want)):
				t.Errorf("%v, %v; want %s from now", at, err, tc.want)
			}
		})
	}
}

func TestAtOnce(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 1, 12, 0, 0, 5e8, time.UTC)
	old, twin := keyAt(t, now.Add(-time.Hour), kek.Primary), keyAt(t, now, kek.Primary)
	pending, soon := keyAt(t, now.Add(time.Hour), kek.Pending), keyAt(t, now.Add(time.Second), kek.Pending)
	for _, tc := range []struct {
		name      string
		keys      []kek.Info
		err       error
		published kek.ID
		least     time.Duration
		want      time.Time
		refused   string
	}{
		{"beside a primary", []kek.Info{old}, nil, "", 0, now, ""},
		{"this second is taken", []kek.Info{old, twin}, nil, "", 0, twin.Activation.Add(time.Second), ""},
		{"a key is pending", []kek.Info{old, pending}, nil, "", 0, time.Time{}, "remove it with kekctl key cancel " + pending.ID.String()},
		{"a key is about to activate", []kek.Info{old, soon}, nil, "", 0, soon.Activation.Add(time.Second), ""},
		{"a clock that published a key was ahead", []kek.Info{old}, kek.ErrRevoked, pending.ID, 0, time.Time{}, "its successor must activate later"},
		{"nothing is there", nil, kek.ErrNoKey, "", 0, time.Time{}, "there is nothing to rotate"},
		{"the policy demands a delay", []kek.Info{old}, nil, "", time.Minute, time.Time{}, "--now: keyRing.policy.minActivationDelay demands 1m0s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			v := newkey.View{Label: "r", Ring: &kek.Ring{Label: "r", Keys: tc.keys}, Err: tc.err, Keys: tc.keys, Published: []kek.ID{tc.published}}
			at, err := newkey.AtOnce(tc.least)(v, now)
			switch {
			case tc.refused != "":
				if err == nil || !strings.Contains(err.Error(), tc.refused) {
					t.Errorf("%v, %v; want a refusal with %q", at, err, tc.refused)
				}
			case err != nil || !at.Equal(tc.want):
				t.Errorf("%v, %v; want %v", at, err, tc.want)
			}
		})
	}
}

// TestSuccessorIsNewest: whatever is on the ring and was published, a key that is
// planned activates in a later second than all of that.
func TestSuccessorIsNewest(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1_800_000_000, int64(rapid.IntRange(0, 999_999_999).Draw(t, "ns")))
		v := newkey.View{Label: "r", Ring: &kek.Ring{Label: "r"}}
		var latest time.Time
		for range rapid.IntRange(0, 6).Draw(t, "keys") {
			k := keyAt(t, now.Add(time.Duration(rapid.IntRange(-5, 600).Draw(t, "activation"))*time.Second), kek.Primary)
			if rapid.Bool().Draw(t, "gone") {
				v.Published = append(v.Published, k.ID)
			} else {
				v.Keys = append(v.Keys, k)
				v.Ring.Keys = v.Keys
			}
			if k.Activation.After(latest) {
				latest = k.Activation
			}
		}
		delay := time.Duration(rapid.IntRange(0, 900).Draw(t, "delay")) * time.Second
		for name, plan := range map[string]newkey.Plan{
			"delayed": newkey.Delayed(delay, true, 0), "default": newkey.Delayed(0, false, 0), "at once": newkey.AtOnce(0),
		} {
			if at, err := plan(v, now); err == nil && !at.Truncate(time.Second).After(latest) {
				t.Fatalf("%s: %v, although a key activates at %v", name, at, latest)
			}
		}
	})
}
