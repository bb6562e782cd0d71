package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// progress is a line on the terminal that shows how far something is. A nil
// progress shows nothing. It is for one goroutine at a time.
type progress struct {
	w            io.Writer
	what         string
	begun, shown time.Time
}

// progress makes a line, if stderr is a terminal and the output is for people.
func (a *app) progress(what string) *progress {
	if f, ok := a.stderr.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) || a.output == "json" {
		return nil
	}
	return &progress{w: a.stderr, what: what, begun: time.Now()}
}

// show draws the line anew, at most ten times a second.
func (p *progress) show(done, total int64) {
	now := time.Now()
	if p == nil || now.Sub(p.shown) < 100*time.Millisecond {
		return
	}
	p.shown = now
	_, _ = fmt.Fprint(p.w, clearLine, progressLine(p.what, done, total, now.Sub(p.begun)))
}

// clear takes the line away. Call it before anything else is written.
func (p *progress) clear() {
	if p != nil {
		_, _ = fmt.Fprint(p.w, clearLine)
	}
}

const clearLine = "\r\x1b[K"

// progressLine fits on a terminal of 80 columns, for a short what.
func progressLine(what string, done, total int64, took time.Duration) string {
	const width = 20
	total = max(total, done, 1) // objects may be added in the meantime
	full := int(width * done / total)
	line := fmt.Sprintf("%s %3d%% [%s%s] %d/%d", what, 100*done/total, strings.Repeat("#", full), strings.Repeat(".", width-full), done, total)
	if rate := float64(done) / took.Seconds(); done > 0 && took > time.Second {
		left := time.Duration(float64(total-done) / rate * float64(time.Second))
		line += fmt.Sprintf(" %.0f/s %s left", rate, left.Round(time.Second))
	}
	return line
}
