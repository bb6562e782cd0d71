package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"kekd/hsm"
	"kekd/hsm/hsmtest"
	"kekd/hsm/worker"
	"kekd/internal/kek"
	"kekd/internal/secret"
)

// aad is what the blobs of these tests are bound to.
const aad = "context"

// rig is a fake token with one proven KEK and a seed wrapped under it.
type rig struct {
	*hsmtest.Fixture
	token  *hsm.Token
	id     kek.ID
	mech   kek.Mechanism
	seed   secret.Bytes
	blob   []byte
	watch  *recorder
	logs   *observer.ObservedLogs
	starts atomic.Int64 // of worker processes
}

// newRig makes a rig. change may alter the token before it is used, and
// configure the configuration.
func newRig(t *testing.T, change func(*hsmtest.FakeToken), configure ...func(*hsm.Config)) *rig {
	t.Helper()
	r := &rig{Fixture: hsmtest.NewFake(t, change), watch: &recorder{results: map[string]int{}}, seed: secret.Bytes("thirty-two bytes of a plain seed")}
	core, logs := observer.New(zap.DebugLevel)
	r.logs = logs
	r.Config.Logger = zap.New(core)
	r.Config.Observer = r.watch
	r.Config.Command = func() *exec.Cmd {
		r.starts.Add(1)
		return exec.Command("/proc/self/exe", worker.Arg)
	}
	r.token = r.Open(t, configure...)
	r.id = hsmtest.NewID(t)
	_, _, err := r.token.Create(t.Context(), r.id)
	must(t, err)
	r.mech, _, err = r.token.Prove(t.Context(), r.id)
	must(t, err)
	r.blob, err = r.token.Wrap(t.Context(), r.id, r.mech, r.seed, []byte(aad))
	must(t, err)
	return r
}

// faults replaces the token's faults.
func (r *rig) faults(t *testing.T, lines ...string) {
	t.Helper()
	must(t, hsmtest.SetFaults(r.Config.Module, lines...))
}

// edit changes the token behind everybody's back.
func (r *rig) edit(t *testing.T, change func(*hsmtest.FakeToken)) {
	t.Helper()
	token, err := hsmtest.ReadFake(r.Config.Module)
	must(t, err)
	change(token)
	must(t, hsmtest.WriteFake(r.Config.Module, token))
}

// logins is how often C_Login was called.
func (r *rig) logins(t *testing.T) int { return logins(t, r.Fixture) }

func logins(t *testing.T, f *hsmtest.Fixture) int {
	t.Helper()
	token, err := hsmtest.ReadFake(f.Config.Module)
	must(t, err)
	return token.Logins
}

func (r *rig) wrap(ctx context.Context) error {
	_, err := r.token.Wrap(ctx, r.id, r.mech, r.seed, []byte(aad))
	return err
}

func (r *rig) unwrap(ctx context.Context) error {
	back, err := r.token.Unwrap(ctx, r.id, r.mech, r.blob, []byte(aad))
	if err != nil {
		return err
	}
	if !bytes.Equal(back, r.seed) {
		return errors.New("unwrapped something else than was wrapped")
	}
	return nil
}

// recorder is an hsm.Observer that counts.
type recorder struct {
	mu       sync.Mutex
	restarts []string
	failed   []string       // reasons of starts that failed
	results  map[string]int // by "op result"
	inUse    int
	latched  bool
}

func (r *recorder) HSMOperation(op, result string, _ time.Duration, _ string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results[op+" "+result]++
}

func (r *recorder) HSMWorkerRestart(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.restarts = append(r.restarts, reason)
}

func (r *recorder) HSMWorkerStartFailed(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = append(r.failed, reason)
}

func (r *recorder) HSMSessions(inUse, _, _ int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inUse = inUse
}

func (r *recorder) HSMLatched(latched bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.latched = latched
}

// starts is why starts of a worker failed.
func (r *recorder) starts() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.failed)
}

func (r *recorder) restarted() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.restarts)
}

func (r *recorder) busy() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.inUse
}

func (r *recorder) isLatched() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.latched
}

// text is all that a log entry says.
func text(t *testing.T, e observer.LoggedEntry) string {
	t.Helper()
	buf, err := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()).EncodeEntry(e.Entry, e.Context)
	must(t, err)
	return buf.String()
}

// eventually waits until ok, which other processes and goroutines bring about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// gone reports whether there is no process of this id, not even a zombie.
func gone(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
