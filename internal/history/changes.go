package history

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"kekd/internal/health"
	"kekd/internal/kek"
	"kekd/internal/keypolicy"
)

const (
	// maxChanges is how many changes of a group are kept, the latest.
	maxChanges = 50
	// maxText bounds the text of a change, in bytes.
	maxText = 300
)

// Changes are kept by group, so that many of one can't push out those of another.
const (
	groupHealth = iota
	groupRing
	groupHSM
	groupAudit
	groups
)

// Subject is what has changed.
type Subject string

// The subjects.
const (
	OfHealth  Subject = "health"
	OfKey     Subject = "key"
	OfRing    Subject = "key ring"
	OfPolicy  Subject = "policy"
	OfSeed    Subject = "seed"
	OfWorker  Subject = "HSM worker"
	OfBreaker Subject = "breaker"
	OfPIN     Subject = "PIN"
	OfAudit   Subject = "audit trail"
)

var groupOf = map[Subject]int{
	OfHealth: groupHealth,
	OfKey:    groupRing, OfRing: groupRing, OfPolicy: groupRing, OfSeed: groupRing,
	OfWorker: groupHSM, OfBreaker: groupHSM, OfPIN: groupHSM,
	OfAudit: groupAudit,
}

// Level is how bad a change is.
type Level uint8

// The levels.
const (
	Note    Level = iota // as it should be, or nobody's loss
	Good                 // something is right again
	Warning              // served, but not as it should be
	Fault                // not served, or somebody must act
)

// String returns the level as a word.
func (l Level) String() string { return [...]string{"note", "good", "warning", "fault"}[l] }

// Change is something that has changed. Its text holds nothing secret, but may hold
// any characters.
type Change struct {
	// At is when it happened, Last when it last did again.
	At, Last time.Time
	Subject  Subject
	Level    Level
	Text     string
	// Count is how often it has happened.
	Count int
}

// add keeps a change. One that the latest of its subject tells already is counted.
// The caller holds mu.
func (r *Recorder) add(s Subject, l Level, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if len(text) > maxText {
		const dots = "\u2026"
		// ToValidUTF8 drops the rest of a character that was cut.
		text = strings.ToValidUTF8(text[:maxText-len(dots)], "") + dots
	}
	now := r.cfg.Clock()
	kept := &r.changes[groupOf[s]]
	for i := range slices.Backward(*kept) {
		c := &(*kept)[i]
		if c.Subject != s {
			continue
		}
		if c.Level != l || c.Text != text {
			break
		}
		c.Last = now
		c.Count++
		return
	}
	if len(*kept) == maxChanges {
		*kept = slices.Delete(*kept, 0, 1)
	}
	*kept = append(*kept, Change{At: now, Last: now, Subject: s, Level: l, Text: text, Count: 1})
}

// latest returns all changes, the latest first. The caller holds mu.
func (r *Recorder) latest() []Change {
	all := slices.Concat(r.changes[:]...)
	slices.SortStableFunc(all, func(a, b Change) int { return b.Last.Compare(a.Last) })
	return all
}

// HealthChanged implements health.Observer in part.
func (r *Recorder) HealthChanged(from, to, reason string) {
	level := Note
	switch health.State(to) {
	case health.Ready:
		level = Good
	case health.Coasting:
		level = Warning
	case health.Unready, health.Revoked:
		level = Fault
	case health.Starting:
	}
	if reason != "" {
		reason = ": " + reason
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(OfHealth, level, "%s to %s%s", from, to, reason)
}

// keySeen is a key as it was last on the ring.
type keySeen struct{ keyID, state string }

// SetRing implements rotation.Observer in part: it tells which keys have come, gone or
// changed their state since the last call. Those of the first call are no change.
func (r *Recorder) SetRing(ring *kek.Ring) {
	now := make(map[kek.ID]keySeen, len(ring.Keys))
	for _, k := range ring.Keys {
		now[k.ID] = keySeen{k.KeyID(), k.State.String()}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.keys
	r.keys = now
	if before == nil {
		what := "keys"
		if len(ring.Keys) == 1 {
			what = "key"
		}
		r.add(OfRing, Note, "first read: %d %s", len(ring.Keys), what)
		return
	}
	for _, k := range ring.Keys {
		is, was := now[k.ID], before[k.ID]
		switch {
		case was.state == "":
			r.add(OfKey, Note, "%s is new on the ring: %s", is.keyID, is.state)
		case was.state != is.state:
			r.add(OfKey, levelOf(k.State), "%s: %s to %s", is.keyID, was.state, is.state)
		}
	}
	for id, was := range before {
		if _, ok := now[id]; !ok {
			r.add(OfKey, Warning, "%s, which was %s, is gone from the token", was.keyID, was.state)
		}
	}
}

func levelOf(s kek.State) Level {
	if s == kek.Disabled || s == kek.Scheduled {
		return Warning
	}
	return Note
}

// RingLooked implements rotation.Observer in part. While looks fail, the first
// error is kept.
func (r *Recorder) RingLooked(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.problem == (err != nil) {
		return
	}
	r.problem = err != nil
	if err != nil {
		r.add(OfRing, Warning, "no look ends with a key in use: %v", err)
	} else {
		r.add(OfRing, Good, "read, and its primary is in use")
	}
}

// SetPolicy implements rotation.Observer in part.
func (r *Recorder) SetPolicy(violations []keypolicy.Violation) {
	now := make([]string, 0, len(violations))
	for _, v := range violations {
		// Without the details, which grow with the age of a key.
		now = append(now, fmt.Sprintf("key %s breaks the rule %s", v.KeyID, v.Rule))
	}
	slices.Sort(now)
	now = slices.Compact(now)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range now {
		if !slices.Contains(r.policy, v) {
			r.add(OfPolicy, Warning, "%s", v)
		}
	}
	if len(now) == 0 && len(r.policy) > 0 {
		r.add(OfPolicy, Good, "all rules are kept again")
	}
	r.policy = now
}

// Rotated implements rotation.Observer in part.
func (r *Recorder) Rotated(err error) {
	r.seeded(err, "no seed under the new primary", Good, "a primary has taken over, with a seed of its own")
}

// Renewed implements rotation.Observer in part.
func (r *Recorder) Renewed(err error) {
	r.seeded(err, "not renewed", Note, "renewed under the same key")
}

// seeded tells of an attempt to make a seed. While attempts fail, the first error is
// kept.
func (r *Recorder) seeded(err error, failed string, l Level, worked string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.unseeded
	r.unseeded = err != nil
	if err == nil {
		r.add(OfSeed, l, "%s", worked)
	} else if !known {
		r.add(OfSeed, Warning, "%s: %v", failed, err)
	}
}

// HSMWorkerRestart implements hsm.Observer in part.
func (r *Recorder) HSMWorkerRestart(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(OfWorker, Warning, "came to its end (%s) and is started again", reason)
}

// HSMWorkerStartFailed implements hsm.Observer in part.
func (r *Recorder) HSMWorkerStartFailed(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(OfWorker, Fault, "did not come up (%s)", reason)
}

// HSMLatched implements hsm.Observer in part.
func (r *Recorder) HSMLatched(latched bool) {
	r.turned(&r.latched, latched, OfPIN, Fault, "the token refused it; it is not tried again", "may be tried again")
}

// Breaker implements keycache.Observer in part.
func (r *Recorder) Breaker(open bool) {
	r.turned(&r.breaker, open, OfBreaker, Warning, "open: requests that need the HSM fail at once", "closed: the HSM answers")
}

// turned tells of something that is wrong, or right again, where that is news.
func (r *Recorder) turned(known *bool, wrong bool, s Subject, l Level, bad, good string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if *known == wrong {
		return
	}
	*known = wrong
	if wrong {
		r.add(s, l, "%s", bad)
	} else {
		r.add(s, Good, "%s", good)
	}
}

// AuditFailing implements audit.Observer in part.
func (r *Recorder) AuditFailing(part string, failing bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failing[part] == failing {
		return
	}
	if !failing {
		delete(r.failing, part)
		r.add(OfAudit, Good, "%s works again", part)
		return
	}
	r.failing[part] = true
	r.add(OfAudit, Fault, "%s fails", part)
}
