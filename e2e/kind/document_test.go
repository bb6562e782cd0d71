package kind_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// document is docs/install.md: the tests run its commands out of it, so that what a
// reader copies is what was run. A block of commands is named in its first line,
// after the language: ```sh step=NAME.
type document struct {
	names  []string
	blocks map[string]string

	mu  sync.Mutex
	ran map[string]bool // guarded by mu
}

// guide is the same for all tests, so that TestMain can tell which steps none ran.
var guide = sync.OnceValues(func() (*document, error) {
	b, err := os.ReadFile(filepath.Join(repository, "docs", "install.md"))
	if err != nil {
		return nil, err
	}
	d := &document{ran: map[string]bool{}, blocks: map[string]string{}}
	for _, m := range block.FindAllStringSubmatch(string(b), -1) {
		if _, twice := d.blocks[m[1]]; twice {
			return nil, fmt.Errorf("docs/install.md has two steps %q", m[1])
		}
		d.names = append(d.names, m[1])
		d.blocks[m[1]] = m[2]
	}
	return d, nil
})

var block = regexp.MustCompile("(?ms)^ *```sh step=([a-z0-9-]+)\n(.*?)^ *```$")

func TestMain(m *testing.M) {
	code := m.Run()
	if flag.Lookup("test.run").Value.String() == "" && code == 0 {
		d, err := guide()
		if err != nil {
			panic(err)
		}
		if left := d.left(); len(left) > 0 {
			fmt.Printf("FAIL: docs/install.md has steps that no test ran: %v\n", left)
			code = 1
		}
	}
	os.Exit(code)
}

// step returns the commands of a step of docs/install.md.
func step(tb testing.TB, name string) string {
	tb.Helper()
	d, err := guide()
	must(tb, err)
	script, ok := d.blocks[name]
	if !ok {
		tb.Fatalf("docs/install.md has no step %q, only %v", name, d.names)
	}
	d.mu.Lock()
	d.ran[name] = true
	d.mu.Unlock()
	return script
}

// left lists the steps that nobody ran.
func (d *document) left() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(d.names), func(n string) bool { return d.ran[n] })
}

// Every block of commands has a name, so that none is left out unseen.
func TestEveryCommandIsAStep(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join(repository, "docs", "install.md"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if l := strings.TrimSpace(line); strings.HasPrefix(l, "```sh") && !regexp.MustCompile("^```sh step=(kubeadm|kind|systemd)-[a-z0-9-]+$").MatchString(l) {
			t.Errorf("docs/install.md: a block of commands without a step's name: %s", l)
		}
	}
}
