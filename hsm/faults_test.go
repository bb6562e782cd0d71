package hsm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"go.uber.org/zap/zaptest/observer"

	"kekd/hsm"
	"kekd/hsm/hsmtest"
	"kekd/internal/kek"
)

func impatient(c *hsm.Config) { c.CallTimeout = 500 * time.Millisecond }

func oneSession(c *hsm.Config) { c.Sessions = 1 }

// A caller is answered at its own deadline, the worker is killed at the call
// timeout, and the next call finds a new one.
func TestHungCall(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil, impatient)
	pid := r.token.WorkerPID()
	r.faults(t, "C_Encrypt hang n=1")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begun := time.Now()
	err := r.wrap(ctx)
	if !errors.Is(err, kek.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call that hangs: %v, want ErrUnavailable by its deadline", err)
	}
	if took := time.Since(begun); took > 450*time.Millisecond {
		t.Errorf("answered after %s, its deadline was 100ms", took)
	}
	if r.token.WorkerPID() != pid {
		t.Error("the worker did not outlive the caller's deadline")
	}
	must(t, r.unwrap(t.Context())) // on another session
	eventually(t, "the worker is killed and reaped", func() bool { return gone(pid) })
	if took := time.Since(begun); took < 500*time.Millisecond {
		t.Errorf("killed after %s, before the call timeout", took)
	}
	must(t, r.wrap(t.Context()))
	if now := r.token.WorkerPID(); now == pid || now == 0 {
		t.Errorf("worker %d after %d was killed", now, pid)
	}
	if n := r.watch.restarted(); n != 1 {
		t.Errorf("%d restarts, want 1", n)
	}
	if len(r.logs.FilterMessage("hsm call never returned, killing the worker").All()) != 1 {
		t.Error("the kill is not logged once")
	}
}

// A caller whose deadline allows it gets the result of the second worker.
func TestHungCallIsDoneAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil, impatient)
	r.faults(t, "C_Decrypt hang n=1")
	must(t, r.unwrap(t.Context()))
	if n := r.watch.restarted(); n != 1 {
		t.Errorf("%d restarts, want 1", n)
	}
}

func TestAllSessionsHang(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil, impatient)
	pid := r.token.WorkerPID()
	r.faults(t, fmt.Sprintf("C_Decrypt hang n=%d", r.Config.Sessions))
	var calls sync.WaitGroup
	for range r.Config.Sessions {
		calls.Go(func() {
			if err := r.unwrap(t.Context()); err != nil {
				t.Errorf("a call with time enough: %v", err)
			}
		})
	}
	eventually(t, "all sessions are in use", func() bool { return r.watch.busy() == r.Config.Sessions })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.wrap(ctx); !errors.Is(err, kek.ErrUnavailable) || !strings.Contains(err.Error(), "free session") {
		t.Errorf("one more call: %v, want ErrUnavailable for want of a session", err)
	}
	must(t, r.wrap(t.Context())) // waits for the new worker
	calls.Wait()
	if !gone(pid) {
		t.Error("the worker is still there")
	}
	if n := r.watch.restarted(); n != 1 {
		t.Errorf("%d restarts, want 1", n)
	}
}

// A module that dies of SIGSEGV costs one restart, and the call that met it
// succeeds all the same.
func TestCrashCostsOneRestart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		call string
		// atStart: the call is made by the start of a worker.
		atStart bool
		run     func(r *rig, ctx context.Context) error
	}{
		{"C_Initialize", true, (*rig).wrap},
		{"C_GetSlotList", true, (*rig).wrap},
		{"C_OpenSession", true, (*rig).wrap},
		{"C_Login", true, (*rig).wrap},
		{"C_FindObjects", false, func(r *rig, ctx context.Context) error {
			keys, err := r.token.Keys(ctx)
			if err == nil && len(keys) != 1 {
				return fmt.Errorf("%d keys, want 1", len(keys))
			}
			return err
		}},
		{"C_Encrypt", false, (*rig).wrap},
		{"C_EncryptInit", false, func(r *rig, ctx context.Context) error { return r.token.Probe(ctx, r.id, r.mech) }},
		{"C_Decrypt", false, (*rig).unwrap},
	} {
		t.Run(c.call, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			pid := r.token.WorkerPID()
			want := int64(1)
			if c.atStart {
				r.token = r.Open(t) // no worker runs yet
				want = 2
			}
			before := r.starts.Load()
			r.faults(t, c.call+" crash n=1")
			if err := c.run(r, t.Context()); err != nil {
				t.Errorf("the call that met the crash: %v", err)
			}
			if n := r.starts.Load() - before; n != want {
				t.Errorf("%d starts of a worker, want %d", n, want)
			}
			if now := r.token.WorkerPID(); now == pid || now == 0 {
				t.Errorf("worker %d after %d crashed", now, pid)
			}
			must(t, r.unwrap(t.Context()))
			if n := r.starts.Load() - before; n != want {
				t.Errorf("%d starts of a worker after the next call, want %d", n, want)
			}
		})
	}
}

// What a dying worker says is worth knowing: a module that crashes is a case for
// its vendor.
func TestLastWords(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.faults(t, "C_Encrypt crash n=1")
	must(t, r.wrap(t.Context()))
	if !slices.ContainsFunc(r.logs.FilterMessage("hsm worker output").All(), func(e observer.LoggedEntry) bool {
		return strings.Contains(text(t, e), "SIGSEGV")
	}) {
		t.Error("the log does not name the signal")
	}
	if n := r.logs.FilterMessage("hsm worker replaced").Len(); n != 1 {
		t.Errorf("%d entries of a replaced worker, want 1", n)
	}
}

func TestCrashLoopIsPaced(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.faults(t, "C_Encrypt crash")
	before := r.starts.Load()
	calls, fast := 0, 0
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	loop := time.Now()
	// On a machine that is busy a single start may take longer than that.
	for time.Since(loop) < 1200*time.Millisecond || r.starts.Load()-before < 2 && time.Since(loop) < 30*time.Second {
		<-tick.C
		begun := time.Now()
		err := r.wrap(t.Context())
		if !errors.Is(err, kek.ErrUnavailable) {
			t.Fatalf("call %d: %v, want ErrUnavailable", calls, err)
		}
		calls++
		if strings.Contains(err.Error(), "next try in") && time.Since(begun) < 20*time.Millisecond {
			fast++
		}
	}
	// Pauses of 0, 100, 200, 400, 800 ms, less a fifth, and two starts for the first call.
	took := time.Since(loop)
	if n, most := r.starts.Load()-before, 5+int64(took/(600*time.Millisecond)); n < 2 || n > most {
		t.Errorf("%d starts in %v, want 2 to %d", n, took, most)
	}
	if fast < calls/2 {
		t.Errorf("only %d of %d calls failed at once", fast, calls)
	}
	r.faults(t)
	eventually(t, "it works again", func() bool { return r.wrap(t.Context()) == nil })
}

// What one more try on a fresh session cures costs no restart. One session, so
// that the next call would meet whatever the failure left behind.
func TestAbsorbedInTheWorker(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault string
		run   func(*rig, context.Context) error
	}{
		"device error":                 {"C_Encrypt rv=0x30 n=1", (*rig).wrap},
		"device memory":                {"C_EncryptInit rv=0x31 n=1", (*rig).wrap},
		"device error opening":         {"C_OpenSession rv=0x30 n=1", dropThen((*rig).wrap)},
		"device error while listing":   {"C_FindObjects rv=0x30 n=1", (*rig).keys},
		"device error in an attribute": {"C_GetAttributeValue rv=0x30 n=1", (*rig).keys},
		"session handle invalid":       {"C_EncryptInit rv=0xb3 n=1", (*rig).wrap},
		"session closed":               {"C_DecryptInit rv=0xb0 n=1", (*rig).unwrap},
		"operation active":             {"C_EncryptInit rv=0x90 n=1", (*rig).wrap},
		"operation left active":        {"C_Encrypt rv=0x150 n=1", (*rig).wrap},
		"operation not initialised":    {"C_Decrypt rv=0x91 n=1", (*rig).unwrap},
		"key handle invalid":           {"C_EncryptInit rv=0x60 n=1", (*rig).wrap},
		"token gone for a moment":      {"C_GetTokenInfo rv=0xe0 n=1", (*rig).keys},
		"object handle invalid":        {"C_DecryptInit rv=0x82 n=1", (*rig).unwrap},
		"object gone since found":      {"C_GetAttributeValue rv=0x6 n=1", (*rig).keys}, // opencryptoki
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil, oneSession)
			pid := r.token.WorkerPID()
			r.faults(t, c.fault)
			if err := c.run(r, t.Context()); err != nil {
				t.Errorf("the call that met it: %v", err)
			}
			must(t, r.wrap(t.Context()))
			must(t, r.unwrap(t.Context()))
			if r.token.WorkerPID() != pid || r.watch.restarted() != 0 {
				t.Error("it cost the worker its life")
			}
		})
	}
}

// keys lists the ring.
func (r *rig) keys(ctx context.Context) error {
	_, err := r.token.Keys(ctx)
	return err
}

// dropThen has the only session dropped before run, so that it opens another.
func dropThen(run func(*rig, context.Context) error) func(*rig, context.Context) error {
	return func(r *rig, ctx context.Context) error {
		if _, err := r.token.Unwrap(ctx, r.id, r.mech, make([]byte, len(r.blob)), []byte(aad)); !errors.Is(err, kek.ErrCorrupt) {
			return fmt.Errorf("a damaged blob: %w", err)
		}
		return run(r, ctx)
	}
}

// A session whose operation failed may have it active still, so it is not used
// again, whatever the error.
func TestFailedSessionIsDropped(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil, oneSession)
	pid := r.token.WorkerPID()
	for range 3 {
		r.faults(t, "C_Decrypt rv=0x40 n=1") // leaves the operation active
		if err := r.unwrap(t.Context()); !errors.Is(err, kek.ErrCorrupt) {
			t.Errorf("CKR_ENCRYPTED_DATA_INVALID: %v, want ErrCorrupt", err)
		}
		must(t, r.unwrap(t.Context()))
	}
	if r.token.WorkerPID() != pid {
		t.Error("it cost the worker its life")
	}
}

// Faults that a fresh session does not cure cost the worker its life, and the
// call succeeds on the next one.
func TestCuredByAnotherWorker(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault string
		run   func(*rig, context.Context) error
	}{
		"device error twice":     {"C_Encrypt rv=0x30 n=2", (*rig).wrap},
		"session invalid twice":  {"C_EncryptInit rv=0xb3 n=2", (*rig).wrap},
		"not logged in":          {"C_EncryptInit rv=0x101 n=1", (*rig).wrap},
		"not initialised":        {"C_DecryptInit rv=0x190 n=1", (*rig).unwrap},
		"general error encrypt":  {"C_Encrypt rv=0x5 n=1", (*rig).wrap},
		"general error find":     {"C_FindObjects rv=0x5 n=1", (*rig).keys},
		"device removed decrypt": {"C_Decrypt rv=0x32 n=1", (*rig).unwrap},
		"not logged in, late":    {"C_Decrypt rv=0x101 n=1", (*rig).unwrap},
		"token gone twice":       {"C_GetTokenInfo rv=0xe0 n=2", (*rig).keys},
		"vendor's own code":      {"C_EncryptInit rv=0x80000123 n=1", (*rig).wrap},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			pid := r.token.WorkerPID()
			r.faults(t, c.fault)
			if err := c.run(r, t.Context()); err != nil {
				t.Errorf("the call that met it: %v", err)
			}
			if now := r.token.WorkerPID(); now == pid || now == 0 || r.watch.restarted() != 1 {
				t.Errorf("worker %d after %d, %d restarts, want another one by one restart", now, pid, r.watch.restarted())
			}
			must(t, r.unwrap(t.Context()))
		})
	}
}

// CKR_GENERAL_ERROR from C_Decrypt means a damaged ciphertext on SoftHSM 2.6 and
// a broken token elsewhere. The canary tells.
func TestCanary(t *testing.T) {
	t.Parallel()
	t.Run("healthy", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, func(token *hsmtest.FakeToken) { token.AmbiguousDecrypt = true })
		pid := r.token.WorkerPID()
		r.blob[len(r.blob)-1] ^= 1
		if err := r.unwrap(t.Context()); !errors.Is(err, kek.ErrCorrupt) || errors.Is(err, kek.ErrUnavailable) {
			t.Errorf("got %v, want ErrCorrupt", err)
		}
		if r.token.WorkerPID() != pid || r.watch.restarted() != 0 {
			t.Error("it cost the worker its life")
		}
	})
	// Before a ciphertext gets the blame, which is remembered for a while, it is
	// tried once more.
	t.Run("indisposed for a moment", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		pid := r.token.WorkerPID()
		r.faults(t, "C_Decrypt rv=0x5 n=1")
		must(t, r.unwrap(t.Context()))
		if r.token.WorkerPID() != pid || r.watch.restarted() != 0 {
			t.Error("it cost the worker its life")
		}
	})
	t.Run("broken", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		pid := r.token.WorkerPID()
		r.faults(t, "C_Decrypt rv=0x5")
		if err := r.unwrap(t.Context()); !errors.Is(err, kek.ErrUnavailable) || errors.Is(err, kek.ErrCorrupt) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
		if r.token.WorkerPID() == pid || r.watch.restarted() == 0 {
			t.Error("the worker was not replaced")
		}
		r.faults(t)
		eventually(t, "it works again", func() bool { return r.unwrap(t.Context()) == nil })
		// The new worker has a canary too, without a Prove.
		pid = r.token.WorkerPID()
		r.faults(t, "C_Decrypt rv=0x5 n=1")
		must(t, r.unwrap(t.Context()))
		if r.token.WorkerPID() != pid {
			t.Error("the new worker had none")
		}
	})
	t.Run("many damaged blobs share it", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, func(token *hsmtest.FakeToken) { token.AmbiguousDecrypt = true })
		pid := r.token.WorkerPID()
		begun := time.Now()
		var calls sync.WaitGroup
		for range 40 {
			calls.Go(func() {
				blob := append([]byte(nil), r.blob...)
				blob[len(blob)-1] ^= 1
				if _, err := r.token.Unwrap(t.Context(), r.id, r.mech, blob, []byte(aad)); !errors.Is(err, kek.ErrCorrupt) {
					t.Errorf("got %v, want ErrCorrupt", err)
				}
			})
		}
		calls.Wait()
		if took := time.Since(begun); took > 8*time.Second {
			t.Errorf("40 damaged blobs took %s", took)
		}
		if r.token.WorkerPID() != pid {
			t.Error("it cost the worker its life")
		}
	})
}

func TestTooFewSessions(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*hsmtest.FakeToken)
		pool   int // what the token is said to have
	}{
		"the token says so":             {func(token *hsmtest.FakeToken) { token.MaxSessions, token.SessionsLeft = 3, 3 }, 2},
		"the token promises more":       {func(token *hsmtest.FakeToken) { token.MaxSessions, token.SessionsLeft = 9, 3 }, 4},
		"the token promises no limit":   {func(token *hsmtest.FakeToken) { token.SessionsLeft = 2 }, 4},
		"the login is one of two":       {func(token *hsmtest.FakeToken) { token.MaxSessions, token.SessionsLeft = 2, 2 }, 1},
		"as many as are asked for":      {func(token *hsmtest.FakeToken) { token.MaxSessions, token.SessionsLeft = 5, 5 }, 4},
		"one less than are asked for":   {func(token *hsmtest.FakeToken) { token.MaxSessions, token.SessionsLeft = 4, 4 }, 3},
		"unavailable information":       {func(token *hsmtest.FakeToken) { token.MaxSessions = ^uint(0) }, 4},
		"effectively infinite sessions": {func(*hsmtest.FakeToken) {}, 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, c.change)
			pid := r.token.WorkerPID()
			info, err := r.token.Info(t.Context())
			must(t, err)
			if info.Sessions != c.pool {
				t.Errorf("a pool of %d, want %d", info.Sessions, c.pool)
			}
			r.faults(t, "C_Encrypt ms=5") // so that the calls meet
			var calls sync.WaitGroup
			for range 8 {
				calls.Go(func() {
					for range 5 {
						if err := errors.Join(r.wrap(t.Context()), r.unwrap(t.Context())); err != nil {
							t.Error(err)
						}
					}
				})
			}
			calls.Wait()
			if r.token.WorkerPID() != pid || r.watch.restarted() != 0 {
				t.Error("it cost the worker its life")
			}
		})
	}
}

func TestTokenAwayAndBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	path := r.Config.Module
	must(t, os.Rename(path, path+".away"))
	for name, call := range map[string]func(*rig, context.Context) error{"wrap": (*rig).wrap, "unwrap": (*rig).unwrap, "keys": (*rig).keys} {
		if err := call(r, t.Context()); !errors.Is(err, kek.ErrUnavailable) {
			t.Errorf("%s without the token: %v, want ErrUnavailable", name, err)
		}
	}
	must(t, os.Rename(path+".away", path))
	eventually(t, "it works again", func() bool { return r.unwrap(t.Context()) == nil })
	must(t, r.wrap(t.Context()))
	must(t, r.keys(t.Context()))
}

// Modules that lose the token may report success and no objects. An empty ring
// would withdraw the key, so it takes more than that.
func TestLostTokenIsNoEmptyRing(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	var objects []*hsmtest.FakeObject
	r.edit(t, func(token *hsmtest.FakeToken) { objects, token.Objects = token.Objects, nil })
	r.faults(t, "C_GetTokenInfo rv=0xe0")
	for range 3 {
		keys, err := r.token.Keys(t.Context())
		if !errors.Is(err, kek.ErrUnavailable) {
			t.Errorf("listed %d keys, %v; want ErrUnavailable", len(keys), err)
		}
	}
	r.edit(t, func(token *hsmtest.FakeToken) { token.Objects = objects })
	r.faults(t)
	eventually(t, "the key is listed again", func() bool {
		keys, err := r.token.Keys(t.Context())
		return err == nil && len(keys) == 1 && keys[0].ID == r.id
	})
}

func TestAnotherSerial(t *testing.T) {
	t.Parallel()
	t.Run("by label", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		pid := r.token.WorkerPID()
		r.edit(t, func(token *hsmtest.FakeToken) { token.Serial = "0815" })
		must(t, r.keys(t.Context()))
		if r.token.WorkerPID() == pid {
			t.Error("the worker went on with another token")
		}
		logged := r.logs.FilterMessage("another token answers to hsm.token now").All()
		if len(logged) != 1 || !strings.Contains(text(t, logged[0]), "4711") || !strings.Contains(text(t, logged[0]), "0815") {
			t.Errorf("logged %v, want one entry with both serials", logged)
		}
	})
	t.Run("by serial", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil, func(c *hsm.Config) { c.Token.Serial = "4711" })
		before := r.logins(t)
		r.edit(t, func(token *hsmtest.FakeToken) { token.Serial = "0815" })
		if err := r.keys(t.Context()); !errors.Is(err, kek.ErrUnavailable) || !strings.Contains(err.Error(), "0815") {
			t.Errorf("got %v, want ErrUnavailable that shows the token that is there", err)
		}
		if n := r.logins(t) - before; n != 0 {
			t.Errorf("%d logins to the other token", n)
		}
	})
}

func TestDestroyedKey(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]func(*rig, context.Context) error{"found by use": (*rig).unwrap, "found by listing": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			pid := r.token.WorkerPID()
			r.edit(t, func(token *hsmtest.FakeToken) { token.Objects = nil })
			if first != nil {
				if err := first(r, t.Context()); !errors.Is(err, kek.ErrUnknownKey) {
					t.Errorf("use of the key: %v, want ErrUnknownKey", err)
				}
			}
			keys, err := r.token.Keys(t.Context())
			if err != nil || len(keys) != 0 {
				t.Errorf("listed %d keys, %v; want none", len(keys), err)
			}
			if r.token.WorkerPID() == pid {
				t.Error("the worker was not replaced, so its word for it is all there is")
			}
			for range 3 { // for good, and without another restart
				if err := r.wrap(t.Context()); !errors.Is(err, kek.ErrUnknownKey) {
					t.Errorf("use of the key: %v, want ErrUnknownKey", err)
				}
			}
			if n := r.watch.restarted(); n != 1 {
				t.Errorf("%d restarts, want 1", n)
			}
		})
	}
}

// Another key under a known CKA_ID is not used in its place.
func TestSwappedKey(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	pid := r.token.WorkerPID()
	r.edit(t, func(token *hsmtest.FakeToken) {
		old := token.Objects[0]
		token.Add(old.Attributes) // other bytes under another handle
		token.Objects = token.Objects[1:]
	})
	if err := r.unwrap(t.Context()); !errors.Is(err, kek.ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
	if r.token.WorkerPID() == pid {
		t.Error("the worker took the other key for the old one")
	}
}

// A caller who goes away does not speak against the HSM.
func TestCancelledCaller(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.faults(t, "C_Encrypt ms=300 n=1")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.wrap(ctx) }()
	eventually(t, "the call is under way", func() bool { return r.watch.busy() == 1 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || errors.Is(err, kek.ErrUnavailable) {
		t.Errorf("got %v, want context.Canceled and not ErrUnavailable", err)
	}
	must(t, r.wrap(t.Context()))
	if n := r.watch.restarted(); n != 0 {
		t.Errorf("%d restarts", n)
	}
}

// The answer of a Create is lost after the key was made. Doing it again would
// fail at best and make a second key at worst; the key is removed.
func TestCreateIsNotDoneAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	before := r.starts.Load()
	r.faults(t, "C_EncryptInit crash n=1") // in the check value of the new key
	id := pendingID(t)
	if _, _, err := r.token.Create(t.Context(), id); !errors.Is(err, kek.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	if n := r.starts.Load() - before; n != 1 {
		t.Errorf("%d workers were started for it, want 1, which looks for the key", n)
	}
	keys, err := r.token.Keys(t.Context())
	must(t, err)
	count := 0
	for _, k := range keys {
		if k.ID == id {
			count++
		}
	}
	if count != 0 {
		t.Errorf("the new key is listed %d times, want none", count)
	}
}

// Create destroys what it made where the proof fails.
func TestCreateCleansUp(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.edit(t, func(token *hsmtest.FakeToken) { token.Mechanisms = []uint{pkcs11.CKM_AES_CBC} })
	if _, _, err := r.token.Create(t.Context(), hsmtest.NewID(t)); !errors.Is(err, kek.ErrRefused) {
		t.Errorf("without any mechanism: %v, want ErrRefused", err)
	}
	r.edit(t, func(token *hsmtest.FakeToken) { token.Mechanisms = hsmtest.AllMechanisms() })
	r.faults(t, "C_DestroyObject rv=0x1b n=1", "C_DecryptInit rv=0x68")
	id := hsmtest.NewID(t)
	_, _, err := r.token.Create(t.Context(), id)
	if !errors.Is(err, kek.ErrRefused) || !strings.Contains(hsm.Hint(err), id.String()) {
		t.Errorf("a key that can't be removed: %v (hint %q), want ErrRefused and a hint that names it", err, hsm.Hint(err))
	}
	r.faults(t)
	keys, err := r.token.Keys(t.Context())
	must(t, err)
	if len(keys) != 2 {
		t.Errorf("%d keys, want the first and the one that could not be removed", len(keys))
	}
}

// What the module starts may hold the worker's output open for ever. The calls
// don't wait for it.
func TestModuleLeavesAProcess(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.faults(t, "C_Encrypt spawn=4 crash n=1")
	begun := time.Now()
	must(t, r.wrap(t.Context()))
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("done after %s: it waited for what the module left behind", took)
	}
}

// Operations from many goroutines while workers die under them: each succeeds or
// fails as unavailable, and none gets another's answer.
func TestConcurrentUseOfDyingWorkers(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	stop := make(chan struct{})
	var calls sync.WaitGroup
	var mu sync.Mutex
	served := 0
	for range 8 {
		calls.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := r.unwrap(t.Context())
				if err == nil {
					err = r.wrap(t.Context())
				}
				if err != nil && !errors.Is(err, kek.ErrUnavailable) {
					t.Errorf("got %v, want ErrUnavailable or nothing", err)
				}
				if err == nil {
					mu.Lock()
					served++
					mu.Unlock()
				}
			}
		})
	}
	for range 4 {
		eventually(t, "a worker runs", func() bool {
			pid := r.token.WorkerPID()
			return pid != 0 && syscall.Kill(pid, syscall.SIGKILL) == nil
		})
		mu.Lock()
		before := served
		mu.Unlock()
		eventually(t, "calls are served again", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return served > before
		})
	}
	close(stop)
	calls.Wait()
}

// A module that refuses to be set up says nothing about the ciphertext that waits
// for it: were it taken for a verdict, a read would fail for good.
func TestRefusedSetupIsAnOutage(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"C_Initialize", "C_GetInfo", "C_GetSlotList", "C_OpenSession", "C_Login"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			must(t, hsmtest.SetFaults(r.Config.Module, call+" rv=0x7")) // CKR_ARGUMENTS_BAD
			must(t, syscall.Kill(r.token.WorkerPID(), syscall.SIGKILL))
			_, err := r.token.Unwrap(t.Context(), r.id, r.mech, r.blob, []byte(aad))
			if !errors.Is(err, kek.ErrUnavailable) || errors.Is(err, kek.ErrRefused) || errors.Is(err, kek.ErrCorrupt) {
				t.Errorf("unwrap: %v, want ErrUnavailable alone", err)
			}
			if call == "C_Initialize" && hsm.Hint(err) == "" {
				t.Error("no hint what a module may need to start")
			}
		})
	}
}
