package chaos

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// change is a command that changes the state of a key, or a look at it.
type change struct {
	key, verb string
	// to is the state that a look has found, or that another tool has set.
	to           string
	begun, ended time.Time
	// done: the exit code was 0, so it must have taken effect in between. undone: it
	// has not. Else nobody knows.
	done, undone bool
}

// String is the change as a failure shows it.
func (c change) String() string {
	return fmt.Sprintf("%s %s%s from %s to %s, done: %t", c.verb, c.key, c.to, c.begun.Format("04:05.000"), c.ended.Format("04:05.000"), c.done)
}

// apply is the state after a change; false if the change cannot be made in this state.
func (c change) apply(state string) (string, bool) {
	from, to := []string{state}, ""
	switch c.verb {
	case "look":
		from, to = []string{c.to}, c.to
	case "set":
		from, to = []string{"enabled", "disabled", "scheduled"}, c.to
	case "disable", "revoke":
		from, to = []string{"enabled"}, "disabled"
	case "enable":
		from, to = []string{"disabled"}, "enabled"
	case "destroy":
		from, to = []string{"enabled", "disabled"}, "scheduled"
	case "restore":
		from, to = []string{"scheduled"}, "enabled"
	case "purge":
		from, to = []string{"scheduled"}, "gone"
	case "cancel":
		from, to = []string{"enabled"}, "gone"
	}
	return to, slices.Contains(from, state)
}

// observe notes what the token holds now, of the keys that commands have named.
func (h *history) observe(keys []tokenKey) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	named := map[string]bool{}
	for _, c := range h.changes {
		named[c.key] = true
	}
	for k := range named {
		// The list was read a moment ago.
		h.changes = append(h.changes, change{key: k, verb: "look", to: stateIn(keys, k), begun: now.Add(-2 * time.Second), ended: now, done: true})
	}
}

// checkChanges requires that, for each key, there is an order of the changes in which
// each takes effect between its beginning and its end, and all reports are true.
func (h *history) checkChanges(t *testing.T) {
	t.Helper()
	byKey := map[string][]change{}
	for _, c := range h.changes {
		if !c.undone {
			if !c.done {
				// A killed kekctl may have left a worker that runs for a moment longer.
				c.ended = c.ended.Add(3 * time.Second)
			}
			byKey[c.key] = append(byKey[c.key], c)
		}
	}
	for key, changes := range byKey {
		if !linearizable(changes) {
			text := ""
			for _, c := range changes {
				text += "\n  " + c.String()
			}
			t.Errorf("what kekctl reported of key %s is not what the token holds:%s", key, text)
		}
	}
}

// linearizable reports whether the changes of one key, which begins enabled, can have
// happened as they were reported.
func linearizable(changes []change) bool {
	slices.SortFunc(changes, func(a, b change) int { return a.begun.Compare(b.begun) })
	type position struct {
		taken string
		state string
	}
	failed := map[position]bool{}
	taken := make([]byte, len(changes))
	var try func(state string) bool
	try = func(state string) bool {
		p := position{string(taken), state}
		if failed[p] {
			return false
		}
		// The next one must begin before any that is left has ended.
		var first time.Time
		left := false
		for i, c := range changes {
			if taken[i] == 0 && (c.done || !c.ended.IsZero()) {
				if c.done {
					left = true
				}
				if first.IsZero() || c.ended.Before(first) {
					first = c.ended
				}
			}
		}
		if !left {
			return true
		}
		for i, c := range changes {
			if taken[i] != 0 || c.begun.After(first) {
				continue
			}
			taken[i] = 1
			if next, ok := c.apply(state); ok && try(next) || !c.done && try(state) {
				return true
			}
			taken[i] = 0
		}
		failed[p] = true
		return false
	}
	return try("enabled")
}

func TestLinearizable(t *testing.T) {
	t.Parallel()
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	op := func(verb string, begun, ended int, done bool) change {
		return change{verb: verb, begun: at(begun), ended: at(ended), done: done}
	}
	look := func(state string, when int) change {
		return change{verb: "look", to: state, begun: at(when), ended: at(when), done: true}
	}
	tests := []struct {
		name    string
		changes []change
		want    bool
	}{
		{"nothing", nil, true},
		{"one", []change{op("disable", 1, 2, true), look("disabled", 3)}, true},
		{"not done", []change{op("disable", 1, 2, true), look("enabled", 3)}, false},
		{"killed, and done", []change{op("disable", 1, 2, false), look("disabled", 3)}, true},
		{"killed, and not done", []change{op("disable", 1, 2, false), look("enabled", 3)}, true},
		{"both at once", []change{op("disable", 1, 4, true), op("destroy", 1, 4, true), look("scheduled", 5)}, true},
		{"the schedule is overwritten", []change{op("disable", 1, 4, true), op("destroy", 1, 4, true), look("disabled", 5)}, false},
		{"purged after a restore", []change{op("destroy", 1, 2, true), op("restore", 3, 4, true), op("purge", 3, 6, true)}, false},
		{"purged before a restore", []change{op("destroy", 1, 2, true), op("restore", 3, 4, true), op("purge", 5, 6, true)}, false},
		{"restored and scheduled again", []change{op("destroy", 1, 2, true), op("restore", 3, 4, true), op("destroy", 5, 6, false), op("purge", 5, 9, true), look("gone", 10)}, true},
		{"not what nobody did", []change{look("enabled", 1), look("disabled", 2)}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := linearizable(tt.changes); got != tt.want {
				t.Errorf("linearizable is %t, want %t", got, tt.want)
			}
		})
	}
}
