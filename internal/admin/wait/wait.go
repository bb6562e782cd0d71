// Package wait waits for several parties at once, such as the nodes of a cluster,
// and keeps the administrator informed of whom it waits for, why, and for how long.
package wait

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Party is one node or API server that must come to a state.
type Party struct {
	// Name is its own, which no other party has.
	Name string
	// Look says that it is there, or why it is not yet: one of the two is empty.
	Look func(ctx context.Context) (seen, missing string)
}

// Sighting is what was last seen of a party.
type Sighting struct {
	Name string
	// Seen says that it is there; empty while it is not.
	Seen string
	// Missing says why it is not.
	Missing string
}

// Wait says what is waited for.
type Wait struct {
	// What completes "waiting for NAME", such as "to test the key".
	What string
	// Pause is the time between two looks at the same party.
	Pause time.Duration
	// Limit is how long to wait; 0 waits until the context ends.
	Limit time.Duration
	// Sticky parties need not stay: what one showed once counts until the end.
	Sticky bool
	// Found hears of each party when it is there for the first time.
	Found func(Sighting)
	// Note hears, every noteEvery, whom All waits for.
	Note func(string)
}

// noteEvery is the longest time without a word to the administrator.
const noteEvery = 10 * time.Second

// update is the result of one look.
type update struct {
	party         int
	seen, missing string
}

// All looks at every party again and again until all are there. It returns what it
// saw last of each, in the parties' order, and the context's error if that or the
// limit ended the wait. A look that the end cut off does not count.
func (w Wait) All(ctx context.Context, parties []Party) ([]Sighting, error) {
	begun := time.Now()
	if w.Limit > 0 {
		limited, cancel := context.WithTimeout(ctx, w.Limit)
		defer cancel()
		ctx = limited
	}
	looking, stop := context.WithCancel(ctx)
	updates := make(chan update)
	var all sync.WaitGroup
	sightings := make([]Sighting, len(parties))
	for i, p := range parties {
		sightings[i] = Sighting{Name: p.Name, Missing: "it has not answered yet"}
		all.Go(func() { w.watch(looking, i, p, updates) })
	}
	defer all.Wait()
	defer stop()
	ticker := time.NewTicker(noteEvery)
	defer ticker.Stop()
	found := make([]bool, len(parties))
	for !complete(sightings) {
		select {
		case u := <-updates:
			s := &sightings[u.party]
			if w.Sticky && s.Seen != "" {
				continue
			}
			s.Seen, s.Missing = u.seen, u.missing
			if s.Seen != "" && !found[u.party] {
				found[u.party] = true
				w.Found(*s)
			}
		case <-ticker.C:
			w.note(sightings, time.Since(begun))
		case <-ctx.Done():
			return sightings, context.Cause(ctx)
		}
	}
	return sightings, nil
}

// watch looks at one party until the context ends.
func (w Wait) watch(ctx context.Context, i int, p Party, updates chan<- update) {
	for {
		seen, missing := p.Look(ctx)
		select {
		case updates <- update{i, seen, missing}:
		case <-ctx.Done():
			return
		}
		if Pause(ctx, w.Pause) != nil {
			return
		}
	}
}

func complete(sightings []Sighting) bool {
	for _, s := range sightings {
		if s.Seen == "" {
			return false
		}
	}
	return true
}

func (w Wait) note(sightings []Sighting, waited time.Duration) {
	for _, s := range sightings {
		if s.Seen == "" {
			w.Note(w.line(s, waited))
		}
	}
}

func (w Wait) line(s Sighting, waited time.Duration) string {
	line := fmt.Sprintf("waiting for %s %s: %s, %s", s.Name, w.What, s.Missing, waited.Round(time.Second))
	if w.Limit > 0 {
		line += fmt.Sprintf(" of at most %s", w.Limit.Round(time.Second))
	}
	return line
}

// Until waits until a time, and says every noteEvery how much is left.
func Until(ctx context.Context, at time.Time, note func(left time.Duration)) error {
	for {
		left := time.Until(at)
		if left <= 0 {
			return nil
		}
		if err := Pause(ctx, min(left, noteEvery)); err != nil {
			return err
		}
		if left = time.Until(at); left > 0 {
			note(left)
		}
	}
}

// Pause waits, or returns the context's error.
func Pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
