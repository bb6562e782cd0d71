// Package admintest is a cluster in memory for the tests of kekctl's workflows: a token,
// nodes with clocks of their own, API servers that lag, and objects in etcd. Run it
// in a bubble of testing/synctest.
package admintest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"kekd/hsm"
	"kekd/internal/admin/newkey"
	"kekd/internal/cluster"
	"kekd/internal/health"
	"kekd/internal/httpapi"
	"kekd/internal/kek"
)

// Label is the ring's label.
const Label = "r"

// Refresh is every node's keyRing.refresh.
const Refresh = 10 * time.Second

// ErrDead is what a killed administrator's operations end with.
var ErrDead = errors.New("the process was killed")

// World is a cluster. Fields are set before or between runs.
type World struct {
	tb testing.TB

	mu sync.Mutex
	// keys are on the token, in the order of their creation.
	keys   []kek.Info
	broken map[kek.ID]bool
	state  map[string][]byte
	// operations counts what the administrator's process has asked for.
	operations int
	objects    map[kek.ID]int64

	Nodes   []*Node
	Servers []*Server
	// TokenAway: the administrator's machine does not reach the token.
	TokenAway bool
	// KillAt ends the administrator's process in this operation, counted from 1, which
	// takes effect if KillAfter; 0 never.
	KillAt    int
	KillAfter bool
	// LoseAnswer is an operation that takes effect and fails.
	LoseAnswer string
	// Hook runs before each of the administrator's operations, one at a time. It may
	// change the world's fields, but not call its methods.
	Hook func(name string)
}

// New makes a world with one key that has been the primary for an hour, and has
// objects under it.
func New(tb testing.TB, nodes int) *World {
	w := &World{tb: tb, broken: map[kek.ID]bool{}, state: map[string][]byte{}, objects: map[kek.ID]int64{}}
	first := w.Add(time.Now().Add(-time.Hour))
	w.objects[first.ID] = 100
	for i := range nodes {
		w.Nodes = append(w.Nodes, &Node{world: w, name: fmt.Sprintf("node-%d", i), used: map[kek.ID]time.Time{}})
		w.Servers = append(w.Servers, &Server{world: w, name: fmt.Sprintf("https://server-%d", i), node: w.Nodes[i]})
	}
	for _, n := range w.Nodes {
		n.refresh()
	}
	return w
}

// Add puts a key onto the token.
func (w *World) Add(activation time.Time) kek.Info {
	id, err := kek.NewID(activation, &counter{n: byte(len(w.keys))}) //nolint:gosec // G115: a world has a few keys
	if err != nil {
		w.tb.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.put(id)
}

// counter is a source of bytes that are the same in every run.
type counter struct{ n byte }

// Read implements io.Reader.
func (c *counter) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = c.n
	}
	return len(b), nil
}

// put makes a key. w.mu is held.
func (w *World) put(id kek.ID) kek.Info {
	at, _ := id.Activation()
	k := kek.Info{Ring: Label, ID: id, CheckValue: kek.CheckValue{1, 2, 3}, Activation: at}
	w.keys = append(w.keys, k)
	return k
}

// Foreign puts a key of another tool onto the token.
func (w *World) Foreign(id kek.ID) {
	w.keys = append(w.keys, kek.Info{Ring: Label, ID: id})
}

// Twin puts another key with the first one's id onto the token.
func (w *World) Twin() { w.keys = append(w.keys, w.keys[0]) }

// All are the keys on the token, in the order of their creation.
func (w *World) All() []kek.Info {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.keys)
}

// Break makes a key one that no node can use.
func (w *World) Break(id kek.ID) { w.broken[id] = true }

// Ring is the ring as this machine's clock tells it.
func (w *World) Ring() *kek.Ring {
	w.mu.Lock()
	defer w.mu.Unlock()
	ring, _ := hsm.BuildRing(Label, w.keys, hsm.RingOptions{Now: time.Now()})
	return ring
}

// Objects is how many objects are under each key.
func (w *World) Objects() map[kek.ID]int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[kek.ID]int64{}
	for id, n := range w.objects {
		if n > 0 {
			out[id] = n
		}
	}
	return out
}

// SetObjects sets how many objects are under a key.
func (w *World) SetObjects(id kek.ID, n int64) { w.objects[id] = n }

// Operations is how many operations the administrator's process has asked for.
func (w *World) Operations() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.operations
}

// Reset begins another process.
func (w *World) Reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.operations = 0
}

// Do runs one operation of the administrator's process, which a kill may prevent or
// cut off from its result.
func (w *World) Do(ctx context.Context, name string, operation func() error) error {
	w.mu.Lock()
	if w.Hook != nil {
		w.Hook(name)
	}
	w.operations++
	dead := w.KillAt > 0 && w.operations >= w.KillAt
	last := w.operations == w.KillAt && w.KillAfter
	w.mu.Unlock()
	if dead && !last {
		return ErrDead
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	err := operation()
	switch {
	case dead:
		return ErrDead
	case err == nil && name == w.LoseAnswer:
		return kek.ErrUnavailable
	}
	return err
}

// Token is the token as the administrator reaches it.
type Token struct{ World *World }

func (t Token) do(ctx context.Context, name string, operation func(w *World) error) error {
	return t.World.Do(ctx, name, func() error {
		t.World.mu.Lock()
		defer t.World.mu.Unlock()
		if t.World.TokenAway {
			return kek.ErrUnavailable
		}
		return operation(t.World)
	})
}

// Name implements newkey.Token.
func (t Token) Name(ctx context.Context) (string, error) {
	return `token "t"`, t.do(ctx, "name", func(*World) error { return nil })
}

// View implements newkey.Token.
func (t Token) View(ctx context.Context) (v newkey.View, err error) {
	err = t.do(ctx, "view", func(w *World) error {
		v = newkey.View{Label: Label, Keys: slices.Clone(w.keys)}
		v.Ring, v.Err = hsm.BuildRing(Label, w.keys, hsm.RingOptions{Now: time.Now()})
		if errors.Is(v.Err, kek.ErrAmbiguous) {
			v.Ring = nil
		}
		return nil
	})
	return v, err
}

// Try implements newkey.Token.
func (t Token) Try(ctx context.Context, id kek.ID) (kek.Mechanism, error) {
	return kek.GCMCallerIV, t.do(ctx, "try", func(w *World) error { return w.usable(id) })
}

// usable says why a key cannot be used. w.mu is held.
func (w *World) usable(id kek.ID) error {
	if w.broken[id] {
		return fmt.Errorf("%w: it is half made", kek.ErrRefused)
	}
	return nil
}

// Create makes a key.
func (t Token) Create(ctx context.Context, id kek.ID) (k kek.Info, m kek.Mechanism, err error) {
	err = t.do(ctx, "create", func(w *World) error { k = w.put(id); return nil })
	return k, kek.GCMCallerIV, err
}

// Disable takes a key out of use.
func (t Token) Disable(ctx context.Context, seen kek.Info) error {
	return t.do(ctx, "disable", func(w *World) error {
		for i := range w.keys {
			if w.keys[i].ID == seen.ID {
				w.keys[i].State = kek.Disabled
			}
		}
		return nil
	})
}

// Destroy removes a key.
func (t Token) Destroy(ctx context.Context, seen kek.Info) error {
	return t.do(ctx, "destroy", func(w *World) error {
		w.keys = slices.DeleteFunc(w.keys, func(k kek.Info) bool { return k.ID == seen.ID })
		return nil
	})
}

// Node is a running kekd.
type Node struct {
	world *World
	name  string

	published hsm.Published
	ring      *kek.Ring
	read      time.Time
	current   string
	problem   string
	used      map[kek.ID]time.Time // by this machine's clock

	// Offset is how far its clock is ahead.
	Offset time.Duration
	// Down: it does not answer, and does nothing.
	Down bool
	// CutOff: it does not reach the token.
	CutOff bool
	// Blind: it does not see keys that are pending.
	Blind bool
	// Silent: it works, and does not answer the administrator.
	Silent bool
}

// Name implements nodes.Node.
func (n *Node) Name() string { return n.name }

// Encrypts is the id of the key that the node encrypts under; empty if it cannot.
func (n *Node) Encrypts() kek.ID {
	n.world.mu.Lock()
	defer n.world.mu.Unlock()
	n.look()
	_, id, _ := kek.ParseKeyID(n.current)
	return id
}

// UsedUntil is when the node last encrypted under the key.
func (n *Node) UsedUntil(id kek.ID) time.Time {
	n.world.mu.Lock()
	defer n.world.mu.Unlock()
	return n.used[id]
}

func (n *Node) refresh() {
	n.world.mu.Lock()
	defer n.world.mu.Unlock()
	n.look()
}

// look does what kekd's watcher does in one look at the ring. world.mu is held.
func (n *Node) look() {
	if n.Down {
		return
	}
	defer func() {
		if _, id, err := kek.ParseKeyID(n.current); err == nil {
			n.used[id] = time.Now()
		}
	}()
	if n.CutOff {
		n.problem = "the HSM is unavailable"
		return
	}
	now := time.Now().Add(n.Offset)
	keys := slices.Clone(n.world.keys)
	if n.Blind {
		keys = slices.DeleteFunc(keys, func(k kek.Info) bool { return k.Activation.After(now) })
	}
	ring, err := hsm.BuildRing(Label, keys, hsm.RingOptions{Now: now, Published: n.published})
	n.problem = ""
	if errors.Is(err, kek.ErrAmbiguous) {
		n.problem = err.Error()
		return
	}
	n.ring, n.read = ring, now
	if _, id, parseErr := kek.ParseKeyID(n.current); parseErr == nil {
		if k, ok := ring.Lookup(id); !ok || !k.State.Decrypts() {
			n.current = ""
		}
	}
	primary, ok := ring.Primary()
	if !ok {
		n.current, n.problem = "", err.Error()
		return
	}
	if err := n.world.usable(primary.ID); err != nil {
		n.problem = err.Error() // and what is in use stays in use
		return
	}
	n.published, _ = n.published.Advance(primary)
	n.current = primary.KeyID()
}

// Ask implements nodes.Node.
func (n *Node) Ask(ctx context.Context) (s *httpapi.Status, ahead, uncertainty time.Duration, err error) {
	err = n.world.Do(ctx, "ask "+n.name, func() error {
		n.world.mu.Lock()
		defer n.world.mu.Unlock()
		if n.Down || n.Silent {
			return errors.New("connection refused")
		}
		n.look()
		s = &httpapi.Status{
			Time: time.Now().Add(n.Offset), RingProblem: n.problem, Node: n.name,
			Health: health.Report{KeyID: n.current}, Refresh: httpapi.Duration(Refresh),
		}
		if n.ring == nil {
			return nil
		}
		s.KeyRing = httpapi.NewKeyRing(n.ring, n.read)
		for i, k := range n.ring.Keys {
			if err := n.world.usable(k.ID); err != nil {
				s.KeyRing.Keys[i].Problem = err.Error()
			} else {
				s.KeyRing.Keys[i].Proven = true
			}
		}
		return nil
	})
	return s, n.Offset, 0, err
}

// Server is a kube-apiserver.
type Server struct {
	world *World
	name  string
	node  *Node

	status string
	asked  time.Time

	// Down: it does not answer.
	Down bool
	// Identity: identity is the first provider.
	Identity bool
}

// Name implements rotate.Server.
func (s *Server) Name() string { return s.name }

// poll asks the node for the key_id, once in 20 seconds. world.mu is held.
func (s *Server) poll() string {
	if time.Since(s.asked) >= 20*time.Second {
		s.node.look()
		s.status, s.asked = s.node.current, time.Now()
	}
	return s.status
}

// KeyInUse implements rotate.Server.
func (s *Server) KeyInUse(ctx context.Context) (use cluster.KeyUse, err error) {
	err = s.world.Do(ctx, "server "+s.name, func() error {
		s.world.mu.Lock()
		defer s.world.mu.Unlock()
		if s.Down {
			return errors.New("connection refused")
		}
		use.Providers = []cluster.ProviderUse{{Name: "kekd", Status: kek.KeyIDHash(s.poll())}}
		return nil
	})
	return use, err
}

// Name implements rotate.Member: the world is etcd too.
func (w *World) Name() string { return "https://etcd" }

// Reach implements rotate.Member.
func (w *World) Reach(ctx context.Context) error {
	return w.Do(ctx, "reach", func() error { return nil })
}

// Count returns how many objects are under each key.
func (w *World) Count(ctx context.Context) (objects map[kek.ID]int64, err error) {
	err = w.Do(ctx, "count", func() error { objects = w.Objects(); return nil })
	return objects, err
}

// Writes says what an object that is written anew would be under, through each server.
func (w *World) Writes(ctx context.Context) (keyIDs []string, err error) {
	err = w.Do(ctx, "write", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, s := range w.Servers {
			if s.Identity {
				keyIDs = append(keyIDs, "identity")
			} else {
				keyIDs = append(keyIDs, s.poll())
			}
		}
		return nil
	})
	return keyIDs, err
}

// RewriteOne brings one object under another key through a server; false where all are.
func (w *World) RewriteOne(ctx context.Context, to kek.ID) (more bool, err error) {
	err = w.Do(ctx, "rewrite", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for id, n := range w.objects {
			if id != to && n > 0 {
				more = true
				w.objects[id] -= min(n, 40)
				w.objects[to] += min(n, 40)
				return nil
			}
		}
		return nil
	})
	return more, err
}

// Memory is the state directory.
type Memory struct{ World *World }

// Load implements rotate.Memory.
func (m Memory) Load(name string, v any) (found bool, err error) {
	err = m.World.Do(context.Background(), "load", func() error {
		b, ok := m.World.state[name]
		found = ok
		if !ok {
			return nil
		}
		return json.Unmarshal(b, v)
	})
	return found, err
}

// Save implements rotate.Memory.
func (m Memory) Save(name string, v any) error {
	return m.World.Do(context.Background(), "save", func() error {
		b, err := json.Marshal(v)
		m.World.state[name] = b
		return err
	})
}

// Remove implements rotate.Memory.
func (m Memory) Remove(name string) error {
	return m.World.Do(context.Background(), "remove", func() error {
		delete(m.World.state, name)
		return nil
	})
}

// Keeps reports whether the state directory has something under the name.
func (w *World) Keeps(name string) bool { return w.state[name] != nil }
