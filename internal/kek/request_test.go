package kek

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestClass(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{nil, "ok"},
		{errors.New("what is this"), "internal"},
		{fmt.Errorf("open: %w", ErrCorrupt), "corrupt"},
		{fmt.Errorf("wait: %w", context.Canceled), "canceled"},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), "deadline"},
		{fmt.Errorf("%w: %w", ErrUnavailable, context.DeadlineExceeded), "unavailable"},
		{errors.Join(ErrUnavailable, ErrPIN), "pin"},
	} {
		if got := Class(tc.err); got != tc.want {
			t.Errorf("Class(%v) = %q, want %q", tc.err, got, tc.want)
		}
	}
	seen := map[string]bool{}
	for _, c := range classes {
		if Class(c.err) != c.name || seen[c.name] {
			t.Errorf("Class(%v) = %q, want %q, which no other class has", c.err, Class(c.err), c.name)
		}
		seen[c.name] = true
	}
}

// What is done for a request knows its uid when the request is over too.
func TestRequest(t *testing.T) {
	type key struct{}
	parent, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
	r := &Request{Context: parent, UID: "8a1c"}
	later, stop := context.WithTimeout(context.WithoutCancel(r), time.Minute)
	defer stop()
	cancel()
	if UID(later) != "8a1c" || later.Err() != nil || later.Value(key{}) != "value" {
		t.Errorf("a task of the request knows uid %q, value %v and error %v", UID(later), later.Value(key{}), later.Err())
	}
	if r.Err() == nil {
		t.Error("the request does not end with its context")
	}
	NoteSource(later, FromCache)
	if r.Source != FromCache {
		t.Errorf("source %q, want %q", r.Source, FromCache)
	}
	NoteSource(t.Context(), FromHSM) // nobody's
	if uid := UID(t.Context()); uid != "" {
		t.Errorf("uid %q where there is no request", uid)
	}
}
