package gameday

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// commandWithin bounds one command of a page. The longest is a whole rotation, which
// waits up to three minutes for witnesses that lag, in its last step alone.
const commandWithin = 6 * time.Minute

// shell runs the commands of a page as root on a control-plane node would.
type shell struct {
	// path is the directory with kekctl, kubectl and the stand-ins.
	path string
	env  []string
	// places maps the paths and addresses that the pages name to those of the harness;
	// the first that fits wins.
	places [][2]string
	// calls come from the stand-ins, to be served on the test's own goroutine.
	calls chan call
	// answer serves a call.
	answer func(args []string) (out string, code int)
	// used are the stand-ins that were called.
	used map[string]bool
}

// call is one run of a stand-in.
type call struct {
	args   []string
	answer chan<- answered
}

type answered struct {
	Out  string
	Code int
}

// standins are the programs of a node that no harness has: its service manager, journal
// and container runtime. They act on the harness's processes.
var standins = []string{"systemctl", "journalctl", "crictl"}

// standinSocket names the variable with the socket that the stand-ins ask.
const standinSocket = "KEKD_GAMEDAY_SOCKET"

// newShell makes a shell with its directory below dir.
func newShell(t *testing.T, dir string, answer func([]string) (string, int)) *shell {
	t.Helper()
	s := &shell{
		path: filepath.Join(dir, "bin"), calls: make(chan call), answer: answer, used: map[string]bool{},
	}
	home := filepath.Join(dir, "home")
	for _, d := range []string{s.path, home} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range standins {
		if err := os.Symlink(self, filepath.Join(s.path, name)); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(dir, "standins.sock")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var args []string
		if err := json.NewDecoder(r.Body).Decode(&args); err != nil || len(args) == 0 {
			http.Error(w, "want a command", http.StatusBadRequest)
			return
		}
		reply := make(chan answered, 1)
		select {
		case s.calls <- call{args, reply}:
			_ = json.NewEncoder(w).Encode(<-reply)
		case <-r.Context().Done():
		}
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	s.env = append(os.Environ(),
		"PATH="+s.path+":"+os.Getenv("PATH"), "HOME="+home, "LC_ALL=C.UTF-8", "TZ=UTC", standinSocket+"="+socket)
	return s
}

// program puts a script into the PATH.
func (s *shell) program(t *testing.T, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.path, name), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
}

// standin is what a stand-in does: it asks the test. It returns the exit code.
func standin(args []string) int {
	b, err := json.Marshal(args)
	if err != nil {
		panic(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", os.Getenv(standinSocket))
	}}}
	resp, err := client.Post("http://node/", "application/json", bytes.NewReader(b))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer resp.Body.Close()
	var a answered
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_, _ = io.WriteString(os.Stdout, a.Out)
	return a.Code
}

// here puts the harness's places for those in a command.
func (s *shell) here(command string) string {
	for _, p := range s.places {
		command = strings.ReplaceAll(command, p[0], p[1])
	}
	return command
}

// there puts the page's places into what a command has printed.
func (s *shell) there(out string) string {
	longest := slices.Clone(s.places)
	slices.SortStableFunc(longest, func(a, b [2]string) int { return len(b[1]) - len(a[1]) })
	for _, p := range longest {
		out = strings.ReplaceAll(out, p[1], p[0])
	}
	return out
}

// prompt is what kekctl asks on a terminal.
const prompt = "Go on? [y/N] "

// run runs a command with what is typed into its terminal, and returns all that it
// printed and whether it ended with 0. What is typed at kekctl's question is shown behind
// it, as a terminal does.
func (s *shell) run(t *testing.T, command, typed string) (out string, ok bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandWithin)
	defer cancel()
	master, terminal := openTerminal(t)
	defer master.Close()
	if _, err := master.WriteString(typed); err != nil {
		t.Fatalf("type: %v", err)
	}
	var printed bytes.Buffer
	cmd := exec.CommandContext(ctx, "bash", "-o", "pipefail", "-c", s.here(command))
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = s.env, terminal, &printed, &printed
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Start(); err != nil {
		t.Fatalf("start a shell: %v", err)
	}
	_ = terminal.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case c := <-s.calls:
			s.used[c.args[0]] = true
			out, code := s.answer(c.args)
			c.answer <- answered{out, code}
		case err := <-ended:
			if ctx.Err() != nil {
				t.Fatalf("%s: not within %v\n%s", command, commandWithin, indented(printed.String()))
			}
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatalf("%s: %v", command, err)
			}
			if answer, _, ok := strings.Cut(typed, "\n"); ok {
				return s.there(strings.ReplaceAll(printed.String(), prompt, prompt+answer+"\n")), err == nil
			}
			return s.there(printed.String()), err == nil
		}
	}
}

// openTerminal makes a terminal that does not echo: what is written to its master is
// what somebody types.
func openTerminal(t *testing.T) (master, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatalf("make a terminal: %v", err)
	}
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatalf("make a terminal: %v", err)
	}
	settings, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err == nil {
		settings.Lflag &^= unix.ECHO
		err = unix.IoctlSetTermios(int(terminal.Fd()), unix.TCSETS, settings)
	}
	if err != nil {
		t.Fatalf("turn off the echo of a terminal: %v", err)
	}
	return master, terminal
}
