package rotation

import (
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
	// now is the time by the administrator's clock.
	now    time.Time
	values []modelValue
}

type modelValue struct {
	plaintext string
	sealed    kek.Sealed
	id        kek.ID
	seed      string
}

// The invariants of the key ring (docs/design.md), whatever administrators, clocks,
// restarts and the way to the token do:
//   - A node never goes back to a key_id that it had before.
//   - Status, Encrypt and the newest activated key are one; none takes the place of
//     one that is out of use.
//   - What was sealed under a live key opens on every node that reaches the token,
//     and what was sealed under another does not.
//   - A node that cannot see the token goes on with what it has, and says so.
func TestModel(t *testing.T) {
	t.Parallel()
	for name, foreign := range map[string]bool{"from the first key": false, "from a key of another tool": true} {
		for nodes := 2; nodes <= 3; nodes++ {
			t.Run(fmt.Sprintf("%d nodes, %s", nodes, name), func(t *testing.T) {
				t.Parallel()
				base := t.TempDir()
				rapid.Check(t, func(t *rapid.T) { checkModel(t, base, nodes, foreign) })
			})
		}
	}
}

func checkModel(t *rapid.T, base string, nodes int, foreign bool) {
	dir, err := os.MkdirTemp(base, "")
	if err != nil {
		t.Fatal(err)
	}
	m := &model{t: t, dir: dir, token: &sharedToken{made: make(map[kek.ID]bool)}, now: epoch()}
	if foreign {
		m.add("\x01")
	}
	for i := range nodes {
		m.addNode(fmt.Sprint("node", i))
	}
	defer func() {
		for _, n := range m.nodes {
			n.stop()
		}
	}()
	t.Repeat(map[string]func(*rapid.T){
		"wait":          func(*rapid.T) { m.now = m.now.Add(m.seconds(1, 3600)) },
		"create":        func(*rapid.T) { m.create(m.now.Add(m.seconds(0, 7200))) },
		"rotate now":    func(*rapid.T) { m.create(m.now) },
		"disable":       m.onKey(func(k *sharedKey) { k.info.State = kek.Disabled }),
		"enable":        m.onKey(func(k *sharedKey) { k.info.State = 0 }), // or restore
		"schedule":      m.onKey(func(k *sharedKey) { k.info.State = kek.Scheduled }),
		"destroy":       m.onKey(m.destroy),
		"set the clock": m.onNode(func(n *modelNode) { n.offset = m.seconds(-100_000, 100_000) }),
		"skew":          m.onNode(func(n *modelNode) { n.offset = m.seconds(-2, 2) }),
		"unplug":        m.onNode(func(n *modelNode) { n.conn.down = !n.conn.down }),
		"fail once":     m.onNode(func(n *modelNode) { n.conn.left = rapid.IntRange(0, 8).Draw(m.t, "calls before") }),
		"restart":       m.onNode(func(n *modelNode) { n.stop(); n.start() }),
		"look":          m.onNode((*modelNode).look),
		"all look":      m.allLook,
		"seal":          m.onNode((*modelNode).seal),
		"look and seal": m.onNode(func(n *modelNode) { n.look(); n.seal() }),
		"open":          m.onNode((*modelNode).open),
		"look and open": m.onNode(func(n *modelNode) { n.look(); n.open() }),
		"":              m.checkAll,
	})
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

// create makes a key as kekctl does, with an activation of its own, later than all
// others'.
func (m *model) create(activation time.Time) {
	for _, k := range m.token.keys {
		if !activation.After(k.info.Activation) {
			activation = k.info.Activation.Add(time.Second)
		}
	}
	id, err := kek.NewID(activation, strings.NewReader(fmt.Sprintf("%08d", len(m.token.made))))
	if err != nil {
		m.t.Fatal(err)
	}
	m.add(id)
}

func (m *model) add(id kek.ID) {
	if err := m.token.add(id); err != nil {
		m.t.Fatal(err)
	}
}

// destroy cancels a pending key or purges one that is scheduled.
func (m *model) destroy(k *sharedKey) {
	if k.info.State != kek.Scheduled && !k.info.Activation.After(m.now) {
		m.t.Skip("the key is in use")
	}
	m.token.destroy(k.info.ID)
}

func (m *model) allLook(*rapid.T) {
	for _, n := range m.nodes {
		n.look()
	}
}

func (m *model) checkAll(*rapid.T) {
	for _, n := range m.nodes {
		n.check()
	}
}
