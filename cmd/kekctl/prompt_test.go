package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kekd/internal/admin/keychange"
)

// terminal opens a pseudo-terminal: what is written to one end is typed on the other.
func terminal(t *testing.T) (keyboard, tty *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keyboard.Close() })
	fd := int(keyboard.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tty.Close() })
	return keyboard, tty
}

func TestConfirm(t *testing.T) {
	const controlD = "\x04"
	for typed, want := range map[string]string{
		"y\n":             "",
		"Yes\n":           "",
		"n\n":             "nothing was done",
		"\n":              "nothing was done",
		"yy\n":            "nothing was done",
		controlD:          "no answer; nothing was done",
		"y" + controlD:    "", // as far as it was typed, then a newline
		"next\x15y\nmore": "", // control-U takes it back
	} {
		t.Run(fmt.Sprintf("%q", typed), func(t *testing.T) {
			keyboard, tty := terminal(t)
			var notes strings.Builder
			a := &app{stdin: tty, stderr: &notes}
			if typed == "y"+controlD {
				typed += "\n"
			}
			if _, err := keyboard.WriteString(typed); err != nil {
				t.Fatal(err)
			}
			err := a.confirm(t.Context(), false)
			if got := said(err); got != want {
				t.Errorf("%q, want %q", got, want)
			}
			if !strings.HasPrefix(notes.String(), "Go on? [y/N] ") {
				t.Errorf("it asks %q", notes.String())
			}
		})
	}
}

func said(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// An interruption ends the question at once, and what is typed next is for the shell.
func TestConfirmInterrupted(t *testing.T) {
	keyboard, tty := terminal(t)
	a := &app{stdin: tty, stderr: new(strings.Builder)}
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan error, 1)
	go func() { asked <- a.confirm(ctx, false) }()
	time.AfterFunc(100*time.Millisecond, cancel)
	select {
	case err := <-asked:
		if !errors.Is(err, keychange.ErrInterrupted) {
			t.Errorf("%v, want %v", err, keychange.ErrInterrupted)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it still asks")
	}
	if _, err := keyboard.WriteString("y\nls\n"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"y", "ls"} {
		if got, err := readLine(t.Context(), tty); err != nil || got != want {
			t.Errorf("the next line is %q, %v, want %q", got, err, want)
		}
	}
}

func TestRepeat(t *testing.T) {
	for typed, want := range map[string]string{"0a1B\n": "", "y\n": `got "y"; nothing was done`} {
		keyboard, tty := terminal(t)
		a := &app{stdin: tty, stderr: new(strings.Builder)}
		if _, err := keyboard.WriteString(typed); err != nil {
			t.Fatal(err)
		}
		if got := said(a.repeat(t.Context(), false, "0a1b")); got != want {
			t.Errorf("%q: %q, want %q", typed, got, want)
		}
	}
}
