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
	rows  []row
}

// row is an outcome that commands share.
type row struct {
	witness, condition string
	commands           []string
	outcome            string
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
			b.cells(t, c, made, command)
		}
		// What is refused changes nothing, so it runs side by side, but for what shows a
		// key to others in another state than theirs.
		var own, others []string
		for command := range strings.FieldsSeq(c.refused) {
			if command == "cancel" || command == "purge" {
				own = append(own, command)
			} else {
				others = append(others, command)
			}
		}
		b.cells(t, c, refused, own...)
		b.cells(t, c, refused, others...)
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

// cells runs commands at the same time and notes their outcomes.
func (b *table) cells(t *testing.T, c condition, want string, commands ...string) {
	t.Helper()
	var runs []*command
	var afters []func(*command)
	var all [][]string
	for _, command := range commands {
		args, after := b.prepare(t, command)
		all, afters = append(all, args), append(afters, after)
	}
	for _, args := range all {
		runs = append(runs, b.nodes[0].start(t, append(args, "--yes")...))
	}
	for i, run := range runs {
		run.wait(t)
		got := made
		if run.code != 0 {
			got = refused + ", names " + b.reason(run)
		}
		if !strings.HasPrefix(got, want) || run.code > 1 {
			t.Errorf("%s, %s: %s is %s, want %s\n%v", c.witness, c.name, commands[i], got, want, run)
		}
		if got == refused+", names " {
			t.Errorf("%s, %s: %s names no witness: %v", c.witness, c.name, commands[i], run)
		}
		if strings.Contains(run.stderr.String(), "127.0.0.1:2379") {
			t.Errorf("%s, %s: %s speaks of etcd's default address, where none is: %v", c.witness, c.name, commands[i], run)
		}
		b.note(c, commands[i], got)
		afters[i](run)
	}
}

func (b *table) note(c condition, command, outcome string) {
	for i, r := range b.rows {
		if r.witness == c.witness && r.condition == c.name && r.outcome == outcome {
			b.rows[i].commands = append(r.commands, command)
			return
		}
	}
	b.rows = append(b.rows, row{c.witness, c.name, []string{command}, outcome})
}

// prepare makes a command for the first node, with a key that it is for. What it returns
// puts the key right after it.
func (b *table) prepare(t *testing.T, what string) (args []string, after func(*command)) {
	t.Helper()
	by, other := b.nodes[0], b.nodes[1]
	spare := b.spare[len(b.spare)-1]
	switch what {
	case "cancel":
		k := b.pending(t)
		return []string{"key", "cancel", k}, func(*command) {
			if stateOnToken(t, b.token, k) != "gone" {
				onToken(t, b.token, tokenRequest{Op: "destroy", ID: k})
			}
		}
	case "purge":
		b.relabel(t, spare.ID, due())
		return []string{"key", "purge", spare.ID}, func(*command) {
			if stateOnToken(t, b.token, spare.ID) == "gone" {
				b.spare = b.spare[:len(b.spare)-1]
				b.giveUp(spare.KeyID) // no object is under it, but values of this test are
				return
			}
			b.relabel(t, spare.ID, ring)
		}
	case "disable", "destroy":
		args, back := []string{"key", "disable", spare.ID}, "enable"
		if what == "destroy" {
			args, back = []string{"key", "destroy", spare.ID, "--after", "30d"}, "restore"
		}
		return args, func(c *command) {
			if c.code == 0 {
				by.must(t, "key", back, spare.ID, "--yes")
			}
		}
	case "revoke":
		k := other.primary(t)
		return []string{"revoke", k.ID}, func(c *command) {
			if c.code == 0 {
				b.giveUp(k.KeyID)
				by.must(t, "key", "enable", k.ID, "--yes")
			}
		}
	case "rotate":
		return []string{"rotate", "--activate-in", "5s", "--method", "update"}, func(*command) {}
	}
	return []string{what, "--method", "update"}, func(*command) {}
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
	// failure is all that follows, since a list may.
	failure = regexp.MustCompile(`(?s)kekctl: error: .*`)
	// away is what a step has not reached.
	away = regexp.MustCompile(`(?m)^\s*\d+ (?:doctor|reach) +(?:waiting for )?(\S.*)$`)
	// unreachable is where etcd is not.
	unreachable = regexp.MustCompile(`127\.0\.0\.1:1\b`)
	hsm         = regexp.MustCompile(`(?i)PKCS#11|token|HSM`)
)

// reason is who speaks against a command; of a command without witnesses, who the error
// names.
func (b *table) reason(c *command) string {
	said := c.stderr.String()
	if m := finding.FindStringSubmatch(said); m != nil {
		return m[1] + " (" + m[2] + ")"
	}
	text := failure.FindString(said)
	for _, m := range away.FindAllStringSubmatch(said, -1) {
		if !strings.HasSuffix(m[1], " answers") {
			text += m[1]
		}
	}
	if unreachable.MatchString(text) {
		return "etcd"
	}
	for _, n := range b.nodes {
		switch {
		case strings.Contains(text, strings.TrimPrefix(n.kekd.URL, "http://")):
			return "node"
		case strings.Contains(text, strings.TrimPrefix(n.apiserver.URL, "https://")):
			return "apiserver"
		}
	}
	if hsm.MatchString(text) {
		return "token"
	}
	return ""
}

// page compares the table with what docs show, or writes it.
func (b *table) page(t *testing.T) {
	t.Helper()
	text := "| witness | condition | command | outcome |\n| --- | --- | --- | --- |\n"
	for _, r := range b.rows {
		text += fmt.Sprintf("| %s | %s | %s | %s |\n", r.witness, r.condition, strings.Join(r.commands, ", "), r.outcome)
	}
	if flags.update {
		if !t.Failed() {
			if err := harness.UpdatePage(witnessPage, "seen", text); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	if had, err := os.ReadFile(witnessPage); err != nil || !strings.Contains(string(had), text) {
		t.Errorf("%s differs from this run (%v); KEKD_UPDATE_DOCS=1 make chaos writes it:\n%s", witnessPage, err, text)
	}
}
