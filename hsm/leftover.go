package hsm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// LeftoverError is a Create or an Import that failed and may have left a key on the
// token.
type LeftoverError struct {
	ID kek.ID
	// Found: the key is there. Otherwise nobody could look.
	Found bool
	// Err is why there is no new key, and Cleanup why it was not removed or could not
	// be looked for.
	Err, Cleanup error
}

// Error implements error.
func (e *LeftoverError) Error() string {
	if e.Found {
		return fmt.Sprintf("%v; the key with CKA_ID %s exists and was not removed: %v", e.Err, e.ID, e.Cleanup)
	}
	return fmt.Sprintf("%v; whether a key with CKA_ID %s exists is not known: %v", e.Err, e.ID, e.Cleanup)
}

// Hint says what to do about it.
func (e *LeftoverError) Hint() string {
	if at, own := e.ID.Activation(); e.Found && own && !at.After(time.Now()) {
		return fmt.Sprintf("key %s is active, and nodes use it like any other: do not create another; kekctl key list shows it, and kekctl status whether every node has tested it. To be rid of it, run kekctl rotate and then kekctl key destroy %s --after 30d", e.ID, e.ID)
	}
	return fmt.Sprintf("kekctl key list shows whether the key is there; remove it with kekctl key cancel %s before it activates, and with kekctl key destroy once another key is the primary", e.ID)
}

// Unwrap yields why there is no new key.
func (e *LeftoverError) Unwrap() error { return e.Err }

// add makes a key, by a create or an import, and sees to it that a failure leaves
// none. The id must be new to the ring: what has it after a failure is removed.
func (t *Token) add(ctx context.Context, op wire.Kind, id kek.ID, req any) (wire.CreateReply, error) {
	keys, err := t.Keys(ctx)
	if err != nil {
		return wire.CreateReply{}, err
	}
	for _, k := range keys {
		if k.ID == id {
			return wire.CreateReply{}, fmt.Errorf("%w: a key with this CKA_ID exists already", kek.ErrAmbiguous)
		}
	}
	var reply wire.CreateReply
	if _, err = t.do(ctx, op, noRetry, req, nil, &reply); err == nil {
		return reply, nil
	}
	if errors.Is(err, kek.ErrAmbiguous) {
		return wire.CreateReply{}, err // it was made by somebody else since then
	}
	answer, answered := errors.AsType[*wire.Error](err)
	answered = answered && answer.Class != wire.ClassToken
	if !answered && ctx.Err() != nil {
		// A worker that is still at it must not make the key after it was looked for.
		if p := t.sup.current(); p != nil {
			t.sup.replace(ctx, p, err)
		}
	}
	removed, cleanup := t.abandon(ctx, id, answered)
	switch {
	case cleanup != nil:
		found := errors.Is(cleanup, kek.ErrRefused) || errors.Is(cleanup, errInUse)
		err = &LeftoverError{ID: id, Found: found, Err: err, Cleanup: cleanup}
	case answered: // as good as if the token had refused to make it
	case removed:
		err = fmt.Errorf("%w; the key that it left on the token was removed", err)
	default:
		err = fmt.Errorf("%w; no key was left on the token", err)
	}
	return wire.CreateReply{}, err
}

const (
	// abandonTime bounds the search for a key that may have been left, whatever the
	// caller's context says: that may be over, and be the reason.
	abandonTime = 15 * time.Second
	// abandonPause is the wait between two looks. A network HSM may finish a call
	// whose worker is gone.
	abandonPause = 500 * time.Millisecond
	// abandonTries bounds the looks that fail.
	abandonTries = 5
	// clockMargin is how far a node's clock may be ahead of this one, with a minute to
	// act. kekctl's default is to activate a key after five minutes.
	clockMargin = 4 * time.Minute
)

// errInUse: a key must not be removed without asking the nodes.
var errInUse = errors.New("a node may encrypt under it already, since it is active or activates soon")

// mayBeInUse reports whether a node may have published a key. It is out of the
// question while the activation is further away than clocks can differ.
func mayBeInUse(id kek.ID, now time.Time) bool {
	activation, own := id.Activation()
	return !own || activation.Before(now.Add(clockMargin))
}

// abandon removes what a failed create or import has left, and reports whether
// there was anything. If the token has not answered it looks twice, and does not
// remove a key that a node may have taken up in the meantime.
func (t *Token) abandon(ctx context.Context, id kek.ID, answered bool) (removed bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTime)
	defer cancel()
	pause := time.NewTicker(abandonPause)
	defer pause.Stop()
	for looks, failed := 0, 0; ; {
		var reply wire.AbandonReply
		req := wire.AbandonRequest{ID: []byte(id), Keep: !answered && mayBeInUse(id, time.Now())}
		_, err := t.do(ctx, wire.OpAbandon, retry, req, nil, &reply)
		switch {
		case err == nil && reply.Kept:
			return removed, errInUse
		case err == nil:
			looks, removed = looks+1, removed || reply.Found > 0
		case errors.Is(err, kek.ErrRefused):
			return removed, err
		default:
			failed++
		}
		if looks == 2 || looks == 1 && answered || failed == abandonTries {
			return removed, err
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return removed, gaveUp(ctx, "look for key "+id.String())
		}
	}
}
