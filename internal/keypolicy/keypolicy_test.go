package keypolicy_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kekd/internal/config"
	"kekd/internal/kek"
	"kekd/internal/keypolicy"
)

const day = 24 * time.Hour

func now() time.Time { return time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC) }

// key makes a key of the ring that was activated so long ago; never for 0.
func key(name string, state kek.State, age time.Duration, at kek.Attributes) kek.Info {
	k := kek.Info{Ring: "r", ID: kek.ID(name), State: state, Attributes: at}
	if age != 0 {
		k.Activation = now().Add(-age)
	}
	return k
}

func TestEvaluate(t *testing.T) {
	t.Parallel()
	good := kek.Attributes{Sensitive: new(true), Extractable: new(false), AlwaysSensitive: new(true), NeverExtractable: new(true), Local: new(true)}
	imported := good
	imported.Local, imported.AlwaysSensitive, imported.NeverExtractable = new(false), new(false), new(false)
	silent := kek.Attributes{Sensitive: new(true)}
	all := []config.Attribute{config.Sensitive, config.NonExtractable, config.AlwaysSensitive, config.NeverExtractable, config.Local}
	for _, tc := range []struct {
		name   string
		policy config.KeyPolicy
		keys   []kek.Info
		want   []string
	}{
		{"no policy", config.KeyPolicy{}, []kek.Info{key("a", kek.Primary, 4000*day, kek.Attributes{})}, nil},
		{"an empty ring", config.KeyPolicy{MaxAge: day, Require: all}, nil, nil},
		{"young and good", config.KeyPolicy{MaxAge: 90 * day, Require: all}, []kek.Info{key("a", kek.Primary, 89*day, good)}, nil},
		{"old to the second", config.KeyPolicy{MaxAge: 90 * day}, []kek.Info{key("a", kek.Primary, 90*day, good)},
			[]string{"max-age: key r/61/000000 has been the primary for 90 days, longer than 90 days (keyRing.policy.maxAge)"}},
		{"only the primary ages", config.KeyPolicy{MaxAge: day}, []kek.Info{key("a", kek.Retired, 900*day, good), key("b", kek.Primary, time.Hour, good)}, nil},
		{"made by another tool", config.KeyPolicy{MaxAge: 90 * day}, []kek.Info{key("a", kek.Primary, 0, good)},
			[]string{"max-age: key r/61/000000 was made by another tool, so nobody knows whether it is older than 90 days (keyRing.policy.maxAge)"}},
		{"imported", config.KeyPolicy{Require: all}, []kek.Info{key("a", kek.Primary, day, imported)}, []string{
			"attributes: key r/61/000000 is not always-sensitive (keyRing.policy.require)",
			"attributes: key r/61/000000 is not never-extractable (keyRing.policy.require)",
			"attributes: key r/61/000000 is not local (keyRing.policy.require)",
		}},
		{"extractable", config.KeyPolicy{Require: all[1:2]}, []kek.Info{key("a", kek.Retired, day, kek.Attributes{Extractable: new(true)})},
			[]string{"attributes: key r/61/000000 is not non-extractable (keyRing.policy.require)"}},
		{"a token that does not tell", config.KeyPolicy{Require: all[:2]}, []kek.Info{key("a", kek.Pending, -day, silent)},
			[]string{"attributes: key r/61/000000 is required to be non-extractable (keyRing.policy.require), which the token does not tell"}},
		{"out of use", config.KeyPolicy{Require: all}, []kek.Info{key("a", kek.Disabled, day, imported), key("b", kek.Scheduled, day, imported)}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, v := range keypolicy.Evaluate(&kek.Ring{Label: "r", Keys: tc.keys}, tc.policy, now()) {
				if v.Remedy == "" {
					t.Errorf("%s: no remedy", v)
				}
				got = append(got, string(v.Rule)+": "+v.String())
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestDue(t *testing.T) {
	t.Parallel()
	ring := &kek.Ring{Label: "r", Keys: []kek.Info{key("a", kek.Primary, 10*day, kek.Attributes{})}}
	for _, tc := range []struct {
		name   string
		ring   *kek.Ring
		maxAge time.Duration
		due    bool
		why    string
	}{
		{"no limit", ring, 0, false, "has no limit of age (keyRing.policy.maxAge)"},
		{"not yet", ring, 30 * day, false, "has been the primary for 10 days of 30 days (keyRing.policy.maxAge)"},
		{"now", ring, 9 * day, true, "has been the primary for 10 days, longer than 9 days (keyRing.policy.maxAge)"},
		{"hours", ring, 36 * time.Hour, true, "has been the primary for 10 days, longer than 36h0m0s (keyRing.policy.maxAge)"},
		{"no primary", &kek.Ring{}, day, false, "there is no primary"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			due, why := keypolicy.Due(tc.ring, config.KeyPolicy{MaxAge: tc.maxAge}, now())
			if due != tc.due || why != tc.why {
				t.Errorf("%t, %q; want %t, %q", due, why, tc.due, tc.why)
			}
		})
	}
}
