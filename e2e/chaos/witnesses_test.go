package chaos

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// witnessPage is the table that TestWitnesses makes.
const witnessPage = "../../docs/reports/witnesses.md"

// The outcomes of a command.
const (
	made    = "made"
	refused = "refused"
)

// condition is what is the matter with a witness.
type condition struct {
	witness, name string
	// set makes it so, and returns what undoes it.
	set func(*testing.T, *table) (undo func())
	// made and refused are the commands that must end so, in their order.
	made, refused string
}

// table is two nodes with an API server each, and keys that nobody uses any more.
type table struct {
	*world

	// spare are retired keys. A purge takes the last.
	spare []key
	// under are values of Secrets as etcd had them, by key_id.
	under map[string][]byte
	rows  []string
}

var conditions = []condition{
	{"node", "lags: the key was replaced a moment ago", func(t *testing.T, b *table) func() {
		before := b.spare
		b.spare = append(b.spare, b.replaced(t))
		return func() { b.spare = before }
	}, "", "disable destroy purge"},
	{"all", "agree", settled, "cancel disable destroy purge rewrap", ""},
	{"node", "clock 3 min ahead, which allows for as much more lag", clockOff(3 * time.Minute), "cancel", "disable destroy purge"},
	{"node", "clock 3 min behind, which allows for as much more lag", clockOff(-3 * time.Minute), "cancel", "disable destroy purge"},
	{"node", "cannot be asked", func(t *testing.T, b *table) func() {
		n := b.nodes[1]
		n.kekd.Kill(t)
		return func() { n.kekd.StartReady(t) }
	}, "", "cancel disable destroy purge rotate"},
	{"apiserver", "cannot be asked", func(t *testing.T, b *table) func() {
		n := b.nodes[1]
		n.apiserver.Kill(t)
		return func() {
			n.apiserver.Start(t)
			n.apiserver.WaitStatus(t, "/readyz", http.StatusOK, 2*time.Minute)
		}
	}, "", "cancel disable destroy purge rewrap rotate"},
	{"etcd", "cannot be asked", func(t *testing.T, b *table) func() {
		options := b.options
		options.Cluster = regexp.MustCompile(`endpoints: \["[^"]*"\]`).ReplaceAllString(options.Cluster, `endpoints: ["http://127.0.0.1:1"]`)
		b.nodes[0].kekd.Configure(t, options)
		return func() { b.nodes[0].kekd.Configure(t, b.options) }
	}, "", "cancel disable destroy purge rewrap rotate"},
	{"etcd", "contradicts: it holds an object under the key", func(t *testing.T, b *table) func() {
		const name = "/registry/secrets/default/planted"
		// An API server lags, so only some of the keys ever had an object.
		i := slices.IndexFunc(b.spare, func(k key) bool { return b.under[k.KeyID] != nil })
		if i < 0 {
			t.Fatal("no spare key ever had an object")
		}
		last := len(b.spare) - 1
		b.spare[i], b.spare[last] = b.spare[last], b.spare[i]
		k := b.spare[last]
		if _, err := b.etcd.Put(t.Context(), name, string(b.under[k.KeyID])); err != nil {
			t.Fatal(err)
		}
		return func() {
			if _, err := b.etcd.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}, "", "disable destroy purge"},
	{"token", "cannot be asked by kekctl", func(t *testing.T, b *table) func() {
		n := b.nodes[0]
		n.kekd.Token.TakeAway(t)
		return func() { n.kekd.Token.PutBack(t) }
	}, "rewrap", "cancel disable destroy purge rotate revoke"}, // which has nothing to rewrite
	{"token", "cannot be asked by a node", func(t *testing.T, b *table) func() {
		n := b.nodes[1]
		n.kekd.Token.TakeAway(t)
		harness.Eventually(t, soon, "the node's last look at the ring is too old", func(c ctx) error {
			code, body, err := n.kekd.Get(c, "/status")
			if m := regexp.MustCompile(`"read": ?"([^"]+)"`).FindStringSubmatch(body); err == nil && code == http.StatusOK && m != nil {
				read, parsed := time.Parse(time.RFC3339, m[1])
				if err = parsed; err == nil && time.Since(read) < 14*time.Second {
					err = fmt.Errorf("it is of %s", m[1])
				}
			}
			return err
		})
		return func() { n.kekd.Token.PutBack(t); n.kekd.WaitReady(t, soon) }
	}, "", "disable destroy purge rotate"},
	{"all", "agree again", settled, "rotate revoke", ""},
}

func settled(t *testing.T, b *table) func() { b.settle(t); return func() {} }

func clockOff(ahead time.Duration) func(*testing.T, *table) func() {
	return func(t *testing.T, b *table) func() {
		b.nodes[1].kekd.JumpClock(t, ahead)
		return func() { b.nodes[1].kekd.JumpClock(t, 0) }
	}
}

// TestWitnesses runs every command against every witness, over two API servers, two
// kekds and one token, and holds docs/reports/witnesses.md against the outcomes.
func TestWitnesses(t *testing.T) {
	t.Parallel()
	b := &table{world: newWorld(t, 2, 2)}
	n := b.nodes[0]
	for i := range 4 {
		b.keep(t, fmt.Sprintf("kept-%d", i))
		// A purge takes the last, and the first is the one that has an object.
		b.spare = append(b.spare, b.replaced(t))
	}
	n.must(t, "rewrap", "--yes", "--method", "update")
	idle := time.Now()
	for _, c := range conditions {
		if c.name == "agree" {
			t.Logf("waits until no witness can lag")
			select {
			case <-t.Context().Done():
			case <-time.After(lag - time.Since(idle)):
			}
		}
		undo := c.set(t, b)
		for command := range strings.FieldsSeq(c.made) {
			b.cell(t, c, command, made)
		}
		for command := range strings.FieldsSeq(c.refused) {
			b.cell(t, c, command, refused)
		}
		undo()
	}
	b.requireReadable(t)
	b.requireAllOpen(t, b.givenUp...)
	b.page(t)
}

// keep writes a Secret, and keeps its value as etcd has it, by its key_id.
func (b *table) keep(t *testing.T, name string) {
	t.Helper()
	keyID, err := b.writeSecret(t.Context(), b.nodes[0], name)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.etcd.Get(t.Context(), "/registry/secrets/default/"+name)
	if err != nil || len(resp.Kvs) != 1 {
		t.Fatalf("read the Secret %s: %v", name, err)
	}
	if b.under == nil {
		b.under = map[string][]byte{}
	}
	b.under[keyID] = resp.Kvs[0].Value
}

// cell runs one command and notes its outcome.
func (b *table) cell(t *testing.T, c condition, command, want string) {
	t.Helper()
	run := b.attempt(t, command)
	got := made
	if run.code != 0 {
		got = refused + ": " + b.reason(run)
	}
	if !strings.HasPrefix(got, want) || run.code > 1 {
		t.Errorf("%s, %s: %s is %s, want %s\n%v", c.witness, c.name, command, got, want, run)
	}
	if got == refused+": " {
		t.Errorf("%s, %s: %s names no reason: %v", c.witness, c.name, command, run)
	}
	b.rows = append(b.rows, fmt.Sprintf("| %s | %s | %s | %s |", c.witness, c.name, command, got))
}

// attempt runs a command on the first node, on a key that it is for, and puts the key
// right again.
func (b *table) attempt(t *testing.T, what string) *command {
	t.Helper()
	by, other := b.nodes[0], b.nodes[1]
	spare := b.spare[len(b.spare)-1]
	switch what {
	case "cancel":
		k := b.pending(t)
		c := by.try(t, "key", "cancel", k, "--yes")
		if stateOnToken(t, b.token, k) != "gone" {
			onToken(t, b.token, tokenRequest{Op: "destroy", ID: k})
		}
		return c
	case "purge":
		b.relabel(t, spare.ID, due())
		c := by.try(t, "key", "purge", spare.ID, "--yes")
		if stateOnToken(t, b.token, spare.ID) == "gone" {
			b.spare = b.spare[:len(b.spare)-1]
			b.giveUp(spare.KeyID) // no object is under it, but values of this test are
			return c
		}
		b.relabel(t, spare.ID, ring)
		return c
	case "disable", "destroy":
		args := []string{"key", what, spare.ID, "--yes"}
		if what == "destroy" {
			args = append(args, "--after", "30d")
		}
		c := by.try(t, args...)
		if c.code == 0 {
			by.must(t, "key", map[string]string{"disable": "enable", "destroy": "restore"}[what], spare.ID, "--yes")
		}
		return c
	case "revoke":
		k := other.primary(t)
		c := by.try(t, "revoke", k.ID, "--yes")
		if c.code == 0 {
			b.giveUp(k.KeyID)
			by.must(t, "key", "enable", k.ID, "--yes")
		}
		return c
	case "rotate":
		return by.try(t, "rotate", "--yes", "--activate-in", "5s", "--method", "update")
	}
	return by.try(t, what, "--yes", "--method", "update")
}

// pending puts a key on the token that activates in twenty minutes, and waits until
// every node that can sees it.
func (b *table) pending(t *testing.T) string {
	t.Helper()
	by := b.nodes[0]
	if by.kekd.Token.IsAway() {
		by = b.nodes[1]
	}
	var k key
	by.json(t, &k, "key", "create", "--yes", "--activate-in", "20m")
	for _, n := range b.nodes {
		if n.kekd.Running() && !n.kekd.Token.IsAway() {
			harness.Eventually(t, soon, n.name+" sees the key", func(c ctx) error {
				status, err := n.kekd.Status(c)
				if err == nil && status.State(k.KeyID) == "gone" {
					err = fmt.Errorf("it does not")
				}
				return err
			})
		}
	}
	return k.ID
}

var (
	finding = regexp.MustCompile(`(?m)^\s+(token|nodes?|apiservers?|etcd)[^:]*(?:://[^ ]+|:\d+)?: (used|unknown): `)
	failure = regexp.MustCompile(`(?m)^kekctl: error: (.*)$`)
)

// reason is who speaks against a command; of a command without witnesses, who the error
// names.
func (b *table) reason(c *command) string {
	var names []string
	said := c.stderr.String()
	for _, m := range finding.FindAllStringSubmatch(said, -1) {
		if name := m[1] + " " + m[2]; len(names) == 0 || names[len(names)-1] != name {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		return names[0]
	}
	m := failure.FindStringSubmatch(said)
	switch {
	case m == nil:
		return ""
	case strings.Contains(said, "127.0.0.1:1") && !strings.Contains(said, "127.0.0.1:1:"):
		return "names etcd"
	}
	for i, n := range b.nodes {
		switch {
		case strings.Contains(m[1], strings.TrimPrefix(n.kekd.URL, "http://")):
			return fmt.Sprintf("names node %d", i)
		case strings.Contains(m[1], strings.TrimPrefix(n.apiserver.URL, "https://")):
			return fmt.Sprintf("names API server %d", i)
		}
	}
	text := regexp.MustCompile(`[0-9a-f]{8,}|\d+`).ReplaceAllString(m[1], "N")
	return strings.ReplaceAll(text[:min(len(text), 80)], "|", "/")
}

// page compares the table with what docs show, or writes it.
func (b *table) page(t *testing.T) {
	t.Helper()
	text := `# What every command does when a witness fails

Generated by ` + "`make chaos`" + ` with KEKD_UPDATE_DOCS=1: kekctl over two kekds, two kube-apiservers,
etcd and one token, all real. ` + "`refused`" + ` is exit code 1, and the key is as before; behind it is
the first witness that kekctl names. After the last row every Secret and every value reads back.

| witness | condition | command | outcome |
| --- | --- | --- | --- |
` + strings.Join(b.rows, "\n") + "\n"
	if flags.update {
		if t.Failed() {
			return
		}
		if err := os.WriteFile(witnessPage, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if had, err := os.ReadFile(witnessPage); err != nil || string(had) != text {
		t.Errorf("%s differs from this run (%v); KEKD_UPDATE_DOCS=1 make chaos writes it:\n%s", witnessPage, err, text)
	}
}
