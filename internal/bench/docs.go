package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

// Between these lines of a page stand the tables; nothing else of it is touched.
const (
	beginMarker = "<!-- bench:begin -->"
	endMarker   = "<!-- bench:end -->"
)

// writeCommand writes the Markdown of a report that was stored, to stdout or into
// a page.
func writeCommand(_ context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("bench write", flag.ContinueOnError)
	fs.SetOutput(stderr)
	page := fs.String("page", "", "`file` to write into, between "+beginMarker+" and "+endMarker)
	err := parse(fs, args, stderr, func() error {
		if fs.NArg() != 1 {
			return errors.New("want one argument, the file that bench report has stored")
		}
		return nil
	})
	if err != nil {
		return err
	}
	r, err := loadReport(fs.Arg(0))
	if err != nil {
		return err
	}
	if *page == "" {
		return r.writeMarkdown(stdout)
	}
	var b strings.Builder
	if err := r.writeMarkdown(&b); err != nil {
		return err
	}
	old, err := os.ReadFile(*page)
	if err != nil {
		return err
	}
	text, err := replaceBetween(string(old), b.String())
	if err != nil {
		return fmt.Errorf("write into %s: %w", *page, err)
	}
	return os.WriteFile(*page, []byte(text), 0o644) //nolint:gosec // G306: a page for all to read
}

// replaceBetween puts content between the markers.
func replaceBetween(page, content string) (string, error) {
	before, rest, begun := strings.Cut(page, beginMarker+"\n")
	_, after, ended := strings.Cut(rest, endMarker)
	if !begun || !ended {
		return "", fmt.Errorf("it has no lines %s and %s", beginMarker, endMarker)
	}
	return before + beginMarker + "\n\n" + content + "\n" + endMarker + after, nil
}
