// Package keypolicy compares a key ring with what an organisation demands of its
// KEKs (keyRing.policy). It only tells: kekd goes on with a ring that is not as it
// should be, since stopping would do more harm.
package keypolicy

import (
	"fmt"
	"time"

	"kekd/internal/config"
	"kekd/internal/kek"
)

// Rule is what a violation is about, as metrics spell it.
type Rule string

// The rules.
const (
	MaxAge     Rule = "max-age"
	Attributes Rule = "attributes"
)

// Rules lists all rules.
func Rules() []Rule { return []Rule{MaxAge, Attributes} }

// Violation is one way in which the ring is not as it should be.
type Violation struct {
	Rule Rule
	// KeyID is the key's.
	KeyID string
	// Text says what is wrong in a sentence without the key, Remedy what to do.
	Text, Remedy string
}

// String is the violation in one sentence.
func (v Violation) String() string { return fmt.Sprintf("key %s %s", v.KeyID, v.Text) }

// Evaluate compares a ring with the policy. Keys that are out of use, or are to be
// the primary one day, are only looked at as far as they can decrypt.
func Evaluate(ring *kek.Ring, p config.KeyPolicy, now time.Time) []Violation {
	var found []Violation
	if due, why := Due(ring, p, now); due {
		primary, _ := ring.Primary()
		found = append(found, Violation{MaxAge, primary.KeyID(), why, "rotate with kekctl rotate"})
	}
	for _, k := range ring.Keys {
		if !k.State.Decrypts() {
			continue
		}
		for _, a := range p.Require {
			if text := lacks(k.Attributes, a); text != "" {
				found = append(found, Violation{Attributes, k.KeyID(), text,
					"rotate to a key that kekctl creates, re-encrypt with kekctl rewrap, and take this one out of use"})
			}
		}
	}
	return found
}

// Due reports whether the primary is older than the policy allows, and says how
// old it is. Without a primary or a limit nothing is due. The age of a key that
// another tool made is not known, so it is due.
func Due(ring *kek.Ring, p config.KeyPolicy, now time.Time) (due bool, why string) {
	primary, ok := ring.Primary()
	age := now.Sub(primary.Activation)
	switch {
	case !ok:
		return false, "there is no primary"
	case p.MaxAge == 0:
		return false, "has no limit of age (keyRing.policy.maxAge)"
	case primary.Activation.IsZero():
		return true, fmt.Sprintf("was made by another tool, so nobody knows whether it is older than %s (keyRing.policy.maxAge)", days(p.MaxAge))
	case age >= p.MaxAge:
		return true, fmt.Sprintf("has been the primary for %s, longer than %s (keyRing.policy.maxAge)", days(age), days(p.MaxAge))
	}
	return false, fmt.Sprintf("has been the primary for %s of %s (keyRing.policy.maxAge)", days(age), days(p.MaxAge))
}

// days spells a duration in days where it has some.
func days(d time.Duration) string {
	if d < 48*time.Hour {
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

// lacks says how a key misses a required attribute; empty if it has it.
func lacks(at kek.Attributes, want config.Attribute) string {
	value, required := at.Sensitive, true
	switch want {
	case config.Sensitive:
	case config.NonExtractable:
		value, required = at.Extractable, false
	case config.AlwaysSensitive:
		value = at.AlwaysSensitive
	case config.NeverExtractable:
		value = at.NeverExtractable
	case config.Local:
		value = at.Local
	}
	switch {
	case value == nil:
		return fmt.Sprintf("is required to be %s (keyRing.policy.require), which the token does not tell", want)
	case *value != required:
		return fmt.Sprintf("is not %s (keyRing.policy.require)", want)
	}
	return ""
}
