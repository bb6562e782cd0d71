package main

import (
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"kekd/internal/kek"
)

// keyChange is what has become of a key between two looks at the ring. A state of 0
// stands for a key that is not on the ring.
type keyChange struct {
	keyID    string
	from, to kek.State
	// first: the ring was read for the first time.
	first bool
}

// gone spells the state of a key that is not on the ring.
const gone = "gone"

// spell returns a state as the log and the audit trail spell it.
func spell(s kek.State) string {
	if s == 0 {
		return gone
	}
	return s.String()
}

// keyStates compares what the looks at the ring find. Only one goroutine may use it.
type keyStates struct {
	last *kek.Ring // nil before the first
}

// changes returns which keys have come, gone or changed their state since the last
// call, in the order of the rings.
func (k *keyStates) changes(r *kek.Ring) []keyChange {
	first := k.last == nil
	if first {
		k.last = &kek.Ring{}
	}
	before, now := statesOf(k.last), statesOf(r)
	var found []keyChange
	for _, key := range r.Keys {
		if from := before[key.KeyID()]; from != key.State {
			found = append(found, keyChange{keyID: key.KeyID(), from: from, to: key.State, first: first})
		}
	}
	for _, key := range k.last.Keys {
		if now[key.KeyID()] == 0 {
			found = append(found, keyChange{keyID: key.KeyID(), from: key.State})
		}
	}
	k.last = r
	return found
}

// statesOf returns the states by key_id.
func statesOf(r *kek.Ring) map[string]kek.State {
	states := make(map[string]kek.State, len(r.Keys))
	for _, k := range r.Keys {
		states[k.KeyID()] = k.State
	}
	return states
}

// logKeyChanges logs what administrators and time have done to the keys. The keys of
// the first look are not a change.
func logKeyChanges(log *zap.Logger, changes []keyChange) {
	for _, c := range changes {
		if c.first {
			continue
		}
		level, message := c.describe()
		log.Log(level, message, zap.String("key_id", c.keyID), zap.String("from", spell(c.from)), zap.String("to", spell(c.to)))
	}
}

// describe returns the log's message. kekd sees states, so it names the command that
// makes such a change, whichever tool made this one.
func (c keyChange) describe() (zapcore.Level, string) {
	level := zap.InfoLevel
	if c.from == kek.Primary && c.to != kek.Retired {
		level = zap.WarnLevel // withdrawn, for which the audit log has its own line
	}
	switch {
	case c.to == 0 && c.from == kek.Scheduled:
		return level, "key purged"
	case c.to == 0 && c.from == kek.Pending:
		return level, "key canceled"
	case c.to == 0:
		return zap.WarnLevel, "key gone from the token"
	case c.from == 0:
		return level, "key added to the ring"
	case c.to == kek.Disabled:
		return level, "key disabled"
	case c.to == kek.Scheduled:
		return level, "key scheduled for destruction"
	case c.from == kek.Disabled:
		return level, "key enabled"
	case c.from == kek.Scheduled:
		return level, "key restored"
	case c.to == kek.Primary:
		return level, "key became the primary"
	case c.to == kek.Retired:
		return level, "key retired"
	}
	return level, "key changed its state"
}
