package main

import (
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"kekd/hsm"
	"kekd/internal/config"
	"kekd/internal/kek"
)

// keyAt makes a key that activates at a time.
func keyAt(t *testing.T, at time.Time, state kek.State) kek.Info {
	t.Helper()
	id, err := kek.NewID(at, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	at, _ = id.Activation()
	return kek.Info{Ring: "r", ID: id, Activation: at, State: state}
}

func TestPlanActivation(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 1, 12, 0, 0, 5e8, time.UTC)
	old, twin := keyAt(t, now.Add(-time.Hour), kek.Primary), keyAt(t, now, kek.Primary)
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
		{"beside a primary", []kek.Info{old}, nil, "", 0, 0, defaultDelay, ""},
		{"beside a primary of another tool", []kek.Info{foreign}, nil, "", 0, 0, defaultDelay, ""},
		{"nobody knows the primary", []kek.Info{foreign}, kek.ErrAmbiguous, "", 0, 0, defaultDelay, ""},
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
			s := &session{cfg: config.Default(), published: hsm.Published{Last: tc.published}}
			s.cfg.KeyRing.Label, s.cfg.KeyRing.Policy.MinActivationDelay = "r", tc.least
			var ring *kek.Ring
			if !errors.Is(tc.err, kek.ErrAmbiguous) {
				ring = &kek.Ring{Label: "r", Keys: tc.keys}
				if errors.Is(tc.err, kek.ErrRevoked) {
					ring = &kek.Ring{Label: "r"}
				}
			}
			at, err := s.planActivation(ring, tc.err, s.withPublished(tc.keys), tc.delay, tc.delay != 0, now)
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
	if at := planNow([]kek.Info{old, pending}, now); !at.Equal(now) {
		t.Errorf("now beside others: %v", at)
	}
	second := keyAt(t, now.Add(time.Second), kek.Pending)
	if at := planNow([]kek.Info{second, twin}, now); !at.Equal(now.Add(2 * time.Second)) {
		t.Errorf("now, where this second and the next are taken: %v", at)
	}
}

func TestParseDays(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{"0d": 0, "30d": 30, "3650d": 3650} {
		if got, err := parseDays(text); err != nil || got != want {
			t.Errorf("parseDays(%q) = %d, %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "d", "30", "30h", "-1d", "3651d", "1.5d", " 1d"} {
		if got, err := parseDays(bad); err == nil {
			t.Errorf("parseDays(%q) = %d, want an error", bad, got)
		}
	}
}
