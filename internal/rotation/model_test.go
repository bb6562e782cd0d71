package rotation

import (
	"crypto/cipher"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kekd/internal/kek"
)

// model is a token, the nodes that use it, and what they have sealed.
type model struct {
	t     *rapid.T
	dir   string
	token *sharedToken
	nodes []*modelNode
	// swaps: keys are replaced by others of the same id. Else there are nodes that
	// are told no check values, which could not tell.
	swaps bool
	// now is the time by the administrator's clock.
	now    time.Time
	values []modelValue
	// names are the keys of all key_ids that Kubernetes was told.
	names map[string]cipher.Block
}

type modelValue struct {
	plaintext string
	sealed    kek.Sealed
	id        kek.ID
	key       cipher.Block
	seed      string
}

// The invariants of the key ring (docs/design.md), whatever administrators, other
// tools, clocks, restarts, full disks and the way to the token do:
//   - A node never goes back to a key_id that it had before.
//   - A key_id names one key, on all nodes.
//   - Status, Encrypt and the newest activated key are one; none takes the place of
//     one that is out of use.
//   - What was sealed under a live key opens on every node that reaches the token,
//     and what was sealed under another does not.
//   - A node that cannot see the token goes on with what it has, and says so.
//   - When a node last used a key, it says never earlier than it did.
//   - A new key mends whatever has happened.
func TestModel(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]struct {
		keys    []kek.ID
		primary kek.ID
	}{
		"from the first key":                 {},
		"from a key of another tool":         {keys: []kek.ID{"\x01"}},
		"from two keys of other tools":       {keys: []kek.ID{"\x01", "\x02"}},
		"from the named one of two of these": {keys: []kek.ID{"\x01", "\x02"}, primary: "\x01"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := t.TempDir()
			rapid.Check(t, func(t *rapid.T) { checkModel(t, base, start.keys, start.primary) })
		})
	}
}

func checkModel(t *rapid.T, base string, keys []kek.ID, primary kek.ID) {
	dir, err := os.MkdirTemp(base, "")
	if err != nil {
		t.Fatal(err)
	}
	m := &model{
		t: t, dir: dir, token: &sharedToken{made: make(map[kek.ID]bool)}, now: epoch(),
		names: make(map[string]cipher.Block),
	}
	m.token.strict = rapid.Bool().Draw(t, "strict token")
	m.swaps = rapid.Bool().Draw(t, "swaps")
	for _, id := range keys {
		m.add(id)
	}
	for i := range rapid.IntRange(2, 3).Draw(t, "nodes") {
		m.addNode(fmt.Sprint("node", i), primary)
	}
	defer func() {
		for _, n := range m.nodes {
			n.stop()
		}
	}()
	t.Repeat(map[string]func(*rapid.T){
		// The administrator's commands.
		"create":     func(*rapid.T) { m.harmless(func() { m.create(m.now.Add(m.seconds(0, 7200))) }) },
		"rotate now": func(*rapid.T) { m.harmless(func() { m.create(m.now) }) },
		"cancel":     m.onKey(m.cancel),
		"enable":     m.onKey(func(k *sharedKey) { m.harmless(func() { k.info.State = 0 }) }), // or restore
		"purge":      m.onKey(m.purge),
		"revoke":     m.onKey(m.revoke),
		// What other tools do to any key, whatever its state.
		"create at once":   m.createAtOnce,
		"create elsewhere": func(*rapid.T) { m.add(kek.ID(fmt.Sprint("elsewhere", len(m.token.made)))) },
		"disable":          m.onKey(func(k *sharedKey) { k.info.State = kek.Disabled }),
		"schedule":         m.onKey(func(k *sharedKey) { k.info.State = kek.Scheduled }),
		"destroy":          m.onKey(func(k *sharedKey) { m.token.destroy(k.info.ID) }),
		"swap":             m.onKey(m.swap),
		// What happens to nodes.
		"wait":               func(*rapid.T) { m.now = m.now.Add(m.seconds(1, 3600)) },
		"set the clock":      m.onNode(func(n *modelNode) { n.setClock(m.seconds(-100_000, 100_000)) }),
		"skew":               m.onNode(func(n *modelNode) { n.setClock(m.seconds(-2, 2)) }),
		"unplug":             m.onNode(func(n *modelNode) { n.conn.down = !n.conn.down }),
		"fail once":          m.onNode(func(n *modelNode) { n.conn.left = rapid.IntRange(0, 8).Draw(m.t, "calls before") }),
		"hide check values":  m.onNode(func(n *modelNode) { n.conn.blind = !n.conn.blind && !m.swaps }),
		"fill or clean disk": m.onNode(func(n *modelNode) { n.memory.full = !n.memory.full }),
		"restart":            m.onNode((*modelNode).restart),
		"reconfigure":        m.onNode((*modelNode).reconfigure),
		// What they do.
		"look":          m.onNode((*modelNode).look),
		"all look":      func(*rapid.T) { m.allLook() },
		"seal":          m.onNode((*modelNode).seal),
		"look and seal": m.onNode(func(n *modelNode) { n.look(); n.seal() }),
		"open":          m.onNode((*modelNode).open),
		"open anew":     m.onNode(func(n *modelNode) { n.restart(); n.look(); n.open() }),
		"": func(*rapid.T) {
			for _, n := range m.nodes {
				n.check()
			}
		},
	})
	m.mend()
}

func (m *model) seconds(least, most int) time.Duration {
	return time.Duration(rapid.IntRange(least, most).Draw(m.t, "s")) * time.Second
}

func (m *model) onNode(do func(n *modelNode)) func(*rapid.T) {
	return func(t *rapid.T) { do(m.nodes[rapid.IntRange(0, len(m.nodes)-1).Draw(t, "node")]) }
}

func (m *model) onKey(do func(k *sharedKey)) func(*rapid.T) {
	return func(t *rapid.T) {
		if len(m.token.keys) == 0 {
			t.Skip("there is no key")
		}
		do(&m.token.keys[rapid.IntRange(0, len(m.token.keys)-1).Draw(t, "key")])
	}
}

// harmless does what must take its primary from no node.
func (m *model) harmless(do func()) {
	var serving []*modelNode
	for _, n := range m.nodes {
		if _, v := n.expected(); v == serves {
			serving = append(serving, n)
		}
	}
	do()
	for _, n := range serving {
		if _, v := n.expected(); v != serves && v != unclear {
			n.errorf("it lost its primary")
		}
	}
}

// create makes a key as kekctl does, with an activation of its own, later than all
// others'.
func (m *model) create(activation time.Time) {
	if newest := m.newestActivation(); !activation.After(newest) {
		activation = newest.Add(time.Second)
	}
	m.createWith(activation, '0')
}

func (m *model) newestActivation() time.Time {
	var newest time.Time
	for _, k := range m.token.keys {
		if k.info.Activation.After(newest) {
			newest = k.info.Activation
		}
	}
	return newest
}

func (m *model) createWith(activation time.Time, first byte) {
	id, err := kek.NewID(activation, strings.NewReader(fmt.Sprintf("%c%07d", first, len(m.token.made))))
	if err != nil {
		m.t.Fatal(err)
	}
	m.add(id)
}

// createAtOnce is what two administrators do who rotate in the same second.
func (m *model) createAtOnce(t *rapid.T) {
	newest := m.newestActivation()
	if newest.IsZero() {
		t.Skip("there is no key of our own")
	}
	m.createWith(newest, rapid.SampledFrom([]byte("!~")).Draw(t, "first byte"))
}

func (m *model) add(id kek.ID) {
	if err := m.token.add(id); err != nil {
		m.t.Fatal(err)
	}
}

// cancel removes a pending key that no node may have used yet.
func (m *model) cancel(k *sharedKey) {
	for _, n := range m.nodes {
		if id, _ := n.expected(); id == k.info.ID || n.published().Last == k.info.ID || !k.info.Activation.After(n.clock()) {
			m.t.Skip("it may be in use")
		}
	}
	m.harmless(func() { m.token.destroy(k.info.ID) })
}

func (m *model) purge(k *sharedKey) {
	if k.info.State != kek.Scheduled {
		m.t.Skip("it is not scheduled")
	}
	m.harmless(func() { m.token.destroy(k.info.ID) })
}

func (m *model) swap(k *sharedKey) {
	if !m.swaps {
		m.t.Skip("nobody swaps keys")
	}
	if err := k.fill(); err != nil {
		m.t.Fatal(err)
	}
}

// revoke is kekctl revoke: a new key first.
func (m *model) revoke(k *sharedKey) {
	id := k.info.ID
	m.create(m.now)
	m.allLook()
	m.token.find(id).info.State = kek.Disabled
	m.allLook()
}

// mend ends all faults. With a new key every node works, and opens all that stands
// under live keys.
func (m *model) mend() {
	// A node whose clock was ahead may have used a key before its time that is gone
	// now, and takes no key of an earlier time.
	for id := range m.token.made {
		if at, _ := id.Activation(); at.After(m.now) {
			m.now = at
		}
	}
	m.now = m.now.Add(time.Second)
	m.create(m.now)
	for _, n := range m.nodes {
		n.setClock(0)
		n.memory.full, *n.conn = false, connection{sharedToken: m.token, left: -1}
		n.look()
		n.seal()
	}
	for _, n := range m.nodes {
		for _, v := range m.values {
			n.openValue(v)
		}
		first, _ := m.nodes[0].sealer.Current()
		if c, ok := n.sealer.Current(); !ok || c.KeyID != first.KeyID {
			n.errorf("it encrypts under %q, and another node under %q", c.KeyID, first.KeyID)
		}
	}
}

func (m *model) allLook() {
	for _, n := range m.nodes {
		n.look()
	}
}
