package admintest

import (
	"strings"
	"sync"
)

// Lines collects what a command says to the administrator. It is safe for concurrent
// use.
type Lines struct {
	mu    sync.Mutex
	lines []string // guarded by mu
}

// Add adds a line.
func (l *Lines) Add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
}

// Text is all that was said.
func (l *Lines) Text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}
