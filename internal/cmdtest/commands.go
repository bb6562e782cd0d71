package cmdtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// output is what a command prints.
type output struct{ stdout, stderr string }

// command is one of ours. An error fails the script unless "!" stands before the
// command; a usageError fails it in any case.
type command func(s *script, ts *testscript.TestScript, args []string) (output, error)

// usageError is a mistake in the script.
type usageError string

func (e usageError) Error() string { return "usage: " + string(e) }

func commands() map[string]command {
	return map[string]command{
		"token":      cmdToken,
		"keygen":     cmdKeygen,
		"keyattr":    cmdKeyAttributes,
		"setpin":     cmdSetPIN,
		"pin":        cmdPIN,
		"config":     cmdConfig,
		"start":      cmdStart,
		"quit":       cmdQuit,
		"killworker": cmdKillWorker,
		"logged":     cmdLogged,
		"readyz":     cmdReadyz,
		"get":        cmdGet,
		"kms":        cmdKMS,
		"exits":      cmdExits,
		"record":     cmdRecord,
		"leakfree":   cmdLeakFree,
		"capture":    cmdCapture,
		"json":       cmdJSON,
	}
}

// scriptCommands are our commands as testscript wants them.
func scriptCommands() map[string]func(*testscript.TestScript, bool, []string) {
	all := map[string]func(*testscript.TestScript, bool, []string){"await": await}
	for name, run := range commands() {
		all[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			out, err := run(stateOf(ts), ts, args)
			finish(ts, neg, out, err)
		}
	}
	return all
}

// finish reports how a command ended.
func finish(ts *testscript.TestScript, neg bool, out output, err error) {
	if out != (output{}) {
		_, _ = ts.Stdout().Write([]byte(out.stdout))
		_, _ = ts.Stderr().Write([]byte(out.stderr))
	}
	_, misused := errors.AsType[usageError](err)
	switch {
	case misused:
		ts.Fatalf("%v", err)
	case err == nil && neg:
		ts.Fatalf("unexpected success")
	case err != nil && !neg:
		ts.Fatalf("%v", err)
	}
}

const (
	// awaitLimit is long beside everything that is waited for, so that a busy
	// machine fails no test.
	awaitLimit = 30 * time.Second
	// programLimit is long beside kekctl verify, which takes longest.
	programLimit = 60 * time.Second
	pollPause    = 25 * time.Millisecond
)

// await repeats a command until it passes.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 || commands()[args[0]] == nil {
		ts.Fatalf("usage: await COMMAND [ARGS]")
	}
	run := commands()[args[0]]
	var out output
	err := poll(func() (err error) {
		out, err = run(stateOf(ts), ts, args[1:])
		return err
	})
	finish(ts, false, out, err)
}

// poll repeats try until it returns nil or a usageError, or awaitLimit has
// passed, and returns its last error.
func poll(try func() error) error {
	deadline := time.Now().Add(awaitLimit)
	for {
		err := try()
		if _, misused := errors.AsType[usageError](err); err == nil || misused {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %s: %w", awaitLimit, err)
		}
		time.Sleep(pollPause)
	}
}

// cmdExits runs a program and checks its exit code, where testscript knows
// failure and success only. The output is testscript's to keep.
func cmdExits(_ *script, ts *testscript.TestScript, args []string) (output, error) {
	if len(args) < 2 {
		return output{}, usageError("exits CODE PROGRAM [ARGS]")
	}
	want, err := strconv.Atoi(args[0])
	if err != nil {
		return output{}, usageError("exits: " + err.Error())
	}
	code, err := execute(ts, args[1:])
	if err == nil && code != want {
		err = fmt.Errorf("exit code %d, want %d", code, want)
	}
	return output{}, err
}

// execute runs a program and returns its exit code, 124 for one that does not
// end: a daemon that starts where it should refuse must not hold up all tests.
func execute(ts *testscript.TestScript, args []string) (int, error) {
	limit := strconv.Itoa(int(programLimit.Seconds()))
	// In the foreground, since kekctl may ask at a terminal.
	err := ts.Exec("timeout", append([]string{"--foreground", "--kill-after=5", limit}, args...)...)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// recordedFile is where cmdRecord keeps outputs.
const recordedFile = "recorded.out"

func cmdRecord(s *script, ts *testscript.TestScript, args []string) (output, error) {
	if len(args) == 0 {
		return output{}, usageError("record PROGRAM [ARGS]")
	}
	if _, err := execute(ts, args); err != nil {
		return output{}, err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, recordedFile), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return output{}, err
	}
	_, err = fmt.Fprintf(f, "%s\n%s\n", ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	return output{}, errors.Join(err, f.Close())
}

func cmdCapture(_ *script, ts *testscript.TestScript, args []string) (output, error) {
	if len(args) != 3 {
		return output{}, usageError("capture VARIABLE FILE PATTERN")
	}
	re, err := regexp.Compile("(?m)" + args[2])
	if err != nil || re.NumSubexp() != 1 {
		return output{}, usageError("capture: the pattern must have one group")
	}
	text := ts.ReadFile(args[1])
	m := re.FindStringSubmatch(text)
	if m == nil {
		return output{}, fmt.Errorf("no match for %q in\n%s", args[2], text)
	}
	ts.Setenv(args[0], m[1])
	return output{}, nil
}

func cmdJSON(_ *script, ts *testscript.TestScript, args []string) (output, error) {
	if len(args) != 1 {
		return output{}, usageError("json FILE")
	}
	var v any
	return output{}, json.Unmarshal([]byte(ts.ReadFile(args[0])), &v)
}

// tail returns the end of a text in whole lines, at most a few kilobytes.
func tail(text []byte) []byte {
	const limit = 8 << 10
	if len(text) <= limit {
		return text
	}
	text = text[len(text)-limit:]
	if i := bytes.IndexByte(text, '\n'); i >= 0 {
		text = text[i+1:]
	}
	return text
}
