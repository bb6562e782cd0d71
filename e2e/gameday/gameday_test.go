package gameday

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// only is for whoever works on one page.
var only = flag.String("pages", "", "walk these alone, a list with commas")

// updateVariable, when set, has the game day write its log into docs/gameday.md.
const updateVariable = "KEKD_UPDATE_DOCS"

const (
	// showsWithin bounds the time until a command shows what the page shows.
	showsWithin = 3 * time.Minute
	// pause is the time between two looks.
	pause = 300 * time.Millisecond
)

// scene is the harm that a page is about.
type scene struct {
	page string
	// injected says what is done, for the log.
	injected string

	options harness.KekdOptions
	faults  bool // the token stands behind the fault-injecting module
	noKey   bool // the token has no key yet
	// before prepares the node, before anything is started.
	before func(*testing.T, *node)
	// inject does the harm.
	inject func(*testing.T, *node)
	// broken requires that the harm is there, by other means than the page's.
	broken func(*testing.T, *node)
	// played: there is no harm, only what the page's commands would see of it.
	played bool
	// acts are what happens at the page's marks.
	acts map[string]func(*testing.T, *node)
	// typed is what is typed at the page's commands, by the command.
	typed map[string]func(*node) string
	// well requires that all is as it should be; nil is the node's own requireWell.
	well func(*testing.T, *node)
	// planned: nothing is broken, so what confirms holds from the start.
	planned bool
	// fresh: well is asked of a kube-apiserver that has started anew, too.
	fresh bool
}

// walked is a row of the log.
type walked struct {
	page, injected    string
	commands          int
	confirmed, mended time.Duration
	acts, standins    []string
	unrun             map[string]int
}

// TestGameDay walks every page.
func TestGameDay(t *testing.T) {
	names, err := pages()
	if err != nil || len(names) == 0 {
		t.Fatalf("docs/runbooks: %v %v", names, err)
	}
	byPage := map[string]*scene{}
	for _, s := range scenes() {
		if byPage[s.page] != nil {
			t.Errorf("two scenes are called %s", s.page)
		}
		byPage[s.page] = s
		if !slices.Contains(names, s.page) {
			t.Errorf("docs/runbooks has no page %s", s.page)
		}
	}
	if os.Getuid() != 0 {
		t.Fatal("run this as root, as the administrator of a node is: it mounts a small file system, and looks at who calls")
	}
	var mu sync.Mutex
	var log []walked
	begun := time.Now()
	t.Run("pages", func(t *testing.T) {
		for _, name := range names {
			if *only != "" && !slices.Contains(strings.Split(*only, ","), name) {
				continue
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				p, err := readPage(name)
				if err != nil {
					t.Fatal(err)
				}
				s := byPage[name]
				if s == nil {
					t.Fatalf("no scene walks the page %s", name)
				}
				w := walk(t, s, p)
				mu.Lock()
				defer mu.Unlock()
				log = append(log, w)
			})
		}
	})
	t.Logf("the game day took %v", time.Since(begun).Round(time.Second))
	if os.Getenv(updateVariable) != "" && *only == "" && !t.Failed() {
		if err := harness.UpdatePage(filepath.Join(runbooks, "..", "gameday.md"), "game-day", table(log)); err != nil {
			t.Error(err)
		}
	}
}

// walk walks one page.
func walk(t *testing.T, s *scene, p *page) walked {
	t.Helper()
	for _, st := range p.steps {
		if st.act != "" && s.acts[st.act] == nil {
			t.Fatalf("%s:%d: the scene has no act %q", p.name, st.line, st.act)
		}
	}
	for act := range s.acts {
		if !slices.ContainsFunc(p.steps, func(st step) bool { return st.act == act }) {
			t.Fatalf("%s has no mark for the act %q", p.name, act)
		}
	}
	if s.broken == nil && !s.played {
		t.Fatalf("the scene of %s does not see the harm by other means than the page's", p.name)
	}
	n := newNode(t, s)
	w := walker{t: t, s: s, p: p, n: n, values: values{}}

	if !s.planned && w.shown(confirm) {
		t.Fatalf("%s: %q shows what the page shows while all is well", p.name, confirm)
	}
	t.Logf("HARM: %s", s.injected)
	s.inject(t, n)
	begun := time.Now()
	w.section(confirm)
	out := walked{page: s.page, injected: s.injected, unrun: p.unrun, confirmed: time.Since(begun)}
	if !s.played {
		s.broken(t, n)
	}
	if w.shown(over) {
		t.Fatalf("%s: %q shows what the page shows while the harm is there", p.name, over)
	}
	begun = time.Now()
	w.section(todo)
	w.section(over)
	out.mended = time.Since(begun)
	well := s.well
	if well == nil {
		well = func(t *testing.T, n *node) { n.requireWell(t) }
	}
	well(t, n)
	if s.fresh {
		n.restartAPIServer(t)
		well(t, n)
	}
	want := 0
	for _, st := range p.steps {
		if st.act != "" {
			out.acts = append(out.acts, st.act)
		} else {
			want++
		}
	}
	if out.commands = w.ran; out.commands != want {
		t.Errorf("%s: %d commands of %d were run", p.name, out.commands, want)
	}
	out.standins = slices.Sorted(maps.Keys(n.shell.used))
	t.Logf("WELL: confirmed after %.1f s, mended after %.1f s, %d commands", out.confirmed.Seconds(), out.mended.Seconds(), out.commands)
	return out
}

// walker is where the walk is.
type walker struct {
	t      *testing.T
	s      *scene
	p      *page
	n      *node
	values values
	ran    int
}

// shown runs the commands of a section that looks, once each, and tells whether they all
// show what the page shows. Nothing that they show is kept.
func (w *walker) shown(section string) bool {
	w.t.Helper()
	v := maps.Clone(w.values)
	for _, st := range w.p.of(section) {
		if st.want == "" || st.act != "" {
			continue
		}
		command, _ := v.fill(st.command)
		out, _ := w.n.shell.run(w.t, command, "")
		if v.match(st.want, out) != nil {
			return false
		}
	}
	return true
}

// section does what a section says. What looks is repeated until it shows what the page
// shows; in "What to do" all else is done once, and must succeed.
func (w *walker) section(section string) {
	w.t.Helper()
	for _, st := range w.p.of(section) {
		if st.act != "" {
			w.t.Logf("%s:%d: ACT: %s", w.p.name, st.line, st.act)
			w.s.acts[st.act](w.t, w.n)
			continue
		}
		command, unknown := w.values.fill(st.command)
		if len(unknown) > 0 {
			w.t.Fatalf("%s:%d: the page has not shown what stands for %v in: %s", w.p.name, st.line, unknown, st.command)
		}
		w.step(st, command, section != todo || looks(command))
		w.ran++
	}
}

func (w *walker) step(st step, command string, again bool) {
	w.t.Helper()
	typed := ""
	if strings.Contains(st.want, prompt+"y") {
		typed = "y\n"
	}
	if f := w.s.typed[st.command]; f != nil {
		typed = f(w.n)
	}
	begun := time.Now()
	for {
		out, ok := w.n.shell.run(w.t, command, typed)
		err := w.values.match(st.want, out)
		if st.want == "" {
			err = nil
			if !ok {
				err = fmt.Errorf("it fails:\n%s", indented(out))
			}
		}
		if err == nil && st.section == todo && !again && !ok {
			err = fmt.Errorf("it shows what the page shows, and fails:\n%s", indented(out))
		}
		if err == nil {
			w.t.Logf("%s:%d: $ %s\n%s", w.p.name, st.line, command, indented(out))
			return
		}
		if !again || time.Since(begun) > showsWithin {
			w.t.Fatalf("%s:%d: after %v\n$ %s\n%v", w.p.name, st.line, time.Since(begun).Round(time.Second), command, err)
		}
		time.Sleep(pause)
	}
}

// looks tells whether a command may be repeated: it changes nothing.
func looks(command string) bool {
	for _, prefix := range []string{
		"kekctl status", "kekctl config check", "kekctl doctor", "kekctl inventory", "kekctl key list", "kekctl audit verify", "kekctl audit query",
		"kubectl get", "curl -s http://127.0.0.1:8780/", "journalctl", "systemctl is-active", "systemctl status",
		"grep ", "ps ", "ss ", "df ", "ls ", "printf ", "stat ",
	} {
		if strings.HasPrefix(command, prefix) {
			return true
		}
	}
	return false
}

// table is the log as a table.
func table(log []walked) string {
	slices.SortFunc(log, func(a, b walked) int { return strings.Compare(a.page, b.page) })
	var b strings.Builder
	b.WriteString("| page | injected | commands | confirmed after | well after | played by the scene | stand-ins | not run |\n| --- | --- | ---: | ---: | ---: | --- | --- | --- |\n")
	for _, w := range log {
		var unrun []string
		for _, language := range slices.Sorted(maps.Keys(w.unrun)) {
			unrun = append(unrun, fmt.Sprintf("%d %s", w.unrun[language], language))
		}
		fmt.Fprintf(&b, "| [%s](runbooks/%s.md) | %s | %d | %.1f s | %.1f s | %s | %s | %s |\n", w.page, w.page, w.injected, w.commands,
			w.confirmed.Seconds(), w.mended.Seconds(), strings.Join(w.acts, "; "), strings.Join(w.standins, ", "), strings.Join(unrun, ", "))
	}
	return b.String()
}

func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); slices.Contains(standins, name) {
		os.Exit(standin(append([]string{name}, os.Args[1:]...)))
	}
	if misbehave := strangers[filepath.Base(os.Args[0])]; misbehave != nil {
		fmt.Fprintln(os.Stderr, misbehave(context.Background(), os.Args[1]))
		os.Exit(1)
	}
	flag.Parse()
	os.Exit(m.Run())
}
