package harness

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// shell is a service that runs a script.
func shell(t *testing.T, script string) *service {
	t.Helper()
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	return newService(t, "script", sh, []string{"-c", script}, []string{"GREETING=hello"})
}

func TestServiceStops(t *testing.T) {
	s := shell(t, `trap 'echo bye; exit 0' TERM; echo "$GREETING"; while :; do sleep 0.05; done`)
	if s.running() || s.alive() == nil {
		t.Error("it runs before its start")
	}
	s.start(t)
	Eventually(t, 10*time.Second, "the script greets", func(context.Context) error { return wantLogged(s, "hello") })
	s.stop(t, 10*time.Second)
	if s.running() || s.alive() == nil {
		t.Error("it runs after its end")
	}
	// The log goes on over a restart.
	s.start(t)
	s.kill(t)
	if log := tail(s.log); strings.Count(log, "--- start of script") != 2 || !strings.Contains(log, "bye") {
		t.Errorf("the log of both runs is %q", log)
	}
}

func TestServiceChildren(t *testing.T) {
	s := shell(t, `sleep 1000 & echo started; wait`)
	s.start(t)
	Eventually(t, 10*time.Second, "the child runs", func(context.Context) error { return wantLogged(s, "started") })
	if got := s.children(); len(got) != 1 {
		t.Fatalf("the children are %v, want one", got)
	}
	s.endGroup()
	Eventually(t, 10*time.Second, "the child ends", func(context.Context) error { return wantNone(group(s.run.pid)) })
}

func TestGroupOfOthers(t *testing.T) {
	a, b := shell(t, "exec sleep 1000"), shell(t, "exec sleep 1000")
	a.start(t)
	b.start(t)
	a.kill(t)
	if !b.running() {
		t.Error("ending one service ended another")
	}
}

func wantLogged(s *service, text string) error {
	if !s.logged(text) {
		return fmt.Errorf("the log is %q", tail(s.log))
	}
	return nil
}

func wantNone(pids []int) error {
	if len(pids) != 0 {
		return fmt.Errorf("%v still run", pids)
	}
	return nil
}
