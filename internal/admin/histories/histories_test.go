// Package histories draws histories of a control plane and of its administrators, and
// requires that nothing is lost that was acknowledged. The nodes, API servers and etcd
// are models; what decides is the code that kekctl runs.
package histories

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"kekd/hsm"
	"kekd/internal/admin/keychange"
	"kekd/internal/kek"
)

// TestNothingAcknowledgedIsLost: no history of commands, outages, wrong clocks and API
// servers that lag ends with an object that nobody can read, unless an administrator has
// overruled a witness or revoked its key.
func TestNothingAcknowledgedIsLost(t *testing.T) {
	made := map[keychange.Verb]int{}
	rapid.Check(t, func(rt *rapid.T) {
		var caught any
		synctest.Test(t, func(t *testing.T) {
			defer func() { caught = recover() }() // rapid wants it on its own goroutine
			run(t.Context(), rt, made)
		})
		if caught != nil {
			panic(caught)
		}
	})
	for _, v := range []keychange.Verb{keychange.Cancel, keychange.Disable, keychange.Enable, keychange.Destroy, keychange.Restore, keychange.Purge} {
		if made[v] == 0 {
			t.Errorf("no history had a %s that was made: this test shows little", v)
		}
	}
	t.Logf("made: %v", made)
}

// between draws a duration of whole seconds.
func between(rt *rapid.T, from, to time.Duration, label string) time.Duration {
	return time.Duration(rapid.IntRange(int(from/time.Second), int(to/time.Second)).Draw(rt, label)) * time.Second
}

func run(ctx context.Context, rt *rapid.T, made map[keychange.Verb]int) {
	w := &world{givenUp: map[kek.ID]bool{}, begun: time.Now()}
	last := time.Now()
	for i := range 3 {
		n := &node{w: w, name: string(rune('a' + i)), lastUsed: map[kek.ID]time.Time{}}
		w.nodes = append(w.nodes, n)
		w.servers = append(w.servers, &server{w: w, node: n, name: "apiserver " + n.name, asks: rapid.Bool().Draw(rt, "asks"), adopts: between(rt, 0, 30*time.Second, "adopts")})
	}
	w.create(0)
	time.Sleep(2 * time.Minute)
	w.catchUp(&last)
	for range rapid.IntRange(5, 40).Draw(rt, "steps") {
		step(ctx, rt, w, &last, made)
		w.mu.Lock()
		w.catchUp(&last)
		o, lost := w.lost()
		w.mu.Unlock()
		if lost {
			rt.Fatalf("LOST: what %s wrote %v after the beginning under %s\n%s", o.by, o.at.Sub(w.begun), o.key, strings.Join(w.lines, "\n"))
		}
	}
}

// step is one event of a history.
func step(ctx context.Context, rt *rapid.T, w *world, last *time.Time, made map[keychange.Verb]int) {
	n := w.nodes[rapid.IntRange(0, 2).Draw(rt, "node")]
	s := w.servers[rapid.IntRange(0, 2).Draw(rt, "server")]
	switch rapid.SampledFrom([]string{"create", "commands", "commands", "commands", "retire", "retire", "withdraw", "wait", "wait", "days", "days", "clock", "cut", "silent", "server", "etcd", "heal", "rewrap", "rewrap", "revoke", "write"}).Draw(rt, "event") {
	case "create":
		w.create(between(rt, 0, 5*time.Minute, "activates in"))
	case "retire": // a key takes over, and somebody is in a hurry to get rid of the old one
		w.create(0)
		time.Sleep(between(rt, 0, 2*time.Minute, "for"))
		w.catchUp(last)
		rewrap(w)
		commands(ctx, rt, w, last, made)
	case "withdraw": // a key is cancelled late
		w.create(between(rt, 16*time.Second, 2*time.Minute, "activates in"))
		commands(ctx, rt, w, last, made)
	case "commands":
		commands(ctx, rt, w, last, made)
	case "wait":
		time.Sleep(between(rt, 1*time.Second, 4*time.Minute, "for"))
		w.note("time passes")
	case "days":
		time.Sleep(between(rt, 24*time.Hour, 72*time.Hour, "for"))
		w.note("days pass")
	case "clock":
		n.ahead = between(rt, -3*time.Minute, 3*time.Minute, "ahead")
		w.note("the clock of %s is %v ahead", n.name, n.ahead)
	case "cut":
		n.cut = !n.cut
		w.note("node %s is cut off from the token: %t", n.name, n.cut)
	case "silent":
		n.silent = !n.silent
		w.note("node %s is silent: %t", n.name, n.silent)
	case "server":
		s.silent = !s.silent
		w.note("%s is silent: %t", s.name, s.silent)
	case "etcd":
		w.etcdOff = !w.etcdOff
	case "heal":
		for i, n := range w.nodes {
			n.ahead, n.cut, n.silent, w.servers[i].silent = 0, false, false, false
		}
		w.etcdOff = false
		w.note("all is well")
	case "rewrap":
		rewrap(w)
	case "revoke":
		revoke(rt, w)
	case "write":
		s.write()
	}
}

// rewrap has an API server that can write bring every object under its key.
func rewrap(w *world) {
	for _, s := range w.servers {
		if s.adopt(time.Now()); s.seed.ID == "" || s.seed.ID != s.status.ID || time.Since(s.polled) > keeps {
			continue
		}
		for i, o := range w.objects {
			if j := w.at(o.key); j >= 0 && w.keys[j].Attributes.Label == ringLabel {
				w.objects[i] = object{s.seed.ID, s.name, time.Now()}
			}
		}
		w.note("every object is under %s", s.seed.ID)
		return
	}
}

// revoke gives a key up: a compromise leaves no choice.
func revoke(rt *rapid.T, w *world) {
	i := rapid.IntRange(0, len(w.keys)-1).Draw(rt, "key")
	if rapid.IntRange(0, 3).Draw(rt, "rarely") > 0 {
		return
	}
	w.use(i, hsm.Disabled())
	w.givenUp[w.keys[i].ID] = true
	w.note("key %s is revoked", w.keys[i].ID)
	w.create(0)
}

// commands has one or two administrators change keys, both at once, while the API
// servers write.
func commands(ctx context.Context, rt *rapid.T, w *world, last *time.Time, made map[keychange.Verb]int) {
	var work sync.WaitGroup
	for range rapid.IntRange(1, 2).Draw(rt, "administrators") {
		a := &administrator{
			w: w, last: last, node: w.nodes[rapid.IntRange(0, 2).Draw(rt, "on")],
			thinks: between(rt, 0, 90*time.Second, "thinks"), queues: between(rt, 0, 15*time.Second, "queues"), works: between(rt, 0, 40*time.Second, "works"),
		}
		// The newest keys are those that are in use, and about to be.
		i := max(0, len(w.keys)-1-rapid.SampledFrom([]int{0, 0, 1, 1, 1, 2, 3, 5}).Draw(rt, "key"))
		id := w.keys[i].ID
		c := keychange.Change{
			Verb:  verb(rt, w.keys[i], a),
			Find:  func(r *kek.Ring) (kek.Info, error) { return keychange.Find(r, id.String()) },
			Days:  rapid.IntRange(1, 3).Draw(rt, "days"),
			Force: rapid.IntRange(0, 19).Draw(rt, "force") == 0,
			Wait:  between(rt, 0, 5*time.Minute, "waits"),
		}
		if rapid.Bool().Draw(rt, "at once") {
			c.Wait = 0
		}
		begins := between(rt, 0, 20*time.Second, "begins")
		work.Go(func() {
			time.Sleep(begins)
			result, err := keychange.Run(ctx, a.deps(), c)
			w.mu.Lock()
			defer w.mu.Unlock()
			if err == nil {
				made[c.Verb]++
			}
			if len(result.Overruled) > 0 || c.Force {
				w.givenUp[id] = true
			}
			w.note("%s %s on %s, force %t: %s", c.Verb, id, a.node.name, c.Force, outcome(err))
		})
	}
	pace := rapid.SampledFrom([]time.Duration{time.Second, 7 * time.Second, 25 * time.Second, time.Minute}).Draw(rt, "writes every")
	done := make(chan struct{})
	go func() { work.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(pace):
			w.mu.Lock()
			w.catchUp(last)
			for _, s := range w.servers {
				s.write()
			}
			w.mu.Unlock()
		}
	}
}

// verb draws a change that suits the key by the administrator's clock, mostly.
func verb(rt *rapid.T, k kek.Info, a *administrator) keychange.Verb {
	verbs := []keychange.Verb{keychange.Disable, keychange.Destroy}
	switch {
	case k.State == kek.Disabled:
		verbs = []keychange.Verb{keychange.Enable, keychange.Destroy}
	case k.State == kek.Scheduled:
		verbs = []keychange.Verb{keychange.Restore, keychange.Purge, keychange.Purge}
	case k.Activation.After(a.clock()):
		verbs = []keychange.Verb{keychange.Cancel}
	}
	return rapid.SampledFrom(append(verbs, keychange.Cancel)).Draw(rt, "verb")
}

func outcome(err error) string {
	if err == nil {
		return "made"
	}
	return fmt.Sprintf("not made: %v", err)
}
