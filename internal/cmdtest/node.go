package cmdtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"kekd/internal/httpapi"
)

// node is a kekd of the script: a configuration, a log, and a process while it runs.
type node struct {
	name    string
	dir     string
	address string // of the HTTP endpoint

	run *run // the newest run; nil before the first
}

// run is one life of a daemon.
type run struct {
	pid    int
	logged int64            // size of the log when it began
	exited chan struct{}    // closed when it was waited for
	state  *os.ProcessState // read after exited is closed
}

func (n *node) config() string  { return filepath.Join(n.dir, n.name+".yaml") }
func (n *node) socket() string  { return filepath.Join(n.dir, "run", n.name+".sock") }
func (n *node) logName() string { return n.name + ".log" }

func (n *node) running() bool {
	if n.run == nil {
		return false
	}
	select {
	case <-n.run.exited:
		return false
	default:
		return true
	}
}

// log returns what the newest run has logged.
func (n *node) log() ([]byte, error) {
	if n.run == nil {
		return nil, usageError("start comes first")
	}
	text, err := os.ReadFile(filepath.Join(n.dir, n.logName()))
	if err != nil {
		return nil, err
	}
	return text[min(n.run.logged, int64(len(text))):], nil
}

func (n *node) logTail() []byte {
	text, err := n.log()
	if err != nil {
		return []byte(err.Error())
	}
	return tail(text)
}

func cmdStart(s *script, ts *testscript.TestScript, args []string) (output, error) {
	n := s.node(ts)
	if len(args) != 0 || n.running() {
		return output{}, usageError("start, when it does not run")
	}
	env := []string{"PATH=" + ts.Getenv("PATH"), "GORACE=" + ts.Getenv("GORACE")}
	if err := n.start(env); err != nil {
		return output{}, err
	}
	return output{}, poll(func() error {
		if !n.running() {
			return usageError(fmt.Sprintf("start: kekd ended, %v:\n%s", n.run.state, n.logTail()))
		}
		return n.match("kekd started")
	})
}

func (n *node) start(env []string) error {
	log, err := os.OpenFile(filepath.Join(n.dir, n.logName()), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	info, err := log.Stat()
	if err != nil {
		return err
	}
	path, err := exec.LookPath("kekd")
	if err != nil {
		return err
	}
	cmd := exec.Command(path, "serve", "--config", n.config())
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = n.dir, env, log, log
	// A group of its own, so that its worker can be found. It must not outlive
	// the tests, whatever ends them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	r := &run{logged: info.Size(), exited: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The kernel sends Pdeathsig when the thread that started the child ends,
		// so this goroutine keeps its thread as long as the child lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			r.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			_ = cmd.Wait() // the state says it all
			r.state = cmd.ProcessState
			close(r.exited)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	n.run = r
	return nil
}

func cmdQuit(s *script, ts *testscript.TestScript, args []string) (output, error) {
	signals := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL}
	sig := syscall.SIGTERM
	if len(args) == 1 {
		sig = signals[args[0]]
	}
	n := s.node(ts)
	if len(args) > 1 || sig == 0 || !n.running() {
		return output{}, usageError("quit [TERM|INT|KILL], when it runs")
	}
	if err := syscall.Kill(n.run.pid, sig); err != nil {
		return output{}, err
	}
	select {
	case <-n.run.exited:
	case <-time.After(awaitLimit):
		return output{}, fmt.Errorf("kekd still runs %s after %v", awaitLimit, sig)
	}
	if sig != syscall.SIGKILL && !n.run.state.Success() {
		return output{}, fmt.Errorf("kekd after %v: %v\n%s", sig, n.run.state, n.logTail())
	}
	return output{}, poll(func() error {
		if left := group(n.run.pid); len(left) > 0 {
			return fmt.Errorf("kekd has left the processes %v", left)
		}
		return nil
	})
}

// end ends whatever is left of the daemon.
func (n *node) end() {
	if n.run == nil {
		return
	}
	if n.running() {
		_ = syscall.Kill(n.run.pid, syscall.SIGKILL)
		<-n.run.exited
	}
	for _, pid := range group(n.run.pid) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// group lists the living processes of a group. Zombies do not count: in a
// container nobody may collect them.
func group(pgid int) []int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	var pids []int
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// pid (name) state ppid pgrp ...; the name may hold anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 3 || fields[0] == "Z" || fields[2] != strconv.Itoa(pgid) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// cmdKillWorker kills the worker that /status names and waits for its successor.
func cmdKillWorker(s *script, ts *testscript.TestScript, _ []string) (output, error) {
	n := s.node(ts)
	before, err := n.workerPID()
	if err != nil {
		return output{}, err
	}
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		return output{}, fmt.Errorf("kill the worker %d: %w", before, err)
	}
	return output{}, poll(func() error {
		after, err := n.workerPID()
		if err == nil && after == before {
			err = errors.New("the dead worker is still there")
		}
		return err
	})
}

func (n *node) workerPID() (int, error) {
	_, body, err := n.get("/status")
	if err != nil {
		return 0, err
	}
	var status httpapi.Status
	if err := json.Unmarshal(body, &status); err != nil {
		return 0, err
	}
	if status.Token == nil || status.Token.WorkerPID == 0 {
		return 0, errors.New("kekd has no worker")
	}
	return status.Token.WorkerPID, nil
}

// match reports whether the newest run has logged a line that matches.
func (n *node) match(pattern string) error {
	re, err := regexp.Compile("(?m)" + pattern)
	if err != nil {
		return usageError("logged: " + err.Error())
	}
	text, err := n.log()
	if err == nil && !re.Match(text) {
		err = fmt.Errorf("no line of %s matches %q", n.logName(), pattern)
	}
	return err
}

func cmdLogged(s *script, ts *testscript.TestScript, args []string) (output, error) {
	if len(args) != 1 {
		return output{}, usageError("logged PATTERN")
	}
	return output{}, s.node(ts).match(args[0])
}

func cmdReadyz(s *script, ts *testscript.TestScript, args []string) (output, error) {
	if len(args) != 2 {
		return output{}, usageError("readyz CODE PATTERN")
	}
	re, err := regexp.Compile(args[1])
	if err != nil {
		return output{}, usageError("readyz: " + err.Error())
	}
	code, body, err := s.node(ts).get("/readyz")
	if body = bytes.TrimSpace(body); err == nil && (strconv.Itoa(code) != args[0] || !re.Match(body)) {
		err = fmt.Errorf("/readyz: %d %s", code, body)
	}
	return output{}, err
}

func cmdGet(s *script, ts *testscript.TestScript, args []string) (output, error) {
	var header [2]string // of no name
	if len(args) > 2 && args[0] == "-H" {
		name, value, _ := strings.Cut(args[1], ": ")
		header, args = [2]string{name, value}, args[2:]
	}
	if len(args) != 1 && len(args) != 2 {
		return output{}, usageError("get [-H HEADER] PATH [PATTERN]")
	}
	re, err := regexp.Compile("(?m)" + strings.Join(args[1:], ""))
	if err != nil {
		return output{}, usageError("get: " + err.Error())
	}
	code, body, err := s.node(ts).ask(args[0], header)
	if err == nil && (code != http.StatusOK || !re.Match(body)) {
		err = fmt.Errorf("%s: %d\n%s", args[0], code, body)
	}
	return output{stdout: string(body)}, err
}

// get asks the HTTP endpoint.
func (n *node) get(path string) (code int, body []byte, err error) { return n.ask(path, [2]string{}) }

// ask is get with a header, unless its name is empty.
func (n *node) ask(path string, header [2]string) (code int, body []byte, err error) {
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+n.address+path, http.NoBody)
	if err != nil {
		return 0, nil, err
	}
	if header[0] == "Host" {
		request.Host = header[1]
	} else if header[0] != "" {
		request.Header.Set(header[0], header[1])
	}
	client := http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	resp, err := client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, body, err
}
