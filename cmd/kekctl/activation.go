package main

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"kekd/internal/kek"
)

// defaultDelay is how far ahead a key beside others activates: long enough for
// every node to see it first.
const defaultDelay = 5 * time.Minute

// planActivation returns when a new key becomes the primary: delay from now where
// it was given; otherwise at once in a ring that has no primary, and after
// defaultDelay beside one. It refuses a time at which the key would not be the
// newest, and a delay shorter than the policy's. ring and ringErr are what
// session.ring returned.
func (s *session) planActivation(ring *kek.Ring, ringErr error, keys []kek.Info, delay time.Duration, given bool, now time.Time) (time.Time, error) {
	_, hasPrimary := ring.Primary()
	// In an ambiguous ring a running kekd may still use the key it had before.
	hasPrimary = hasPrimary || errors.Is(ringErr, kek.ErrAmbiguous)
	if !given {
		delay = 0
		if hasPrimary {
			delay = max(defaultDelay, s.cfg.KeyRing.Policy.MinActivationDelay)
		}
	}
	if least := s.cfg.KeyRing.Policy.MinActivationDelay; hasPrimary && delay < least {
		return time.Time{}, codeError{exitFailed, fmt.Sprintf("--activate-in: must be at least %s (keyRing.policy.minActivationDelay), got %s", least, delay)}
	}
	activation := now.Add(delay)
	for _, k := range keys {
		if !given && k.Activation.Equal(activation.Truncate(time.Second)) {
			// Activations are whole seconds, and this one is ours to choose.
			activation = k.Activation.Add(time.Second)
		}
		if !k.Activation.Before(activation.Truncate(time.Second)) {
			return time.Time{}, codeError{exitFailed, fmt.Sprintf("key %s activates at %s, so a key that activates at %s would never be the primary; choose a longer --activate-in",
				k.ID, k.Activation.Format(time.RFC3339), activation.UTC().Format(time.RFC3339))}
		}
	}
	return activation, nil
}

// withPublished adds the key that kekd published last to the keys, if the token has
// it no more: a new key must activate after that one, too.
func (s *session) withPublished(keys []kek.Info) []kek.Info {
	gone := kek.Info{Ring: s.cfg.KeyRing.Label, ID: s.published.Last}
	gone.Activation, _ = gone.ID.Activation()
	if gone.ID == "" || slices.ContainsFunc(keys, func(k kek.Info) bool { return k.ID == gone.ID }) {
		return keys
	}
	return append(slices.Clone(keys), gone)
}

// planNow returns when a new key activates that takes over at once: now, or the
// next second that no other key has. A key that is pending takes over from it later.
func planNow(keys []kek.Info, now time.Time) time.Time {
	taken := make(map[int64]bool)
	for _, k := range keys {
		if !k.Activation.IsZero() {
			taken[k.Activation.Unix()] = true
		}
	}
	for taken[now.Unix()] {
		now = now.Add(time.Second)
	}
	return now
}
