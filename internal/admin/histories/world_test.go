package histories

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"kekd/hsm"
	"kekd/internal/admin/admintest"
	"kekd/internal/admin/evidence"
	"kekd/internal/admin/keychange"
	"kekd/internal/admin/newkey"
	"kekd/internal/admin/nodes"
	"kekd/internal/admin/revoke"
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
	// poll is how often kube-apiserver asks for the key_id, and keeps how long it writes
	// on when nobody answers.
	poll, keeps = time.Minute, 3 * time.Minute
)

// world is a token and all who use its keys, in a synctest bubble. Nobody works in it in
// the background: before anything is looked at, time is made up for.
type world struct {
	mu      sync.Mutex
	keys    []kek.Info
	nodes   []*node
	servers []*server
	// objects are those in etcd: each was acknowledged under its key.
	objects []object
	// givenUp are the keys that an administrator has revoked, or forced out of use.
	givenUp map[kek.ID]bool
	etcdOff bool
	// changing is how many administrators have their turn.
	changing int
	// wrong is what the token was made to do that no history allows; empty if nothing.
	wrong string
	lines []string
	begun time.Time
}

// object is what an API server has written.
type object struct {
	key kek.ID
	by  string
	at  time.Time
}

func (w *world) note(format string, args ...any) {
	w.lines = append(w.lines, fmt.Sprintf("%10s  ", time.Since(w.begun))+fmt.Sprintf(format, args...))
}

// node is a kekd, with real rotation semantics.
type node struct {
	w    *world
	name string
	// ahead is how far its clock is ahead of the true one.
	ahead offset
	// silent: kekctl cannot ask it. cut: it cannot reach the token.
	silent, cut bool

	published hsm.Published
	ring      *kek.Ring
	read      time.Time // true time, as are all below
	problem   string
	current   kek.Info // without an ID: it encrypts nothing
	lastUsed  map[kek.ID]time.Time
	recorded  time.Time // since when lastUsed is kept
}

// wipe has the node start over with an empty state directory.
func (n *node) wipe(at time.Time) {
	n.published, n.ring, n.read, n.problem, n.current = hsm.Published{}, nil, time.Time{}, "", kek.Info{}
	n.lastUsed, n.recorded = map[kek.ID]time.Time{}, at
	n.look(at)
}

// look is the node's look at the ring, at a moment that may have passed.
func (n *node) look(at time.Time) {
	if n.cut {
		n.use(at)
		return
	}
	ring, err := hsm.BuildRing(ringLabel, n.w.keys, hsm.RingOptions{Now: at.Add(n.ahead.get()), Published: n.published})
	n.use(at) // what it published until now
	n.ring, n.read, n.problem = ring, at, ""
	if k, ok := ring.Lookup(n.current.ID); !ok || !k.State.Decrypts() {
		n.current = kek.Info{}
	}
	primary, ok := ring.Primary()
	if err != nil || !ok {
		n.problem = fmt.Sprint(err)
		return
	}
	n.published, _ = n.published.Advance(primary)
	n.current = primary
	n.use(at)
}

func (n *node) use(at time.Time) {
	if n.current.ID != "" {
		n.lastUsed[n.current.ID] = at
	}
}

// server is the API server of a node.
type server struct {
	w      *world
	node   *node
	name   string
	silent bool
	// stuck: its calls of the plugin time out.
	stuck bool
	// asks: it asks the plugin when it is asked for its health.
	asks bool
	// status is the key that the plugin named last, and polled when.
	status kek.Info
	polled time.Time
	// seed is the key of the seed that it writes under, which follows after adopts: as
	// long as a write under the old one may be on its way.
	seed   kek.Info
	adopts time.Duration
	// valid is when the plugin named the seed's key last: the seed expires after that.
	valid time.Time
	// changed is when the plugin named another key.
	changed time.Time
}

func (s *server) poll(at time.Time) {
	if s.stuck || s.node.current.ID == "" {
		return
	}
	s.node.use(at)
	if s.status.ID != s.node.current.ID {
		s.adopt(at) // what it was told before
		s.changed = at
	}
	s.status, s.polled = s.node.current, at
	s.adopt(at)
	if s.seed.ID == s.status.ID {
		s.valid = at
	}
}

// adopt has the server write under the key that it was told of a while ago.
// Once it could not ask for longer than usual, no write is on its way.
func (s *server) adopt(at time.Time) {
	if s.seed.ID != s.status.ID && (at.Sub(s.changed) >= s.adopts || s.changed.Sub(s.valid) > poll || s.seed.ID == "") {
		s.seed, s.valid = s.status, s.changed // the plugin has not named it since
	}
}

// write stores an object, if the server can.
func (s *server) write() {
	now := time.Now()
	s.adopt(now)
	if s.seed.ID == "" || now.Sub(s.valid) > keeps {
		return
	}
	s.w.objects = append(s.w.objects, object{s.seed.ID, s.name, now})
}

// catchUp makes up for the time since it was called last. Nodes look every ten seconds,
// and API servers ask every minute, each at its own second.
func (w *world) catchUp(last *time.Time) {
	now := time.Now()
	from := *last
	const edge = 10 * time.Minute
	for at := from.Truncate(time.Second).Add(time.Second); !at.After(now); at = at.Add(time.Second) {
		if at.Sub(from) > edge && now.Sub(at) > edge {
			at = now.Add(-edge).Truncate(time.Second) // nothing happens in between
		}
		for i, n := range w.nodes {
			if (at.Unix()+int64(3*i))%10 == 0 {
				n.look(at)
			}
			if s := w.servers[i]; (at.Unix()+int64(17*i))%60 == 0 {
				s.poll(at)
			}
		}
	}
	*last = now
}

// create puts a key on the token, which may be the first.
func (w *world) create(id kek.ID) kek.Info {
	at, ok := id.Activation()
	if !ok {
		panic("a key without an activation")
	}
	k := kek.Info{Ring: ringLabel, ID: id, CheckValue: kek.CheckValue{1, 2, 3}, Activation: at, Attributes: kek.Attributes{Label: ringLabel}}
	w.keys = append(w.keys, k)
	w.note("key %s is created, to activate in %v", id, time.Until(at))
	return k
}

func (w *world) at(id kek.ID) int {
	return slices.IndexFunc(w.keys, func(k kek.Info) bool { return k.ID == id })
}

// lost returns an object that nobody can read any more, although nobody gave its key up.
func (w *world) lost() (object, bool) {
	for _, o := range w.objects {
		if i := w.at(o.key); !w.givenUp[o.key] && (i < 0 || w.keys[i].Attributes.Label != ringLabel) {
			return o, true
		}
	}
	return object{}, false
}

// administrator runs kekctl on a node's machine, by that machine's clock.
type administrator struct {
	w    *world
	last *time.Time
	node *node
	// thinks, queues and works are how long the prompt, the turn and the token take.
	thinks, queues, works time.Duration
	// meanwhile happens while the administrator thinks, if it is not nil and nobody has
	// a turn.
	meanwhile func()
}

func (a *administrator) clock() time.Time { return time.Now().Add(a.node.ahead.get()) }

// offset is a clock's, which may be set while somebody reads the clock.
type offset struct{ nanoseconds atomic.Int64 }

func (o *offset) get() time.Duration  { return time.Duration(o.nanoseconds.Load()) }
func (o *offset) set(d time.Duration) { o.nanoseconds.Store(int64(d)) }

// in is a call of somebody, with the world in order.
func (a *administrator) in(f func()) {
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	a.w.catchUp(a.last)
	f()
}

// Ring implements keychange.Token.
func (a *administrator) Ring(context.Context) (ring *kek.Ring, err error) {
	a.in(func() {
		if a.node.cut {
			err = kek.ErrUnavailable
			return
		}
		ring, _ = hsm.BuildRing(ringLabel, a.w.keys, hsm.RingOptions{Now: a.clock(), Published: a.node.published})
	})
	return ring, err
}

// change does something to a key that is as it was seen, unless it is too late.
func (a *administrator) change(ctx context.Context, seen kek.Info, do func(i int)) (err error) {
	if err := wait.Pause(ctx, a.works); err != nil {
		return err
	}
	a.in(func() {
		i := a.w.at(seen.ID)
		switch {
		case ctx.Err() != nil:
			err = context.Cause(ctx)
		case a.node.cut:
			err = kek.ErrUnavailable
		case i < 0:
			err = kek.ErrUnknownKey
		case a.w.keys[i].Attributes.Label != seen.Attributes.Label:
			err = kek.ErrChanged
		default:
			do(i)
		}
	})
	return err
}

// SetUse implements keychange.Token.
func (a *administrator) SetUse(ctx context.Context, seen kek.Info, use hsm.Use) (kek.Info, error) {
	err := a.change(ctx, seen, func(i int) {
		if is := a.w.keys[i].State; use == hsm.Disabled() && is != 0 {
			a.w.wrong = fmt.Sprintf("key %s was disabled while it was %s", seen.ID, is)
		}
		admintest.Put(&a.w.keys[i], use)
	})
	return seen, err
}

// Destroy implements keychange.Token.
func (a *administrator) Destroy(ctx context.Context, seen kek.Info) error {
	return a.change(ctx, seen, func(i int) {
		// By any clock that kekctl may go by, at its best.
		if k := a.w.keys[i]; k.State != kek.Scheduled && !k.Activation.After(time.Now().Add(-3*time.Minute)) {
			a.w.wrong = fmt.Sprintf("key %s was destroyed while it was in use", seen.ID)
		}
		a.w.keys = slices.Delete(a.w.keys, i, i+1)
	})
}

// Name implements newkey.Token.
func (a *administrator) Name(context.Context) (string, error) { return "the token", nil }

// View implements newkey.Token.
func (a *administrator) View(context.Context) (v newkey.View, err error) {
	a.in(func() {
		if a.node.cut {
			err = kek.ErrUnavailable
			return
		}
		v = newkey.View{Label: ringLabel, Keys: slices.Clone(a.w.keys)}
		v.Ring, v.Err = hsm.BuildRing(ringLabel, a.w.keys, hsm.RingOptions{Now: a.clock(), Published: a.node.published})
		if id := a.node.current.ID; id != "" {
			v.Published = []kek.ID{id}
		}
	})
	return v, err
}

// Try implements newkey.Token.
func (a *administrator) Try(_ context.Context, id kek.ID) (m kek.Mechanism, err error) {
	a.in(func() {
		if i := a.w.at(id); a.node.cut || i < 0 || a.w.keys[i].State != 0 {
			err = kek.ErrUnavailable
		}
	})
	return kek.GCMCallerIV, err
}

// Create implements revoke.Token.
func (a *administrator) Create(ctx context.Context, id kek.ID) (k kek.Info, m kek.Mechanism, err error) {
	if err := wait.Pause(ctx, a.works/10); err != nil {
		return k, m, err
	}
	a.in(func() {
		if a.node.cut {
			err = kek.ErrUnavailable
			return
		}
		k = a.w.create(id)
	})
	return k, kek.GCMCallerIV, err
}

// Disable implements revoke.Token.
func (a *administrator) Disable(ctx context.Context, seen kek.Info) error {
	_, err := a.SetUse(ctx, seen, hsm.Disabled())
	return err
}

// create has kekctl plan a key and make it.
func (a *administrator) create(ctx context.Context, plan newkey.Plan) error {
	_, err := newkey.Maker{
		Token: a, Plan: plan, What: "Creates a key", Confirm: func(string) error { return wait.Pause(ctx, a.thinks/10) },
		Create: a.Create, Timeout: 90 * time.Second, Clock: a.clock,
	}.Make(ctx)
	return err
}

// revoke has kekctl revoke a key.
func (a *administrator) revoke(ctx context.Context, id kek.ID) (revoke.Result, error) {
	c := revoke.Config{ID: id, Token: a, Refresh: refresh, Timeout: 90 * time.Second, Note: a.Note, Clock: a.clock}
	for _, n := range a.w.nodes {
		c.Nodes = append(c.Nodes, asked{n, a})
	}
	return revoke.Run(ctx, c)
}

// Do implements keychange.Trail.
func (a *administrator) Do(ctx context.Context, _, _, _ string, change func(context.Context) (string, error)) error {
	if err := wait.Pause(ctx, a.queues); err != nil {
		return err
	}
	a.in(func() { a.w.changing++ })
	_, err := change(ctx)
	a.in(func() { a.w.changing-- })
	return err
}

// Confirm implements keychange.Asker.
func (a *administrator) Confirm(ctx context.Context) error {
	err := wait.Pause(ctx, a.thinks/2)
	a.in(func() {
		// What happens between the last look and the token's answer is for no kekctl
		// to know.
		if a.meanwhile != nil && a.w.changing == 0 {
			a.meanwhile()
		}
	})
	if err == nil {
		err = wait.Pause(ctx, a.thinks/2)
	}
	return err
}

// Repeat implements keychange.Asker.
func (a *administrator) Repeat(ctx context.Context, _ string) error { return a.Confirm(ctx) }

// Note implements keychange.Asker.
func (a *administrator) Note(string) {}

// witnesses are all that there are.
func (a *administrator) witnesses(context.Context) evidence.Witnesses {
	e := evidence.Witnesses{Token: a, Etcd: etcd{a}, Refresh: refresh, Clock: a.clock}
	for i, n := range a.w.nodes {
		e.Nodes = append(e.Nodes, asked{n, a})
		e.APIServers = append(e.APIServers, askedServer{a.w.servers[i], a})
	}
	return e
}

// deps are what a change works with.
func (a *administrator) deps() keychange.Deps {
	return keychange.Deps{
		Token: a, Trail: a, Asker: a, Witnesses: a.witnesses,
		MinDestroyDelay: 24 * time.Hour, TokenTimeout: 90 * time.Second, Clock: a.clock,
	}
}

var errSilent = errors.New("no route to host")

// asked is a node as an administrator asks it.
type asked struct {
	n *node
	a *administrator
}

var _ nodes.Node = asked{}

// Name implements nodes.Node.
func (s asked) Name() string { return s.n.name }

// Ask implements nodes.Node.
func (s asked) Ask(context.Context) (status *httpapi.Status, ahead, uncertainty time.Duration, err error) {
	s.a.in(func() {
		n := s.n
		if n.silent {
			err = errSilent
			return
		}
		now := time.Now()
		n.look(now)
		status = &httpapi.Status{
			Time: now.Add(n.ahead.get()), Node: strings.Repeat(n.name, 32), Version: version.Info{Version: "v1.2.3"}, Refresh: httpapi.Duration(refresh),
			UseRecorded: n.recorded.Add(n.ahead.get()), RingProblem: n.problem,
		}
		if n.current.ID != "" {
			status.Health.KeyID = n.current.KeyID()
		}
		if n.ring != nil {
			status.KeyRing = httpapi.NewKeyRing(n.ring, n.read.Add(n.ahead.get()))
			for i := range status.KeyRing.Keys {
				k := &status.KeyRing.Keys[i]
				id, _ := kek.ParseID(k.ID)
				if at, ok := n.lastUsed[id]; ok {
					k.LastUsed = at.Add(n.ahead.get())
				}
			}
		}
		ahead = n.ahead.get() - s.a.node.ahead.get()
	})
	return status, ahead, 0, err
}

// askedServer is an API server as an administrator asks it.
type askedServer struct {
	s *server
	a *administrator
}

// Name implements evidence.APIServer.
func (s askedServer) Name() string { return s.s.name }

// KeyInUse implements evidence.APIServer.
func (s askedServer) KeyInUse(context.Context) (use cluster.KeyUse, err error) {
	s.a.in(func() {
		if s.s.silent {
			err = errSilent
			return
		}
		if s.s.asks {
			s.s.poll(time.Now())
		}
		if s.s.stuck || s.s.node.current.ID == "" {
			use.Problem = "kms-provider-0: the plugin does not answer"
		}
		if s.s.status.ID != "" {
			use.Providers = []cluster.ProviderUse{{Name: "kekd", Status: kek.KeyIDHash(s.s.status.KeyID()), StatusTime: s.s.polled}}
		}
	})
	return use, err
}

// etcd is the store as an administrator reads it.
type etcd struct{ a *administrator }

// Name implements evidence.Etcd.
func (e etcd) Name() string { return "https://10.0.0.1:2379" }

// Take implements evidence.Etcd.
func (e etcd) Take(context.Context, inventory.Options) (r *inventory.Report, err error) {
	e.a.in(func() {
		if e.a.w.etcdOff {
			err = errSilent
			return
		}
		counts := map[kek.ID]int64{}
		for _, o := range e.a.w.objects {
			counts[o.key]++
		}
		secrets := inventory.Resource{Resource: "secrets", Objects: int64(len(e.a.w.objects))}
		for id, n := range counts {
			secrets.Counts = append(secrets.Counts, inventory.Count{
				Standing: inventory.Standing{Class: inventory.KMSv2, Provider: "kekd", KeyID: kek.KeyID(ringLabel, id, kek.CheckValue{1, 2, 3})}, Objects: n,
			})
		}
		r = &inventory.Report{Objects: secrets.Objects, Resources: []inventory.Resource{secrets}}
	})
	return r, err
}
