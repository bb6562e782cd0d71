// Package histories draws histories of a control plane and of its administrators, and
// requires that nothing is lost that was acknowledged. The nodes, API servers and etcd
// are models; what decides is the code that kekctl runs.
package histories

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"kekd/internal/admin/keychange"
	"kekd/internal/admin/newkey"
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
		if made[v] < 3 {
			t.Errorf("the histories had %d times a %s that was made: this test shows little", made[v], v)
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
		n := &node{w: w, name: string(rune('a' + i)), lastUsed: map[kek.ID]time.Time{}, recorded: time.Now().Add(-24 * time.Hour)}
		w.nodes = append(w.nodes, n)
		w.servers = append(w.servers, &server{w: w, node: n, name: "apiserver " + n.name, asks: rapid.Bool().Draw(rt, "asks"), adopts: between(rt, 0, 19*time.Second, "adopts")})
	}
	first, err := kek.NewID(time.Now(), rand.Reader)
	if err != nil {
		rt.Fatal(err)
	}
	w.create(first)
	time.Sleep(2 * time.Minute)
	h := &history{world: w, rt: rt, last: &last, made: made}
	w.catchUp(&last)
	for range rapid.IntRange(5, 30).Draw(rt, "steps") {
		h.step(ctx)
		w.mu.Lock()
		w.catchUp(&last)
		o, lost := w.lost()
		w.mu.Unlock()
		switch {
		case lost:
			rt.Fatalf("LOST: what %s wrote %v after the beginning under %s\n%s", o.by, o.at.Sub(w.begun), o.key, strings.Join(w.lines, "\n"))
		case w.wrong != "":
			rt.Fatalf("WRONG: %s\n%s", w.wrong, strings.Join(w.lines, "\n"))
		}
	}
}

// history is a history that is being drawn.
type history struct {
	*world

	rt   *rapid.T
	last *time.Time
	made map[keychange.Verb]int
}

// events are what a step is drawn from; what is named twice happens twice as often.
var events = []string{
	"create", "commands", "commands", "retire", "retire", "retire", "hurry", "hurry", "straggle", "straggle", "withdraw", "withdraw", "goodbye", "goodbye", "wait", "days",
	"harm", "harm", "harm", "harm", "etcd", "heal", "heal", "rewrap", "revoke", "write",
}

// step is one event of a history.
func (h *history) step(ctx context.Context) {
	w, rt := h.world, h.rt
	n := w.nodes[rapid.IntRange(0, 2).Draw(rt, "node")]
	s := w.servers[rapid.IntRange(0, 2).Draw(rt, "server")]
	switch rapid.SampledFrom(events).Draw(rt, "event") {
	case "create":
		h.create(ctx, newkey.Delayed(between(rt, 0, 5*time.Minute, "activates in"), true, 0))
	case "retire": // a key takes over, and somebody is in a hurry to get rid of the old one
		h.mayHeal()
		h.create(ctx, newkey.AtOnce(0))
		h.sleep(0, 3*time.Minute)
		if rapid.IntRange(0, 3).Draw(rt, "rewrapped") > 0 {
			rewrap(w)
		}
		h.commands(ctx, 1, keychange.Disable)
		if rapid.Bool().Draw(rt, "by mistake") {
			h.commands(ctx, 1, keychange.Enable)
		}
	case "hurry": // the same as soon as every API server has heard of the new key
		w.heal()
		h.create(ctx, newkey.AtOnce(0))
		h.sleep(50*time.Second, 70*time.Second)
		rewrap(w)
		h.commands(ctx, 1, keychange.Disable)
	case "straggle": // the same, while an API server does not hear of the new key
		h.mayHeal()
		s.stuck = true
		w.note("%s cannot call its plugin", s.name)
		h.create(ctx, newkey.AtOnce(0))
		h.sleep(80*time.Second, 2*time.Minute)
		rewrap(w)
		h.commands(ctx, 1, keychange.Disable)
	case "withdraw": // a key is cancelled late, and a node may be ahead
		h.mayHeal()
		if rapid.Bool().Draw(rt, "a node is ahead") {
			n.ahead.set(between(rt, 0, 3*time.Minute, "ahead"))
			w.note("the clock of %s is %v ahead", n.name, n.ahead.get())
		}
		h.create(ctx, newkey.Delayed(between(rt, 16*time.Second, 4*time.Minute, "activates in"), true, 0))
		h.commands(ctx, 0, keychange.Cancel)
	case "goodbye": // a key's whole way out; somebody may want it back
		w.heal()
		h.create(ctx, newkey.AtOnce(0))
		h.sleep(90*time.Second, 5*time.Minute)
		rewrap(w)
		h.commands(ctx, 1, rapid.SampledFrom([][]keychange.Verb{{keychange.Destroy}, {keychange.Destroy, keychange.Disable}}).Draw(rt, "out")...)
		h.sleep(72*time.Hour, 100*time.Hour)
		h.commands(ctx, 1, rapid.SampledFrom([][]keychange.Verb{{keychange.Purge}, {keychange.Purge, keychange.Restore}}).Draw(rt, "gone")...)
	case "commands":
		h.commands(ctx, rapid.SampledFrom([]int{0, 0, 1, 1, 1, 2, 3, 5}).Draw(rt, "key"))
	case "wait":
		h.sleep(time.Second, 4*time.Minute)
	case "days":
		h.sleep(24*time.Hour, 72*time.Hour)
	case "rewrap":
		rewrap(w)
	case "revoke":
		h.revoke(ctx)
	case "write":
		s.write()
	case "etcd":
		w.etcdOff = !w.etcdOff
	case "heal":
		w.heal()
	default:
		h.harm(n, s)
	}
}

// harm breaks something of a node or an API server, or puts it right.
func (h *history) harm(n *node, s *server) {
	w, rt := h.world, h.rt
	switch rapid.SampledFrom([]string{"clock", "cut", "silent", "server", "stuck", "wipe"}).Draw(rt, "harm") {
	case "clock":
		n.ahead.set(between(rt, -3*time.Minute, 3*time.Minute, "ahead"))
		w.note("the clock of %s is %v ahead", n.name, n.ahead.get())
	case "cut":
		n.cut = !n.cut
		w.note("node %s is cut off from the token: %t", n.name, n.cut)
	case "silent":
		n.silent = !n.silent
		w.note("node %s is silent: %t", n.name, n.silent)
	case "server":
		s.silent = !s.silent
		w.note("%s is silent: %t", s.name, s.silent)
	case "stuck":
		s.stuck = !s.stuck
		w.note("%s cannot call its plugin: %t", s.name, s.stuck)
	case "wipe":
		n.wipe(time.Now())
		w.note("the state of %s is wiped", n.name)
	}
}

// mayHeal puts everything right, or not.
func (h *history) mayHeal() {
	if rapid.Bool().Draw(h.rt, "all is well before") {
		h.heal()
	}
}

func (w *world) heal() {
	for i, n := range w.nodes {
		n.ahead.set(0)
		n.cut, n.silent = false, false
		w.servers[i].silent, w.servers[i].stuck = false, false
	}
	w.etcdOff = false
	w.note("all is well")
}

func (h *history) sleep(from, to time.Duration) {
	time.Sleep(between(h.rt, from, to, "for"))
	h.catchUp(h.last)
	h.note("time passes")
}

// administrator draws one who works on a node.
func (h *history) administrator() *administrator {
	rt := h.rt
	a := &administrator{
		w: h.world, last: h.last, node: h.nodes[rapid.IntRange(0, 2).Draw(rt, "on")],
		thinks: between(rt, 0, 90*time.Second, "thinks"), queues: between(rt, 0, 15*time.Second, "queues"), works: between(rt, 0, 40*time.Second, "works"),
	}
	if rapid.Bool().Draw(rt, "in a hurry") {
		a.thinks, a.queues = 0, 0
	}
	return a
}

// create has an administrator make a key.
func (h *history) create(ctx context.Context, plan newkey.Plan) {
	if err := h.administrator().create(ctx, plan); err != nil {
		h.note("no key is created: %v", err)
	}
}

// rewrap has the API server that writes under the newest key bring every object under it.
func rewrap(w *world) {
	var newest *server
	for _, s := range w.servers {
		s.adopt(time.Now())
		able := !s.stuck && s.seed.ID != "" && s.seed.ID == s.status.ID && time.Since(s.valid) <= keeps
		if able && (newest == nil || s.seed.Activation.After(newest.seed.Activation)) {
			newest = s
		}
	}
	if newest == nil {
		return
	}
	for i, o := range w.objects {
		if j := w.at(o.key); j >= 0 && w.keys[j].Attributes.Label == ringLabel {
			w.objects[i] = object{newest.seed.ID, newest.name, time.Now()}
		}
	}
	w.note("every object is under %s", newest.seed.ID)
}

// revoke gives a key up: a compromise leaves no choice. A success means that every node
// encrypts under another key.
func (h *history) revoke(ctx context.Context) {
	w := h.world
	if len(w.keys) == 0 {
		return
	}
	id := w.keys[max(0, len(w.keys)-1-rapid.SampledFrom([]int{0, 0, 1, 2}).Draw(h.rt, "key"))].ID
	w.givenUp[id] = true
	result, err := h.administrator().revoke(ctx, id)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.catchUp(h.last)
	w.note("revoke %s: %s; the successor is %q", id, outcome(err), result.Successor)
	for _, n := range w.nodes {
		if err == nil && (n.current.ID == "" || n.current.ID == id) {
			w.wrong = fmt.Sprintf("key %s is revoked with success, and %s encrypts under %q", id, n.name, n.current.ID)
		}
	}
}

// meanwhile draws what happens while an administrator thinks; mostly nothing.
func (h *history) meanwhile(id kek.ID) func() {
	w := h.world
	switch n := w.nodes[rapid.IntRange(0, 2).Draw(h.rt, "node")]; rapid.IntRange(0, 5).Draw(h.rt, "meanwhile") {
	case 0:
		return func() {
			n.ahead.set(-3 * time.Minute)
			n.wipe(time.Now())
			w.note("meanwhile the state of %s is wiped, and its clock is three minutes behind", n.name)
		}
	case 1:
		return func() {
			if i := w.at(id); i >= 0 && w.keys[i].Attributes.Label == ringLabel && !w.keys[i].Activation.After(time.Now()) && !w.givenUp[id] {
				w.objects = append(w.objects, object{id, "a backup", time.Now()})
				w.note("meanwhile an object under %s is restored from a backup", id)
			}
		}
	}
	return nil
}

// commands has one or two administrators change keys, both at once, while the API
// servers write. The first changes the key so many before the newest. Each takes his
// verb, if one is given; else it is drawn.
func (h *history) commands(ctx context.Context, key int, verbs ...keychange.Verb) {
	w, rt := h.world, h.rt
	if len(w.keys) == 0 {
		return
	}
	var runs []func() // begun once all is drawn, which reads the world
	for i := range max(len(verbs), rapid.IntRange(1, 2).Draw(rt, "administrators")) {
		if i >= max(1, len(verbs)) && rapid.Bool().Draw(rt, "another key") {
			key++
		}
		a := h.administrator()
		target := w.keys[max(0, len(w.keys)-1-key)]
		id := target.ID
		a.meanwhile = h.meanwhile(id)
		c := keychange.Change{
			Find:  func(r *kek.Ring) (kek.Info, error) { return keychange.Find(r, id.String()) },
			Days:  rapid.IntRange(1, 3).Draw(rt, "days"),
			Force: rapid.IntRange(0, 19).Draw(rt, "force") == 19,
			Wait:  between(rt, 0, 5*time.Minute, "waits"),
		}
		if c.Verb = verb(rt, target, a); i < len(verbs) {
			c.Verb = verbs[i]
		}
		if rapid.Bool().Draw(rt, "at once") {
			c.Wait = 0
		}
		begins := between(rt, 0, 20*time.Second, "begins")
		runs = append(runs, func() {
			time.Sleep(begins)
			result, err := keychange.Run(ctx, a.deps(), c)
			w.mu.Lock()
			defer w.mu.Unlock()
			if err == nil {
				h.made[c.Verb]++
			}
			if len(result.Overruled) > 0 || c.Force {
				w.givenUp[id] = true
			}
			w.note("%s %s on %s, force %t: %s", c.Verb, id, a.node.name, c.Force, outcome(err))
		})
	}
	var work sync.WaitGroup
	for _, run := range runs {
		work.Go(run)
	}
	h.writeUntil(&work)
}

// writeUntil has the API servers write until the administrators are done.
func (h *history) writeUntil(work *sync.WaitGroup) {
	w := h.world
	pace := rapid.SampledFrom([]time.Duration{time.Second, 7 * time.Second, 25 * time.Second, time.Minute}).Draw(h.rt, "writes every")
	done := make(chan struct{})
	go func() { work.Wait(); close(done) }()
	for {
		select {
		case <-done:
			return
		case <-time.After(pace):
			w.mu.Lock()
			w.catchUp(h.last)
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
