package kek

import "context"

// Source is where a request was served from.
type Source uint8

// The sources.
const (
	// FromSeed is the seed in use.
	FromSeed Source = iota + 1
	// FromCache is a seed that was unwrapped before.
	FromCache
	// FromHSM is an operation of the HSM, perhaps one that others waited for too.
	FromHSM
)

// String returns the source as the audit trail spells it; empty for none.
func (s Source) String() string {
	names := [...]string{"", "seed", "cache", "hsm"}
	if int(s) < len(names) {
		return names[s]
	}
	return ""
}

// Sourced is a context in which NoteSource leaves a Source. It serves one request,
// and one goroutine at a time.
type Sourced struct {
	context.Context //nolint:containedctx // it is one

	Source Source
}

type sourceKey struct{}

// Value implements context.Context.
func (c *Sourced) Value(key any) any {
	if key == (sourceKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// NoteSource tells where the request of ctx is served from, if anybody wants to know.
func NoteSource(ctx context.Context, s Source) {
	if c, ok := ctx.Value(sourceKey{}).(*Sourced); ok {
		c.Source = s
	}
}
