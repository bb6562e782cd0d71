package gameday

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// runbooks is the directory of the pages.
const runbooks = "../../docs/runbooks"

// The sections that every page has, in this order.
const (
	shows   = "How it shows"
	confirm = "How to confirm"
	todo    = "What to do"
	over    = "How to know that it is over"
)

// page is a page of docs/runbooks.
type page struct {
	name  string // without .md
	steps []step
	// unrun counts the blocks of each language that no shell runs.
	unrun map[string]int
}

// step is a command of a page with what it shows, or an act that the scene plays.
type step struct {
	section string
	line    int
	command string
	want    string // lines; empty if the page shows nothing
	act     string
}

var (
	headingPattern = regexp.MustCompile(`^## (.*)$`)
	actPattern     = regexp.MustCompile(`^ *<!-- game day: (.*) -->$`)
	fencePattern   = regexp.MustCompile("^( *)```([a-z]*)$")
)

// pages lists the names of all pages but the index.
func pages() ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(runbooks, "*.md"))
	var names []string
	for _, path := range paths {
		if name := strings.TrimSuffix(filepath.Base(path), ".md"); name != "README" {
			names = append(names, name)
		}
	}
	return names, err
}

func readPage(name string) (*page, error) {
	b, err := os.ReadFile(filepath.Join(runbooks, name+".md"))
	if err != nil {
		return nil, err
	}
	return parsePage(name, string(b))
}

// parsePage refuses a page that is not built as all are.
func parsePage(name, text string) (*page, error) {
	p := &page{name: name, unrun: map[string]int{}}
	var sections []string
	section, lines := "", strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		if m := headingPattern.FindStringSubmatch(lines[i]); m != nil {
			section = m[1]
			sections = append(sections, section)
		}
		if m := actPattern.FindStringSubmatch(lines[i]); m != nil {
			p.steps = append(p.steps, step{section: section, line: i + 1, act: m[1]})
		}
		m := fencePattern.FindStringSubmatch(lines[i])
		if m == nil {
			if strings.HasPrefix(lines[i], "    ") {
				return nil, fmt.Errorf("%s:%d: an indented block: commands belong into ```console", name, i+1)
			}
			continue
		}
		begin := i + 1
		for i++; ; i++ {
			if i == len(lines) {
				return nil, fmt.Errorf("%s:%d: a block without an end", name, begin)
			}
			if lines[i] == m[1]+"```" {
				break
			}
		}
		if m[2] != "console" {
			p.unrun[m[2]]++
			continue
		}
		steps, err := parseConsole(section, begin+1, m[1], lines[begin:i])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		p.steps = append(p.steps, steps...)
	}
	if want := []string{shows, confirm, todo, over}; !slices.Equal(sections, want) {
		return nil, fmt.Errorf("%s has the sections %q, want %q", name, sections, want)
	}
	for _, s := range []string{confirm, over} {
		if !slices.ContainsFunc(p.steps, func(st step) bool { return st.section == s && st.want != "" }) {
			return nil, fmt.Errorf("%s: %q shows no command with what it prints", name, s)
		}
	}
	return p, nil
}

// parseConsole reads the commands of a block; first is the number of its first line.
func parseConsole(section string, first int, indent string, lines []string) ([]step, error) {
	var steps []step
	for i, line := range lines {
		line = strings.TrimPrefix(line, indent)
		command, isCommand := strings.CutPrefix(line, "$ ")
		switch {
		case isCommand:
			steps = append(steps, step{section: section, line: first + i, command: command})
		case len(steps) == 0:
			return nil, fmt.Errorf("line %d: the block begins without a command", first+i)
		case steps[len(steps)-1].want == "" && strings.HasPrefix(line, "> "):
			steps[len(steps)-1].command += "\n" + strings.TrimPrefix(line, "> ")
		default:
			steps[len(steps)-1].want += line + "\n"
		}
	}
	return steps, nil
}

// of returns the steps of a section.
func (p *page) of(section string) []step {
	var steps []step
	for _, s := range p.steps {
		if s.section == section {
			steps = append(steps, s)
		}
	}
	return steps
}
