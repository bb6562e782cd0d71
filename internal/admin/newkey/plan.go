// Package newkey adds a key to the ring: it plans when the key activates, asks, makes
// it, and finds out what is on the token when that fails.
package newkey

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"kekd/internal/kek"
)

// DefaultDelay is how far ahead a key beside others activates: long enough for every
// node to see it first.
const DefaultDelay = 5 * time.Minute

// View is what is known of a ring.
type View struct {
	// Label is the ring's.
	Label string
	// Ring is nil where nothing tells the states of its keys.
	Ring *kek.Ring
	// Err is why the ring has no primary; nil if it has one.
	Err error
	// Keys are all keys on the token.
	Keys []kek.Info
	// Published are the ids that nodes have told kube-apiserver about. The token may
	// no longer have them.
	Published []kek.ID
}

// taken returns the keys, and those that were published and are gone: a new key must
// activate after these as well.
func (v View) taken() []kek.Info {
	keys := slices.Clone(v.Keys)
	for _, id := range v.Published {
		gone := kek.Info{Ring: v.Label, ID: id}
		gone.Activation, _ = id.Activation()
		if id != "" && !slices.ContainsFunc(keys, func(k kek.Info) bool { return k.ID == id }) {
			keys = append(keys, gone)
		}
	}
	return keys
}

// newest returns the key with the latest activation, and false if none has one.
func newest(keys []kek.Info) (kek.Info, bool) {
	var last kek.Info
	for _, k := range keys {
		if k.Activation.After(last.Activation) {
			last = k
		}
	}
	return last, !last.Activation.IsZero()
}

// Plan decides when a new key activates in a ring.
type Plan func(v View, now time.Time) (time.Time, error)

// Delayed plans a key that activates after a delay. Where the delay was not given, it
// is none in a ring that has no primary, and DefaultDelay beside one. It refuses a
// time at which the key would not be the newest, and a delay shorter than least, which
// is keyRing.policy.minActivationDelay.
func Delayed(delay time.Duration, given bool, least time.Duration) Plan {
	return func(v View, now time.Time) (time.Time, error) {
		_, hasPrimary := v.Ring.Primary()
		// In an ambiguous ring a running kekd may still use the key it had before.
		hasPrimary = hasPrimary || errors.Is(v.Err, kek.ErrAmbiguous)
		delay := delay
		if !given {
			delay = 0
			if hasPrimary {
				delay = max(DefaultDelay, least)
			}
		}
		if hasPrimary && delay < least {
			return time.Time{}, fmt.Errorf("--activate-in: must be at least %s (keyRing.policy.minActivationDelay), got %s", least, delay)
		}
		activation := now.Add(delay)
		last, some := newest(v.taken())
		if !some {
			return activation, nil
		}
		if !given && last.Activation.Equal(activation.Truncate(time.Second)) {
			// Activations are whole seconds, and this one is ours to choose.
			activation = last.Activation.Add(time.Second)
		}
		if !last.Activation.Before(activation.Truncate(time.Second)) {
			return time.Time{}, fmt.Errorf("key %s activates at %s, so a key that activates at %s would never be the primary; choose a longer --activate-in",
				last.ID, last.Activation.Format(time.RFC3339), activation.UTC().Format(time.RFC3339))
		}
		return activation, nil
	}
}

// atOnce is how far ahead a key may activate that takes over at once: activations are
// whole seconds that no other key has.
const atOnce = 5 * time.Second

// AtOnce plans a key that takes over as soon as a node sees it. It refuses where a key
// activates later: whatever the clocks say, a successor is the newest key.
func AtOnce(least time.Duration) Plan {
	return Successor(func(v View, now time.Time) (time.Time, error) {
		if least > 0 {
			return time.Time{}, fmt.Errorf("--now: keyRing.policy.minActivationDelay demands %s; kekctl revoke stops a key that must not be used any longer", least)
		}
		at := After(v.taken(), now)
		if last, some := newest(v.taken()); some && at.Sub(now) > atOnce {
			return time.Time{}, fmt.Errorf("--now: key %s activates at %s, and its successor must activate later; remove it with kekctl key cancel %s, or choose a long enough --activate-in",
				last.ID, last.Activation.Format(time.RFC3339), last.ID)
		}
		return at, nil
	})
}

// Successor plans a key that takes over from another, so it refuses an empty ring.
func Successor(plan Plan) Plan {
	return func(v View, now time.Time) (time.Time, error) {
		if errors.Is(v.Err, kek.ErrNoKey) && len(v.Keys) == 0 {
			return time.Time{}, fmt.Errorf("%w: there is nothing to rotate", v.Err)
		}
		return plan(v, now)
	}
}

// After returns the first time at which a successor of these keys can activate: now,
// or the second after the newest.
func After(keys []kek.Info, now time.Time) time.Time {
	if last, some := newest(keys); some && !last.Activation.Before(now.Truncate(time.Second)) {
		return last.Activation.Add(time.Second)
	}
	return now
}
