package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"
)

// errStop ends a walk early.
var errStop = errors.New("stop")

// Filter says which Events Query returns. Zero fields match all.
type Filter struct {
	Since, Until time.Time
	Operations   []string
	KeyID        string // a part of it is enough
	UID          string
	CallerUID    *uint32
	// Result "!ok" is all but ok, and of what has begun only what has not ended.
	Result string
	Limit  int
}

// Match reports whether an Event's Record passes.
func (f *Filter) Match(r *Record) bool {
	switch {
	case r.Type != typeEvent && r.Type != typeLost:
		return false
	case !f.Since.IsZero() && r.Time.Before(f.Since), !f.Until.IsZero() && !r.Time.Before(f.Until):
		return false
	case len(f.Operations) > 0 && !slices.Contains(f.Operations, r.Operation):
		return false
	case f.KeyID != "" && !strings.Contains(r.KeyID, f.KeyID), f.UID != "" && r.UID != f.UID:
		return false
	case f.CallerUID != nil && (r.Caller == nil || r.Caller.UID != *f.CallerUID):
		return false
	case strings.HasPrefix(f.Result, "!"):
		return r.Result != "" && r.Result != f.Result[1:]
	}
	return f.Result == "" || r.Result == f.Result
}

// found is a Record that passed.
type found struct {
	chain  string
	record *Record
	line   []byte
}

// Query calls do for every Event that passes, all chains together in the order of
// time; line is as it is in the file, with its newline. It proves nothing: what
// is not a line is passed over, and counted.
func Query(ctx context.Context, paths []string, f Filter, do func(chain string, r *Record, line []byte) error) (skipped int, err error) {
	files, _, err := find(paths)
	if err != nil {
		return 0, err
	}
	var problem error
	var chains []*source
	for _, name := range slices.Sorted(maps.Keys(files)) {
		s := new(source)
		var stop func()
		s.next, stop = iter.Pull(matching(ctx, name, files[name], &f, &skipped, &problem))
		defer stop()
		if s.advance() {
			chains = append(chains, s)
		}
	}
	for matched := 0; len(chains) > 0 && problem == nil; {
		// Within a chain the order of the lines counts, even where a clock was set back.
		first := slices.MinFunc(chains, func(a, b *source) int { return a.head.record.Time.Compare(b.head.record.Time) })
		if matched++; f.Limit > 0 && matched > f.Limit {
			return skipped, nil
		}
		if err := do(first.head.chain, first.head.record, first.head.line); err != nil {
			return skipped, err
		}
		if !first.advance() {
			chains = slices.DeleteFunc(chains, func(s *source) bool { return s == first })
		}
	}
	if problem != nil {
		return skipped, fmt.Errorf("read the audit trail: %w", problem)
	}
	return skipped, nil
}

// source is a chain on its way.
type source struct {
	next func() (found, bool)
	head found
}

func (s *source) advance() (ok bool) {
	s.head, ok = s.next()
	return ok
}

// matching are the Records of a chain that pass.
func matching(ctx context.Context, chain string, files []chainFile, f *Filter, skipped *int, problem *error) iter.Seq[found] {
	return func(yield func(found) bool) {
		// open is what has begun; whether it has ended, the chain's next Event says.
		var open *found
		pass := func(r *Record, line []byte) bool {
			if begun := open; begun != nil && r.Type == typeEvent {
				open = nil
				if !ends(begun.record, r) && !yield(*begun) {
					return false
				}
			}
			if !f.Match(r) {
				return true
			}
			one := found{chain, r, bytes.Clone(line)}
			if r.Result == Begun && strings.HasPrefix(f.Result, "!") {
				open = &one
				return true
			}
			return yield(one)
		}
		for _, file := range files {
			_, err := eachLine(file.path, func(_ int, line []byte) error {
				r, _, _, err := parse(line)
				if err != nil {
					*skipped++
					return nil //nolint:nilerr // counted
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if !pass(r, line) {
					return errStop
				}
				return nil
			})
			if err != nil {
				if !errors.Is(err, errStop) {
					*problem = err
				}
				return
			}
		}
		if open != nil {
			yield(*open)
		}
	}
}

// ends reports whether r is how what has begun ended.
func ends(begun, r *Record) bool {
	return r.Operation == begun.Operation && r.Result != Begun &&
		(r.Caller == nil) == (begun.Caller == nil) && (r.Caller == nil || *r.Caller == *begun.Caller)
}
