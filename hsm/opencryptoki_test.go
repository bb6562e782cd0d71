package hsm_test

import (
	"context"
	"encoding/hex"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"

	"kekd/hsm"
	"kekd/hsm/hsmtest"
	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// restarted is kekd after a restart, on the same node unless the latch is another.
func restarted(t *testing.T, o *hsmtest.Opencryptoki, change ...func(*hsm.Config)) {
	t.Helper()
	token := o.Open(t, change...)
	ask(t, token)
	token.Close()
}

func otherNode(c *hsm.Config) { c.Latch = new(hsmtest.Latch) }

func wantTries(t *testing.T, o *hsmtest.Opencryptoki, want int, when string) {
	t.Helper()
	if got := o.TriesLeft(t); got != want {
		t.Fatalf("%s the token takes %d more wrong PINs, want %d", when, got, want)
	}
}

// refusedWith checks what kekd says when it does not log in.
func refusedWith(t *testing.T, token *hsm.Token, text, hint string) {
	t.Helper()
	_, err := token.Keys(t.Context())
	if !errors.Is(err, kek.ErrPIN) || errors.Is(err, kek.ErrUnavailable) || !strings.Contains(err.Error(), text) || !strings.Contains(hsm.Hint(err), hint) {
		t.Errorf("got %v, hint %q; want ErrPIN with %q, hint with %q", err, hsm.Hint(err), text, hint)
	}
}

// A token that really locks: what a wrong PIN costs, on one node and on several.
func TestOpencryptokiWrongPIN(t *testing.T) {
	t.Parallel()
	o := hsmtest.NewOpencryptoki(t)
	wantTries(t, o, 3, "at first")
	o.PIN.Set(wrongPIN)
	restarted(t, o)
	restarted(t, o)
	wantTries(t, o, 2, "after two starts with a wrong PIN")
	restarted(t, o, otherNode)
	wantTries(t, o, 1, "after a second node's try")
	for range 3 {
		restarted(t, o, otherNode)
	}
	restarted(t, o)
	wantTries(t, o, 1, "after further nodes' starts")

	// Nor is the right one tried, since kekd can't know.
	o.PIN.Set("123456")
	token := o.Open(t, otherNode)
	refusedWith(t, token, "one more wrong PIN locks it", "allowFinalPinTry")
	wantTries(t, o, 1, "after a start with the right PIN")

	// The hint's first way out, without a restart of kekd.
	must(t, o.Login(t, "123456"))
	wantTries(t, o, 3, "after a login by another program")
	eventually(t, "kekd logs in", func() bool { // starts are paced
		_, err := token.Keys(t.Context())
		return err == nil
	})
}

// The hint's other way out.
func TestOpencryptokiFinalTry(t *testing.T) {
	t.Parallel()
	allow := func(c *hsm.Config) { c.AllowFinalPINTry = true }
	for _, pin := range []string{"123456", wrongPIN} {
		t.Run(pin, func(t *testing.T) {
			t.Parallel()
			o := hsmtest.NewOpencryptoki(t)
			for range 2 {
				if o.Login(t, "111111") == nil {
					t.Fatal("a wrong PIN logs in")
				}
			}
			wantTries(t, o, 1, "after two wrong PINs of another program")
			o.PIN.Set(pin)
			if pin == wrongPIN {
				restarted(t, o, allow)
				wantTries(t, o, 0, "after the final try")
				if !o.Latch.Set() {
					t.Error("the PIN is not latched")
				}
				return
			}
			_, err := o.Open(t, allow).Keys(t.Context())
			must(t, err)
			wantTries(t, o, 3, "after the final try")
		})
	}
}

// Somebody else locks the PIN under a running kekd.
func TestOpencryptokiLockedPIN(t *testing.T) {
	t.Parallel()
	o := hsmtest.NewOpencryptoki(t)
	token := o.Open(t)
	id := hsmtest.NewID(t)
	_, mech, err := token.Create(t.Context(), id)
	must(t, err)
	for range 3 {
		if o.Login(t, wrongPIN) == nil {
			t.Fatal("a wrong PIN logs in")
		}
	}
	wantTries(t, o, 0, "after three wrong PINs of another program")

	// A login that stands is not touched by the lock.
	must(t, token.Probe(t.Context(), id, mech))

	must(t, syscall.Kill(token.WorkerPID(), syscall.SIGKILL))
	eventually(t, "the worker's death is noticed", func() bool { return token.WorkerPID() == 0 })
	refusedWith(t, token, "the user PIN is locked", "security officer")
	for range 2 {
		o := o.Open(t, func(c *hsm.Config) { c.AllowFinalPINTry = true })
		refusedWith(t, o, "the user PIN is locked", "security officer")
	}
	if o.Latch.Set() {
		t.Error("a PIN is latched that nobody refused")
	}

	o.SetPIN(t, "12345678") // eight characters, the most that it takes
	o.PIN.Set("12345678")
	eventually(t, "kekd logs in", func() bool { return token.Probe(t.Context(), id, mech) == nil })
	wantTries(t, o, 3, "after a login")
}

// A token without AES-GCM and AES-KWP needs an HMAC key beside the KEK, which other
// tools do not make by themselves.
func TestOpencryptokiForeignKeyWithoutHMAC(t *testing.T) {
	t.Parallel()
	o := hsmtest.NewOpencryptoki(t)
	o.Generate(t, "aes:32", hsmtest.Ring, "01")
	token := o.Open(t)
	_, _, err := token.Prove(t.Context(), "\x01")
	if !errors.Is(err, kek.ErrRefused) || !strings.Contains(err.Error(), "no HMAC key") {
		t.Errorf("got %v, want ErrRefused that says so", err)
	}
	o.Generate(t, "GENERIC:32", hsmtest.Ring, "01"+hex.EncodeToString([]byte("/hmac")))
	_, err = token.Keys(t.Context()) // as the ring's watcher looks again and again
	must(t, err)
	if _, _, err := token.Prove(t.Context(), "\x01"); err != nil {
		t.Errorf("with an HMAC key beside it: %v", err)
	}
}

// opencryptoki 3.8 makes every unwrapped key readable and extractable. What kekd
// imports must be neither to other programs, which ask the token themselves.
func TestOpencryptokiImportedKeyStaysInside(t *testing.T) {
	t.Parallel()
	o := hsmtest.NewOpencryptoki(t)
	token := o.Open(t)
	owner := hsmtest.NewOwner(t, o.Fixture, token)
	key := []byte("a key of 32 bytes, for this test")
	req := owner.Wrap(wire.RSAOAEP, wire.SHA256, key)
	req.ID = []byte(hsmtest.NewID(t))
	_, _, err := token.Import(t.Context(), req)
	must(t, err)
	out, err := o.Run(t, "", "pkcs11-tool", "--module", o.Config.Module, "--token-label", o.Config.Token.Label,
		"--login", "--pin", "123456", "--list-objects", "--type", "secrkey")
	must(t, err)
	if !strings.Contains(out, kek.ID(req.ID).String()) {
		t.Fatalf("another program does not list the key:\n%s", out)
	}
	if strings.Contains(strings.ToLower(out), hex.EncodeToString(key)) {
		t.Errorf("another program reads the key:\n%s", out)
	}
}

// A key that is made or changes its state while others list the ring and use it.
// opencryptoki keeps its list of objects in memory that all its processes share.
func TestOpencryptokiKeysMadeWhileOthersUseThem(t *testing.T) {
	t.Parallel()
	o := hsmtest.NewOpencryptoki(t)
	maker := o.Open(t)
	id := hsmtest.NewID(t)
	_, mech, err := maker.Create(t.Context(), id)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var others sync.WaitGroup
	for range 2 {
		user := o.Open(t)
		others.Go(func() {
			for ctx.Err() == nil {
				_, err := user.Keys(ctx)
				if err == nil {
					err = user.Probe(ctx, id, mech)
				}
				if err != nil && ctx.Err() == nil {
					t.Errorf("list and probe: %v", err)
					return
				}
			}
		})
	}
	const keys = 20
	made := []kek.ID{}
	for range keys {
		other := hsmtest.NewID(t)
		key, _, err := maker.Create(ctx, other)
		if err != nil {
			t.Errorf("create: %v", err)
			break
		}
		if _, err := maker.SetUse(ctx, key, hsm.Disabled()); err != nil {
			t.Errorf("disable: %v", err)
		}
		made = append(made, other)
	}
	cancel()
	others.Wait()
	late := o.Open(t)
	if got, err := late.Keys(t.Context()); err != nil || len(got) != keys+1 {
		t.Errorf("%d keys, want %d (%v)", len(got), keys+1, err)
	}
	for _, other := range made {
		must(t, late.Destroy(t.Context(), seen(t, late, other)))
	}
	must(t, late.Probe(t.Context(), id, mech))
}

// The slot daemon away and back, as around an upgrade of the package.
func TestOpencryptokiSlotDaemonAway(t *testing.T) {
	t.Parallel()
	o := hsmtest.NewOpencryptoki(t)
	running := o.Open(t)
	id := hsmtest.NewID(t)
	_, mech, err := running.Create(t.Context(), id)
	must(t, err)
	move := func(from, to string) {
		t.Helper()
		if out, err := o.Run(t, "", "mv", from, to); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	const socket = "/run/pkcsslotd.socket"
	move(socket, socket+".away")
	must(t, running.Probe(t.Context(), id, mech)) // it needs the daemon no more
	late := o.Open(t)
	err = late.Probe(t.Context(), id, mech)
	if !errors.Is(err, kek.ErrUnavailable) || !strings.Contains(err.Error(), "C_Initialize") || !strings.Contains(hsm.Hint(err), "pkcsslotd") {
		t.Errorf("a new worker: %v, hint %q; want ErrUnavailable and a hint", err, hsm.Hint(err))
	}
	move(socket+".away", socket)
	eventually(t, "a new worker starts", func() bool { return late.Probe(t.Context(), id, mech) == nil })
}

// A slot daemon that hangs keeps new workers from starting, and no longer than
// the call timeout.
func TestOpencryptokiSlotDaemonHangs(t *testing.T) {
	t.Parallel()
	o := hsmtest.NewOpencryptoki(t)
	running := o.Open(t)
	id := hsmtest.NewID(t)
	_, mech, err := running.Create(t.Context(), id)
	must(t, err)
	must(t, syscall.Kill(o.SlotDaemon, syscall.SIGSTOP))
	must(t, running.Probe(t.Context(), id, mech))
	late := o.Open(t, impatient)
	if err := late.Probe(t.Context(), id, mech); !errors.Is(err, kek.ErrUnavailable) || !strings.Contains(err.Error(), "did not return within") {
		t.Errorf("a new worker: %v, want ErrUnavailable by the call timeout", err)
	}
	must(t, running.Probe(t.Context(), id, mech))
}
