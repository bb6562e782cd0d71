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

// String returns the source as the audit trail and the traces spell it; empty for
// none.
func (s Source) String() string {
	names := [...]string{"", "seed", "cache", "hsm"}
	if int(s) < len(names) {
		return names[s]
	}
	return ""
}

// VerifyHeader is the gRPC header with which kekctl verify marks its requests. Any
// caller may send it, so it only sets apart failures that the request itself brings
// about, in log and metrics: what it opens counts as ever, and all of it is audited.
const VerifyHeader = "kekd-verify"

// Request is the context of one Encrypt or Decrypt. What is done for it knows it by
// its UID, in other goroutines and after its end too.
type Request struct {
	context.Context //nolint:containedctx // it is one

	// UID is what the client calls the request: any text, already cut to a size that
	// may be logged. It is not changed any more.
	UID string
	// Verify: the request carries VerifyHeader. It is not changed any more.
	Verify bool
	// Source is what NoteSource has left, in the goroutine that serves the request.
	Source Source
}

type requestKey struct{}

// Value implements context.Context.
func (r *Request) Value(key any) any {
	if key == (requestKey{}) {
		return r
	}
	return r.Context.Value(key)
}

// NoteSource tells where the request of ctx is served from; it does nothing where
// ctx belongs to none. The goroutine that serves the request calls it, and no other.
func NoteSource(ctx context.Context, s Source) {
	if r, ok := ctx.Value(requestKey{}).(*Request); ok {
		r.Source = s
	}
}

// UID returns the UID of the request that ctx belongs to, empty for none.
func UID(ctx context.Context) string {
	if r, ok := ctx.Value(requestKey{}).(*Request); ok {
		return r.UID
	}
	return ""
}

// Verifying reports whether ctx belongs to a request of kekctl verify.
func Verifying(ctx context.Context) bool {
	r, ok := ctx.Value(requestKey{}).(*Request)
	return ok && r.Verify
}
