package worker

import (
	"errors"
	"fmt"
	"sync"

	"kekd/hsm/p11"
	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// canary answers whether the token works, for return values that mean a damaged
// ciphertext on one module and a broken token on another (SoftHSM 2.6 says
// CKR_GENERAL_ERROR to both). It encrypts and decrypts under a key that was
// proven before. One check runs at a time, so damaged ciphertexts, however many,
// never keep more than one session busy with it.
type canary struct {
	mu sync.Mutex
	// id and mech are what the last proof found to work. Guarded by mu.
	id   kek.ID
	mech kek.Mechanism
	set  bool
	// run is the check that has not begun yet: whoever fails now waits for it,
	// since only a check that begins after a failure says anything about it.
	// Guarded by mu.
	run *canaryRun
	// singing: a check is under way, and begins the next one if somebody waits.
	// Guarded by mu.
	singing bool
}

type canaryRun struct {
	done chan struct{}
	err  error // read after done is closed
}

// use makes a proven key the canary.
func (c *canary) use(id kek.ID, m kek.Mechanism) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.id, c.mech, c.set = id, m, true
}

// askCanary settles an ambiguous failure: nil when the canary sings, so that the
// token is not at fault, and an error of the token's when it doesn't or when
// there is none.
func (w *Worker) askCanary(text string, e p11.Error) error {
	c := &w.canary
	c.mu.Lock()
	if !c.set {
		c.mu.Unlock()
		return &wire.Error{Class: wire.ClassToken, Call: e.Call, RV: e.RV, Text: text}
	}
	run := c.run
	if run == nil {
		run = &canaryRun{done: make(chan struct{})}
		c.run = run
	}
	if !c.singing {
		c.singing = true
		go w.sing()
	}
	c.mu.Unlock()
	<-run.done
	if run.err == nil {
		return nil
	}
	return &wire.Error{Class: wire.ClassToken, Call: e.Call, RV: e.RV, Text: fmt.Sprintf("%s; the canary failed too: %v", text, run.err)}
}

// sing does the checks that are waited for, one after the other.
func (w *Worker) sing() {
	c := &w.canary
	for {
		c.mu.Lock()
		run := c.run
		c.run, c.singing = nil, run != nil
		id, m := c.id, c.mech
		c.mu.Unlock()
		if run == nil {
			return
		}
		run.err = w.roundTrip(id, m)
		close(run.done)
	}
}

// roundTrip encrypts and decrypts under a key. It never asks the canary itself.
func (w *Worker) roundTrip(id kek.ID, m kek.Mechanism) error {
	plain, err := random(32)
	if err != nil {
		return err
	}
	defer clear(plain)
	blob, err := w.wrap(id, m, plain, []byte(proofAAD))
	if err != nil {
		return err
	}
	back, err := w.unwrap(id, m, blob, []byte(proofAAD), false)
	if err != nil {
		return err
	}
	defer back.Wipe()
	if string(back) != string(plain) {
		return errors.New("decryption gave something else than what was encrypted")
	}
	return nil
}
