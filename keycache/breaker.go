package keycache

import (
	"errors"
	"time"

	"kekd/internal/kek"
)

// breakerPause is how long the breaker stays open before it lets one trial
// through, and so for how long the HSM may be back unnoticed.
const breakerPause = 500 * time.Millisecond

// breaker stops asking an HSM that does not answer. It starts closed; a failure
// opens it; after breakerPause a single trial is let through, whose answer
// closes it or starts the pause anew. It has no lock: its owner has.
type breaker struct {
	open    bool
	retryAt time.Time // no trial before
	trying  bool      // a trial is under way
}

// admit reports whether the HSM may be asked now, and whether that is the trial.
func (b *breaker) admit(now time.Time) (ok, trial bool) {
	if !b.open {
		return true, false
	}
	if b.trying || now.Before(b.retryAt) {
		return false, false
	}
	b.trying = true
	return true, true
}

// record takes in how an admitted call ended.
func (b *breaker) record(v verdict, trial bool, now time.Time) {
	if trial {
		b.trying = false
	}
	switch v {
	case answered:
		b.open = false
	case silent:
		b.open = true
		b.retryAt = now.Add(breakerPause)
	case unclear:
	}
}

// verdict is what an error says about the HSM.
type verdict uint8

const (
	answered verdict = iota // it works, even if its answer was no
	silent                  // it does not, or not for us
	unclear                 // it was not asked
)

// judge sorts the errors of a Wrapper. What has no class counts as silence: a
// storm of it is no better for the HSM.
func judge(err error) verdict {
	switch {
	case err == nil, lasting(err):
		return answered
	case errors.Is(err, kek.ErrBusy):
		return unclear
	}
	if n, ok := errors.AsType[notAsked](err); ok && n.NotAsked() {
		// The Wrapper knows when it will ask again, and fails at once until then. A
		// pause of the breaker's on top of that would only be late.
		return unclear
	}
	return silent
}

// notAsked is an error that can say that the HSM was not asked.
type notAsked interface {
	error
	NotAsked() bool
}
