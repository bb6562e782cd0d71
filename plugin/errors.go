package plugin

import (
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc/codes"

	"kekd/internal/kek"
)

// PublicReasoner is an error of Health that carries a text for clients: a few
// plain words from a closed set, without paths, PKCS#11 return values or key
// material. It replaces the class's own text.
type PublicReasoner interface {
	error
	PublicReason() string
}

// healthError marks an error that Health returned. Only those may choose their
// own public text.
type healthError struct{ err error }

func (e *healthError) Error() string { return e.err.Error() }
func (e *healthError) Unwrap() error { return e.err }

// errOverloaded: the cap on Encrypt and Decrypt is reached.
var errOverloaded = errors.New("too many requests at once")

// failure is how errors of one class look from outside.
type failure struct {
	name  string // the class in the log
	class error
	code  codes.Code
	text  string
	// keyed texts name the request's key_id. It is public, and the client knows
	// it already; beside the text it tells which key to look for.
	keyed bool
	// own: the request brings it about itself.
	own   bool
	level zapcore.Level
}

// failures maps the classes to codes and public texts, the first match counts.
// What kube-apiserver and its users see is decided here and nowhere else.
var failures = [...]failure{
	{name: "revoked", class: kek.ErrRevoked, code: codes.FailedPrecondition, keyed: true,
		text: "the KEK is disabled, scheduled for destruction or gone"},
	{name: "refused", class: kek.ErrRefused, code: codes.FailedPrecondition, keyed: true,
		text: "the token refuses this use of the KEK"},
	{name: "unknown-key", class: kek.ErrUnknownKey, code: codes.NotFound, own: true, keyed: true,
		text: "the KEK is not on the token"},
	{name: "wrong-key-id", class: kek.ErrWrongKeyID, code: codes.InvalidArgument, own: true, keyed: true,
		text: "the key_id does not belong to the ciphertext"},
	{name: "corrupt", class: kek.ErrCorrupt, code: codes.InvalidArgument, own: true, keyed: true,
		text: "the ciphertext is damaged or was not made by this key ring"},
	{name: "empty", class: kek.ErrEmpty, code: codes.InvalidArgument, own: true,
		text: "the plaintext is empty"},
	{name: "too-large", class: kek.ErrTooLarge, code: codes.InvalidArgument, own: true,
		text: "the plaintext is too large: its ciphertext would exceed 1024 bytes"},
	{name: "state", class: kek.ErrState, code: codes.Unavailable,
		text: "kekd cannot use its state directory"},
	{name: "pin", class: kek.ErrPIN, code: codes.Unavailable,
		text: "the HSM is unavailable: the token refused the PIN"},
	{name: "no-key", class: kek.ErrNoKey, code: codes.Unavailable,
		text: "the key ring has no usable KEK"},
	{name: "ambiguous", class: kek.ErrAmbiguous, code: codes.Unavailable,
		text: "several tokens or KEKs match where one is meant"},
	{name: "busy", class: kek.ErrBusy, code: codes.ResourceExhausted, own: true,
		text: "too many requests wait for the HSM"},
	{name: "overloaded", class: errOverloaded, code: codes.ResourceExhausted, own: true,
		text: "too many requests at once"},
	{name: "unavailable", class: kek.ErrUnavailable, code: codes.Unavailable,
		text: "the HSM is unavailable or kekd is not ready"},
	// The context's own errors come last: whoever wraps one together with a
	// class knows better what happened.
	{name: "deadline", class: context.DeadlineExceeded, code: codes.DeadlineExceeded, own: true,
		text: "the request took too long"},
	{name: "canceled", class: context.Canceled, code: codes.Canceled, own: true,
		text: "the client canceled the request"},
}

// classify finds an error's class. What fits none is a bug.
func classify(err error) failure {
	if _, ok := errors.AsType[*auditError](err); ok {
		return failure{name: "audit", code: codes.Unavailable, text: "the audit trail cannot be written", level: zapcore.ErrorLevel}
	}
	for _, f := range failures {
		if errors.Is(err, f.class) {
			f.level = zapcore.WarnLevel
			return f
		}
	}
	if e, ok := errors.AsType[requestError](err); ok {
		return failure{name: "request", code: codes.InvalidArgument, own: true, text: string(e), level: zapcore.WarnLevel}
	}
	if _, ok := errors.AsType[*healthError](err); ok {
		return failure{name: "unavailable", code: codes.Unavailable, text: "kekd is not ready", level: zapcore.WarnLevel}
	}
	if _, ok := errors.AsType[*panicError](err); ok {
		return failure{name: "panic", code: codes.Internal, text: "internal error", level: zapcore.ErrorLevel}
	}
	return failure{name: "internal", code: codes.Internal, text: "internal error", level: zapcore.ErrorLevel}
}

// publicText is what the client reads: never err's own text, except for the
// reason that Health wrote for it.
func (f failure) publicText(err error, keyID string) string {
	if h, ok := errors.AsType[*healthError](err); ok {
		if r, ok := errors.AsType[PublicReasoner](h.err); ok {
			return r.PublicReason()
		}
	}
	if f.keyed && keyID != "" {
		return fmt.Sprintf("%s (key_id %q)", f.text, clip(keyID, maxEchoedKeyID))
	}
	return f.text
}

// maxEchoedKeyID is the longest part of a client's key_id that is repeated in
// texts and logs, in bytes: longer than any key_id that kekd makes.
const maxEchoedKeyID = 288

// clip cuts s, which a client chose and gRPC has found to be UTF-8, to at most n
// bytes, between two characters: a line of the log or a span that is no UTF-8 is
// refused by who collects it.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
