package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	zapobserver "go.uber.org/zap/zaptest/observer"

	"kekd/internal/kek"
)

// Each change of a key has one line in the log, with the verb of the command that
// makes it. What the first look finds is not a change.
func TestChangesOfKeysAreLogged(t *testing.T) {
	const none = kek.State(0)
	for _, c := range []struct {
		name     string
		from, to kek.State
		want     string
	}{
		{"create", none, kek.Pending, "info key added to the ring: gone to pending"},
		{"import", none, kek.Primary, "info key added to the ring: gone to primary"},
		{"activation", kek.Pending, kek.Primary, "info key became the primary: pending to primary"},
		{"successor", kek.Primary, kek.Retired, "info key retired: primary to retired"},
		{"disable", kek.Retired, kek.Disabled, "info key disabled: retired to disabled"},
		{"disable the primary", kek.Primary, kek.Disabled, "warn key disabled: primary to disabled"},
		{"enable", kek.Disabled, kek.Retired, "info key enabled: disabled to retired"},
		{"enable the primary", kek.Disabled, kek.Primary, "info key enabled: disabled to primary"},
		{"destroy", kek.Retired, kek.Scheduled, "info key scheduled for destruction: retired to scheduled-for-destruction"},
		{"destroy the primary", kek.Primary, kek.Scheduled, "warn key scheduled for destruction: primary to scheduled-for-destruction"},
		{"destroy a disabled key", kek.Disabled, kek.Scheduled, "info key scheduled for destruction: disabled to scheduled-for-destruction"},
		{"restore", kek.Scheduled, kek.Retired, "info key restored: scheduled-for-destruction to retired"},
		{"restore, disabled", kek.Scheduled, kek.Disabled, "info key disabled: scheduled-for-destruction to disabled"},
		{"purge", kek.Scheduled, none, "info key purged: scheduled-for-destruction to gone"},
		{"cancel", kek.Pending, none, "info key canceled: pending to gone"},
		{"lost primary", kek.Primary, none, "warn key gone from the token: primary to gone"},
		{"lost key", kek.Retired, none, "warn key gone from the token: retired to gone"},
		{"clock set back", kek.Retired, kek.Pending, "info key changed its state: retired to pending"},
		{"no change", kek.Retired, kek.Retired, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			other := kek.Info{Ring: "r", ID: "b", State: kek.Retired}
			key := kek.Info{Ring: "r", ID: "a"}
			ring := func(s kek.State) *kek.Ring {
				r := &kek.Ring{Label: "r", Keys: []kek.Info{other}}
				if key.State = s; s != none {
					r.Keys = append(r.Keys, key)
				}
				return r
			}
			core, logs := zapobserver.New(zap.DebugLevel)
			var states keyStates
			for _, s := range []kek.State{c.from, c.from, c.to, c.to} {
				logKeyChanges(zap.New(core), states.changes(ring(s)))
			}
			var got []string
			for _, l := range logs.All() {
				f := l.ContextMap()
				if f["key_id"] != key.KeyID() {
					t.Errorf("a line about %v", f["key_id"])
				}
				got = append(got, l.Level.String()+" "+l.Message+": "+f["from"].(string)+" to "+f["to"].(string))
			}
			var want []string
			if c.want != "" {
				want = []string{c.want}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
