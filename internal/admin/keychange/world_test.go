package keychange

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"kekd/hsm"
	"kekd/internal/admin/admintest"
	"kekd/internal/admin/evidence"
	"kekd/internal/admin/wait"
	"kekd/internal/cluster"
	"kekd/internal/httpapi"
	"kekd/internal/inventory"
	"kekd/internal/kek"
	"kekd/internal/version"
)

const (
	ringLabel = "k8s-kek"
	refresh   = 10 * time.Second
)

// world is a token and all who use its keys. It lives in a synctest bubble.
type world struct {
	keys    []kek.Info
	nodes   []*node
	servers []*server
	etcd    *etcd

	asker *asker
	trail *trail
	// before, if not nil, is called before each question to anybody.
	before func(what string)
	// slow is how long the token takes for a change. It begins one only in time.
	slow time.Duration
	// deaf: the token says that it did what it did not.
	deaf bool
	// broken: it does it, and fails.
	broken error
	// away: it cannot be asked.
	away error
}

func (w *world) asked(ctx context.Context, what string) error {
	if w.before != nil {
		w.before(what)
	}
	return ctx.Err()
}

// newKey puts a key on the token that activates in so long.
func (w *world) newKey(t *testing.T, in time.Duration) kek.Info {
	t.Helper()
	at := time.Now().Add(in)
	id, err := kek.NewID(at, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k := kek.Info{Ring: ringLabel, ID: id, CheckValue: kek.CheckValue{1, 2, byte(len(w.keys))}, Activation: at, Attributes: kek.Attributes{Label: ringLabel}}
	w.keys = append(w.keys, k)
	return k
}

func (w *world) at(id kek.ID) int {
	return slices.IndexFunc(w.keys, func(k kek.Info) bool { return k.ID == id })
}

// ring is the ring by a clock.
func (w *world) ring(now time.Time) *kek.Ring {
	ring, _ := hsm.BuildRing(ringLabel, w.keys, hsm.RingOptions{Now: now})
	return ring
}

// state is a key's by our clock; empty if it is gone.
func (w *world) state(id kek.ID) string {
	k, ok := w.ring(time.Now()).Lookup(id)
	if !ok {
		return ""
	}
	return k.State.String()
}

// Ring implements Token.
func (w *world) Ring(ctx context.Context) (*kek.Ring, error) {
	if err := w.asked(ctx, "token"); err != nil {
		return nil, err
	}
	return w.ring(time.Now()), w.away
}

// change does something to a key on condition that it is as it was seen.
func (w *world) change(ctx context.Context, seen kek.Info, do func(i int)) error {
	if err := w.asked(ctx, "change"); err != nil {
		return err
	}
	select {
	case <-time.After(w.slow):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	i := w.at(seen.ID)
	switch {
	case i < 0:
		return kek.ErrUnknownKey
	case w.keys[i].Attributes.Label != seen.Attributes.Label:
		return kek.ErrChanged
	case !w.deaf:
		do(i)
	}
	return w.broken
}

// SetUse implements Token.
func (w *world) SetUse(ctx context.Context, seen kek.Info, use hsm.Use) (kek.Info, error) {
	err := w.change(ctx, seen, func(i int) { admintest.Put(&w.keys[i], use) })
	return seen, err
}

// Destroy implements Token.
func (w *world) Destroy(ctx context.Context, seen kek.Info) error {
	return w.change(ctx, seen, func(i int) { w.keys = slices.Delete(w.keys, i, i+1) })
}

// node is a kekd.
type node struct {
	w    *world
	name string
	// id is the state directory's.
	id string
	// ahead is how far its clock is ahead of ours.
	ahead time.Duration
	down  bool
	old   bool // of a version without a record of use
	// stale is how long ago it read the ring.
	stale time.Duration
	// switched is how long ago, at the start, it left the keys before the primary.
	switched time.Time
	// publishes overrides what it publishes.
	publishes kek.ID
}

// Name implements evidence.Node.
func (n *node) Name() string { return n.name }

// Ask implements evidence.Node.
func (n *node) Ask(ctx context.Context) (*httpapi.Status, time.Duration, time.Duration, error) {
	if err := n.w.asked(ctx, "node"); err != nil {
		return nil, 0, 0, err
	}
	if n.down {
		return nil, 0, 0, errors.New("connection refused")
	}
	now := time.Now().Add(n.ahead)
	s := &httpapi.Status{Time: now, Node: n.id, Version: version.Info{Version: "v1.2.3"}, Refresh: httpapi.Duration(refresh)}
	ring := n.w.ring(now)
	s.KeyRing = httpapi.NewKeyRing(ring, now.Add(-n.stale))
	primary, _ := ring.Primary()
	if n.publishes != "" {
		primary, _ = ring.Lookup(n.publishes)
	}
	if primary.ID != "" {
		s.Health.KeyID = primary.KeyID()
	}
	if n.old {
		return s, n.ahead, 0, nil
	}
	s.UseRecorded = now.Add(-24 * time.Hour)
	for i := range s.KeyRing.Keys {
		k := &s.KeyRing.Keys[i]
		switch {
		case k.ID == primary.ID.String():
			k.LastUsed = now
		case k.State != kek.Pending.String():
			k.LastUsed = n.switched.Add(n.ahead)
		}
	}
	return s, n.ahead, 0, nil
}

// server is a kube-apiserver.
type server struct {
	w    *world
	name string
	err  error
	// problem is what its health endpoint says.
	problem string
	// behind, if set, is the key that it uses until the time.
	behind kek.ID
	until  time.Time
	// plain: another provider than kekd.
	plain bool
}

// Name implements evidence.APIServer.
func (s *server) Name() string { return s.name }

// KeyInUse implements evidence.APIServer.
func (s *server) KeyInUse(ctx context.Context) (cluster.KeyUse, error) {
	if err := s.w.asked(ctx, "apiserver"); err != nil {
		return cluster.KeyUse{}, err
	}
	if s.err != nil {
		return cluster.KeyUse{}, s.err
	}
	ring := s.w.ring(time.Now())
	k, _ := ring.Primary()
	if s.behind != "" && time.Now().Before(s.until) {
		k, _ = ring.Lookup(s.behind)
	}
	hash := kek.KeyIDHash(k.KeyID())
	if s.plain {
		hash = kek.KeyIDHash("another plugin's")
	}
	return cluster.KeyUse{Problem: s.problem, Providers: []cluster.ProviderUse{{Name: "kekd", Status: hash}}}, nil
}

// etcd holds so many secrets under each key_id.
type etcd struct {
	w       *world
	secrets map[string]int64
	err     error
}

// Name implements evidence.Etcd.
func (e *etcd) Name() string { return "https://10.0.0.1:2379" }

// Take implements evidence.Etcd.
func (e *etcd) Take(ctx context.Context, _ inventory.Options) (*inventory.Report, error) {
	if err := e.w.asked(ctx, "etcd"); err != nil {
		return nil, err
	}
	if e.err != nil {
		return nil, e.err
	}
	r := &inventory.Report{Objects: 100}
	secrets := inventory.Resource{Resource: "secrets"}
	for id, n := range e.secrets {
		secrets.Counts = append(secrets.Counts, inventory.Count{Standing: inventory.Standing{Class: inventory.KMSv2, Provider: "kekd", KeyID: id}, Objects: n})
	}
	r.Resources = []inventory.Resource{secrets}
	return r, nil
}

// asker is the administrator: he agrees, after a while.
type asker struct {
	w        *world
	notes    []string
	thinks   time.Duration
	repeated string
	refuses  error
}

func (a *asker) answer(ctx context.Context) error {
	if err := a.w.asked(ctx, "prompt"); err != nil {
		return err
	}
	if err := wait.Pause(ctx, a.thinks); err != nil {
		return err
	}
	return a.refuses
}

// Confirm implements Asker.
func (a *asker) Confirm(ctx context.Context) error { return a.answer(ctx) }

// Repeat implements Asker.
func (a *asker) Repeat(ctx context.Context, text string) error {
	a.repeated = text
	return a.answer(ctx)
}

// Note implements Asker.
func (a *asker) Note(text string) { a.notes = append(a.notes, text) }

// trail lets a change through after a while.
type trail struct {
	w       *world
	waits   time.Duration
	records []string
	// inside: a change has its turn.
	inside bool
}

// Do implements Trail.
func (r *trail) Do(ctx context.Context, operation, keyID, detail string, change func(context.Context) (string, error)) error {
	if err := r.w.asked(ctx, "lock"); err != nil {
		return err
	}
	if err := wait.Pause(ctx, r.waits); err != nil {
		return err
	}
	r.inside = true
	defer func() { r.inside = false }()
	r.records = append(r.records, fmt.Sprintf("begun %s %s %s", operation, keyID, detail))
	detail, err := change(ctx)
	r.records = append(r.records, fmt.Sprintf("%v %s %s %s", err, operation, keyID, detail))
	return err
}

// newWorld has two nodes, two API servers and one etcd, and a ring in which the key
// that the verb is for is one that nobody uses. It returns that key.
func newWorld(t *testing.T, v Verb) (*world, kek.Info) {
	t.Helper()
	w := &world{}
	w.asker, w.trail, w.etcd = &asker{w: w}, &trail{w: w}, &etcd{w: w, secrets: map[string]int64{}}
	for i := range 2 {
		w.nodes = append(w.nodes, &node{w: w, name: fmt.Sprintf("cp-%d", i+1), id: strings.Repeat(fmt.Sprint(i+1), 32), switched: time.Now().Add(-10 * time.Minute)})
		w.servers = append(w.servers, &server{w: w, name: fmt.Sprintf("https://10.0.0.%d:6443", i+1)})
	}
	old := w.newKey(t, -time.Hour)
	if v == Cancel {
		w.etcd.secrets[old.KeyID()] = 100
		return w, w.newKey(t, 5*time.Minute)
	}
	primary := w.newKey(t, -10*time.Minute)
	w.etcd.secrets[primary.KeyID()] = 100
	switch v {
	case Enable:
		admintest.Put(&w.keys[0], hsm.Disabled())
	case Restore, Purge:
		admintest.Put(&w.keys[0], hsm.DestroyAfter(time.Now().Add(-24*time.Hour)))
	}
	return w, old
}

func (w *world) deps() Deps {
	return Deps{
		Token: w, Trail: w.trail, Asker: w.asker,
		Witnesses: func(context.Context) evidence.Witnesses {
			e := evidence.Witnesses{Etcd: w.etcd, Refresh: refresh}
			for _, n := range w.nodes {
				e.Nodes = append(e.Nodes, n)
			}
			for _, s := range w.servers {
				e.APIServers = append(e.APIServers, s)
			}
			return e
		},
		MinDestroyDelay: 24 * time.Hour, TokenTimeout: 90 * time.Second, Clock: time.Now,
	}
}

func change(v Verb, id kek.ID) Change {
	return Change{Verb: v, Days: 30, Find: func(r *kek.Ring) (kek.Info, error) { return Find(r, id.String()) }}
}

// done reports whether the change was made.
func (w *world) done(v Verb, id kek.ID) bool {
	switch v {
	case Cancel, Purge:
		return w.at(id) < 0
	case Disable:
		return w.state(id) == "disabled"
	case Destroy:
		return w.state(id) == "scheduled-for-destruction"
	}
	return w.state(id) == "retired"
}
