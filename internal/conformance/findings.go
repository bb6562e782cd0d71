package conformance

import (
	"fmt"
	"strings"
	"sync"
)

// findings collects what one check saw. It is safe for concurrent use.
type findings struct {
	mu    sync.Mutex
	fails []string // guarded by mu
	warns []string // guarded by mu
}

func (f *findings) failf(format string, args ...any) { f.addf(Fail, format, args...) }
func (f *findings) warnf(format string, args ...any) { f.addf(Warn, format, args...) }

// addf notes a problem; an OK is no problem and is dropped.
func (f *findings) addf(o Outcome, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch o {
	case Fail:
		f.fails = append(f.fails, text)
	case Warn:
		f.warns = append(f.warns, text)
	}
}

// result returns the worst outcome and a line on it, or OK with okDetail.
// Warnings are left out beside failures: first things first.
func (f *findings) result(okDetail string) (Outcome, string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case len(f.fails) > 0:
		return Fail, join(f.fails)
	case len(f.warns) > 0:
		return Warn, join(f.warns)
	default:
		return OK, okDetail
	}
}

// join shows the first few problems and counts the rest: a plugin that accepts
// one damaged byte often accepts all of them.
func join(problems []string) string {
	const shown = 3
	if len(problems) <= shown {
		return strings.Join(problems, "; ")
	}
	return fmt.Sprintf("%s; and %d more like these", strings.Join(problems[:shown], "; "), len(problems)-shown)
}
