package keychange

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"kekd/hsm"
	"kekd/internal/admin/admintest"
	"kekd/internal/kek"
)

var verbs = []Verb{Cancel, Disable, Enable, Destroy, Restore, Purge}

func TestMade(t *testing.T) {
	for _, v := range verbs {
		synctest.Test(t, func(t *testing.T) {
			w, k := newWorld(t, v)
			before := w.state(k.ID)
			result, err := Run(t.Context(), w.deps(), change(v, k.ID))
			if err != nil || !w.done(v, k.ID) {
				t.Fatalf("%s: %v, done: %t", v, err, w.done(v, k.ID))
			}
			if result.Before.String() != before || result.Key.ID != k.ID || result.Done(refresh) == "" {
				t.Errorf("%s: %+v", v, result)
			}
			if len(w.trail.records) != 2 || !strings.HasPrefix(w.trail.records[0], "begun "+string(v)+" "+k.KeyID()) {
				t.Errorf("%s: on record are %q", v, w.trail.records)
			}
			if v.guarded() != strings.Contains(w.trail.records[1], "evidence unused; token: unused: holds it as") {
				t.Errorf("%s: on record are %q", v, w.trail.records)
			}
		})
	}
}

// What was true before the prompt may not be true behind it, behind the wait for
// another kekctl, or when the token gets to it.
func TestChecksAgain(t *testing.T) {
	activates := func(_ *world, _ kek.Info) { time.Sleep(6 * time.Minute) }
	tests := []struct {
		name string
		verb Verb
		// while happens during the prompt, and in another run while it waits for its turn.
		while func(w *world, k kek.Info)
		want  string
	}{
		{"the key activates", Cancel, activates, "changed key ID meanwhile: it was pending and is primary now"},
		{"a node uses it", Cancel, func(w *world, k kek.Info) { w.nodes[0].publishes = k.ID }, "node cp-1: used: encrypts under it"},
		{"the activation is near", Cancel, func(*world, kek.Info) { time.Sleep(5*time.Minute - 15*time.Second) }, "may encrypt under it in 15s by its clock"},
		{"restored by another", Purge, func(w *world, _ kek.Info) { admintest.Put(&w.keys[0], hsm.Enabled()) }, "it was scheduled-for-destruction and is retired now"},
		{"scheduled by another", Disable, func(w *world, _ kek.Info) { admintest.Put(&w.keys[0], hsm.DestroyAfter(time.Now().Add(48*time.Hour))) }, "it was retired and is scheduled-for-destruction now"},
		{"disabled by another", Destroy, func(w *world, _ kek.Info) { admintest.Put(&w.keys[0], hsm.Disabled()) }, "it was retired and is disabled now"},
		{"enabled by another", Enable, func(w *world, _ kek.Info) { admintest.Put(&w.keys[0], hsm.Enabled()) }, "it was disabled and is retired now"},
		{"scheduled for another day", Restore, func(w *world, _ kek.Info) { admintest.Put(&w.keys[0], hsm.DestroyAfter(time.Now().Add(48*time.Hour))) }, "it was scheduled-for-destruction and is scheduled-for-destruction now"},
		{"purged by another", Restore, func(w *world, _ kek.Info) { w.keys = w.keys[1:] }, "is gone now"},
		{"purged by another", Purge, func(w *world, _ kek.Info) { w.keys = w.keys[1:] }, "token: unknown: no longer holds the key"},
		{"an object comes back", Purge, func(w *world, k kek.Info) { w.etcd.secrets[k.KeyID()] = 1 }, "1 objects are encrypted under it"},
		{"a node joins, and is behind", Destroy, func(w *world, k kek.Info) {
			w.nodes = append(w.nodes, &node{w: w, name: "cp-3", id: "c", publishes: k.ID})
			w.servers = append(w.servers, &server{w: w, name: "https://10.0.0.3:6443"})
		}, "node cp-3: used: encrypts under it"},
		{"a node goes down", Destroy, func(w *world, _ kek.Info) { w.nodes[0].down = true }, "could not be asked: connection refused"},
		{"etcd goes down", Disable, func(w *world, _ kek.Info) { w.etcd.err = errors.New("gone") }, "could not be asked: gone"},
	}
	for _, tt := range tests {
		for _, when := range []string{"prompt", "lock"} {
			t.Run(tt.name+" at the "+when, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w, k := newWorld(t, tt.verb)
					var left []kek.Info
					w.before = func(what string) {
						if what == when {
							tt.while(w, k)
							left = append(left, w.keys...)
						}
					}
					_, err := Run(t.Context(), w.deps(), change(tt.verb, k.ID))
					if err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), k.ID.String(), "ID"), tt.want) {
						t.Errorf("%v, want %q", err, tt.want)
					}
					if diff := cmp.Diff(left, w.keys); diff != "" {
						t.Errorf("the token was changed (-want +got):\n%s", diff)
					}
				})
			})
		}
	}
}

// The token does not begin after the moment from which a node may use the key.
func TestNotAfterTheActivation(t *testing.T) {
	for _, ahead := range []time.Duration{0, 3 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			w, k := newWorld(t, Cancel)
			w.nodes[0].ahead, w.slow = ahead, time.Hour
			begun := time.Now()
			_, err := Run(t.Context(), w.deps(), change(Cancel, k.ID))
			if err == nil || w.done(Cancel, k.ID) {
				t.Fatalf("%v, done: %t", err, w.done(Cancel, k.ID))
			}
			if took, most := time.Since(begun), 5*time.Minute-refresh-5*time.Second-ahead; took > min(most, 90*time.Second) {
				t.Errorf("a clock %v ahead: the token may begin until %v, want %v", ahead, took, most)
			}
		})
	}
}

// Two administrators decide on what both have seen; one of them succeeds.
func TestTwoAdministrators(t *testing.T) {
	for _, second := range []Verb{Disable, Destroy} {
		synctest.Test(t, func(t *testing.T) {
			w, k := newWorld(t, Destroy)
			w.before = func(what string) {
				if what == "change" { // on another machine: no lock keeps them apart
					w.before = nil
					admintest.Put(&w.keys[0], hsm.DestroyAfter(time.Now().Add(48*time.Hour)))
				}
			}
			_, err := Run(t.Context(), w.deps(), change(second, k.ID))
			if !errors.Is(err, kek.ErrChanged) || !strings.Contains(err.Error(), "somebody else changed key "+k.ID.String()+" meanwhile: it was retired and is scheduled-for-destruction now") {
				t.Errorf("%s: %v", second, err)
			}
		})
	}
}

// Success is what the token shows, whatever it said.
func TestReadsBack(t *testing.T) {
	for _, v := range verbs {
		synctest.Test(t, func(t *testing.T) {
			w, k := newWorld(t, v)
			w.deaf = true
			_, err := Run(t.Context(), w.deps(), change(v, k.ID))
			if err == nil || !strings.Contains(err.Error(), "the token took the change, and yet shows key") {
				t.Errorf("%s on a deaf token: %v", v, err)
			}
		})
		synctest.Test(t, func(t *testing.T) {
			w, k := newWorld(t, v)
			w.broken = kek.ErrUnavailable
			_, err := Run(t.Context(), w.deps(), change(v, k.ID))
			if !errors.Is(err, kek.ErrUnavailable) || !strings.Contains(err.Error(), "the token shows key "+k.ID.String()+" as ") {
				t.Errorf("%s whose answer was lost: %v", v, err)
			}
		})
	}
}

// An interruption before any of the questions ends the command, and what it says of
// the key is true.
func TestInterrupted(t *testing.T) {
	for _, v := range verbs {
		t.Run(string(v), func(t *testing.T) {
			calls := 0
			synctest.Test(t, func(t *testing.T) {
				w, k := newWorld(t, v)
				w.before = counting(&calls, func() {})
				if _, err := Run(t.Context(), w.deps(), change(v, k.ID)); err != nil {
					t.Fatal(err)
				}
			})
			if least := map[bool]int{false: 6, true: 12}[v.guarded()]; calls < least {
				t.Fatalf("%d questions, want %d at least", calls, least)
			}
			for n := 1; n <= calls; n++ {
				synctest.Test(t, func(t *testing.T) { interruptAt(t, v, n) })
			}
		})
	}
}

// counting counts calls, one at a time: nodes and API servers are asked at once.
func counting(calls *int, each func()) func(string) {
	turn := make(chan struct{}, 1)
	return func(string) {
		turn <- struct{}{}
		*calls++
		each()
		<-turn
	}
}

func interruptAt(t *testing.T, v Verb, n int) {
	w, k := newWorld(t, v)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	calls := 0
	w.before = counting(&calls, func() {
		if calls == n {
			cancel()
		}
	})
	_, err := Run(ctx, w.deps(), change(v, k.ID))
	done := w.done(v, k.ID)
	switch {
	case err == nil && !done:
		t.Errorf("interrupted at question %d, it says that it is done", n)
	case errors.Is(err, ErrInterrupted) && done:
		t.Errorf("interrupted at question %d, it says that nothing was done", n)
	case err != nil && !errors.Is(err, ErrInterrupted) && !strings.Contains(err.Error(), "the token shows key"):
		t.Errorf("interrupted at question %d: %v", n, err)
	}
	// Once more, it ends as if nothing had happened.
	w.before = nil
	if done {
		return
	}
	if _, err := Run(t.Context(), w.deps(), change(v, k.ID)); err != nil {
		t.Errorf("run again after an interruption at question %d: %v", n, err)
	}
}

// A caller may have less time than the witnesses take. That is not an interruption.
func TestTooSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k := newWorld(t, Cancel)
		w.before = func(what string) {
			if what == "token" {
				time.Sleep(2 * time.Second)
			}
		}
		ctx, cancel := context.WithTimeoutCause(t.Context(), 3*time.Second, errors.New("it took longer than 3s"))
		defer cancel()
		_, err := Run(ctx, w.deps(), change(Cancel, k.ID))
		if err == nil || err.Error() != "it took longer than 3s; nothing was done" || w.done(Cancel, k.ID) {
			t.Errorf("%v, done: %t", err, w.done(Cancel, k.ID))
		}
	})
}

func TestForce(t *testing.T) {
	forced := func(v Verb, k kek.Info) Change {
		c := change(v, k.ID)
		c.Force = true
		return c
	}
	for _, v := range []Verb{Cancel, Disable, Destroy, Purge} {
		synctest.Test(t, func(t *testing.T) {
			w, k := newWorld(t, v)
			w.nodes[1].down = true
			result, err := Run(t.Context(), w.deps(), forced(v, k))
			if err != nil || !w.done(v, k.ID) || len(result.Overruled) != 1 || w.asker.repeated != k.ID.String() {
				t.Errorf("%s: %v, overruled %v, asked for %q", v, err, result.Overruled, w.asker.repeated)
			}
			if want := "kekctl: warning: --force overrules:\n  node cp-2: unknown: could not be asked: connection refused"; w.asker.notes[0] != want {
				t.Errorf("%s says %q, want %q", v, w.asker.notes[0], want)
			}
			if !strings.Contains(w.trail.records[1], "evidence unknown; node cp-2: unknown: could not be asked") {
				t.Errorf("%s: on record are %q", v, w.trail.records)
			}
		})
		synctest.Test(t, func(t *testing.T) {
			w, k := newWorld(t, v)
			w.nodes[1].down = true
			w.asker.refuses = errors.New("another text")
			if _, err := Run(t.Context(), w.deps(), forced(v, k)); !errors.Is(err, w.asker.refuses) || w.done(v, k.ID) {
				t.Errorf("%s, the id not repeated: %v", v, err)
			}
		})
		synctest.Test(t, func(t *testing.T) {
			w, k := newWorld(t, v)
			w.nodes[1].down = true
			w.before = func(what string) {
				if what == "lock" {
					w.etcd.secrets[k.KeyID()] = 3
				}
			}
			if _, err := Run(t.Context(), w.deps(), forced(v, k)); err == nil || !strings.Contains(err.Error(), "3 objects") || w.done(v, k.ID) {
				t.Errorf("%s, a witness that was not overruled: %v", v, err)
			}
		})
		synctest.Test(t, func(t *testing.T) {
			w, k := newWorld(t, v)
			if _, err := Run(t.Context(), w.deps(), forced(v, k)); err != nil || w.asker.repeated != "" {
				t.Errorf("%s with nobody to overrule: %v, asked for %q", v, err, w.asker.repeated)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // a state is not a witness
		w, _ := newWorld(t, Destroy)
		primary := w.keys[1]
		for _, v := range []Verb{Cancel, Disable, Destroy, Purge} {
			if _, err := Run(t.Context(), w.deps(), forced(v, primary)); err == nil {
				t.Errorf("--force %s the primary", v)
			}
		}
	})
}

func TestDestroyDelay(t *testing.T) {
	tests := []struct {
		days  int
		least time.Duration
		force bool
		want  string
	}{
		{0, 24 * time.Hour, false, "--after: must be at least 1d (keyRing.policy.minDestroyDelay), got 0d"},
		{0, 24 * time.Hour, true, "2000-01-01"},
		{1, 24 * time.Hour, false, "2000-01-03"}, // at 15:00, one day is not over before
		{6, 7*24*time.Hour - time.Hour, false, "--after: must be at least 7d (keyRing.policy.minDestroyDelay), got 6d"},
		{30, 24 * time.Hour, false, "2000-02-01"},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(15 * time.Hour)
			w, k := newWorld(t, Destroy)
			d, c := w.deps(), change(Destroy, k.ID)
			d.MinDestroyDelay, c.Days, c.Force = tt.least, tt.days, tt.force
			result, err := Run(t.Context(), d, c)
			got := result.Key.DestroyAfter.Format(time.DateOnly)
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("--after %dd: %s, want %s", tt.days, got, tt.want)
			}
			if asked := w.asker.repeated != ""; asked != (tt.days == 0 && tt.force) {
				t.Errorf("--after %dd asks for the id again: %t", tt.days, asked)
			}
		})
	}
}

// While it waits it says on whom; it gives up when the time is over.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k := newWorld(t, Disable)
		w.nodes[1].switched = time.Now()
		c := change(Disable, k.ID)
		c.Wait = 30 * time.Second
		begun := time.Now()
		_, err := Run(t.Context(), w.deps(), c)
		var refused *Refused
		if !errors.As(err, &refused) || time.Since(begun) != c.Wait {
			t.Errorf("%v after %v, want a refusal after %v", err, time.Since(begun), c.Wait)
		}
		if want := "--wait 1m0s waits for that; --force " + k.ID.String() + " overrules these witnesses"; refused.Hint() != want {
			t.Errorf("the hint is %q, want %q", refused.Hint(), want)
		}
		if want := fmt.Sprintf("Waits up to 30s until key %s is out of use everywhere:\n  node cp-2: used: last used it 0s ago; it must be out of use for 1m20s, so for 1m20s more", k.ID); w.asker.notes[0] != want {
			t.Errorf("it says %q, want %q", w.asker.notes[0], want)
		}
	})
}

func TestFind(t *testing.T) {
	k := kek.Info{Ring: ringLabel, ID: "\x01\x02", CheckValue: kek.CheckValue{0xab, 0xcd, 0xef}}
	unknown := kek.Info{Ring: ringLabel, ID: "\x03"}
	ring := &kek.Ring{Label: ringLabel, Keys: []kek.Info{k, unknown}}
	for name, want := range map[string]string{
		"0102":                  "",
		"k8s-kek/0102/abcdef":   "",
		"k8s-kek/0102/ABCDEF":   "",
		"k8s-kek/0102/000000":   "key 0102 has the check value abcdef, and the key_id says 000000",
		"k8s-kek/0102/abcde0":   "key 0102 has the check value abcdef, and the key_id says abcde0",
		"k8s-kek/03/000000":     "",
		"k8s-kek/03/abcdef":     "key 03 has the check value 000000, and the key_id says abcdef",
		"other/0102/abcdef":     `of the ring "other", and keyRing.label is "k8s-kek"`,
		"04":                    `the ring "k8s-kek" has no key 04`,
		"first":                 `key id "first" is not hexadecimal`,
		"k8s-kek/0102/":         `is not hexadecimal`,
		"k8s-kek/0102/abcdef/x": `of the ring "k8s-kek/0102"`,
	} {
		got, err := Find(ring, name)
		switch {
		case want == "" && (err != nil || got.ID == ""):
			t.Errorf("Find(%q) = %v, %v", name, got, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("Find(%q): %v, want %q", name, err, want)
		}
	}
}
