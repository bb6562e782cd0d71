package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"kekd/internal/admin/keychange"
)

// confirm asks before something is done.
func (a *app) confirm(ctx context.Context, yes bool) error {
	if yes {
		return nil
	}
	answer, err := a.ask(ctx, "Go on? [y/N] ")
	if err != nil {
		return err
	}
	if s := strings.ToLower(answer); s != "y" && s != "yes" {
		return codeError{exitFailed, "nothing was done"}
	}
	return nil
}

// repeat has the administrator enter a text again, for what overrules somebody.
func (a *app) repeat(ctx context.Context, yes bool, text string) error {
	if yes {
		return nil
	}
	answer, err := a.ask(ctx, fmt.Sprintf("Enter %s again to overrule that: ", text))
	if err != nil {
		return err
	}
	if !strings.EqualFold(answer, text) {
		return codeError{exitFailed, fmt.Sprintf("got %q; nothing was done", answer)}
	}
	return nil
}

// ask reads the answer to a question from the terminal.
func (a *app) ask(ctx context.Context, question string) (string, error) {
	f, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return "", codeError{exitUsage, "there is no terminal to ask on; pass --yes to continue without asking"}
	}
	_, _ = fmt.Fprint(a.stderr, question)
	answer, err := readLine(ctx, f)
	if err != nil {
		_, _ = fmt.Fprintln(a.stderr) // the cursor is still behind the question
	}
	switch {
	case ctx.Err() != nil:
		return "", keychange.ErrInterrupted
	case errors.Is(err, io.EOF):
		return "", codeError{exitFailed, "no answer; nothing was done"}
	}
	return strings.TrimSpace(answer), err
}

// promptPoll is how often a prompt looks whether the command was interrupted.
const promptPoll = 50 * time.Millisecond

// readLine reads a line from a terminal, until ctx ends. It reads nothing that comes
// after the line, and nothing at all before there is something: a read that is under
// way cannot be taken back, and would eat what is typed for the next program.
func readLine(ctx context.Context, f *os.File) (string, error) {
	var line []byte
	for {
		if err := context.Cause(ctx); err != nil {
			return "", err
		}
		ready := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}} //nolint:gosec // G115: a file descriptor
		n, err := unix.Poll(ready, int(promptPoll.Milliseconds()))
		if n <= 0 || err != nil {
			if err != nil && !errors.Is(err, unix.EINTR) {
				return "", fmt.Errorf("wait for an answer: %w", err)
			}
			continue
		}
		one := make([]byte, 1)
		switch n, err := f.Read(one); {
		case n == 0 && err == nil, errors.Is(err, unix.EIO): // the terminal is gone
			return "", io.EOF
		case n == 0:
			return "", err
		case one[0] == '\n':
			return string(line), nil
		}
		line = append(line, one[0])
	}
}
