package kek

import (
	"context"
	"errors"
)

// The classes of errors that cross package borders. Callers test them with
// errors.Is; the plugin maps each to one gRPC code and one public text. Whoever
// returns one wraps it with the detail, which goes to the log only.
var (
	// ErrUnavailable: the HSM cannot be reached or kekd is not ready; later may work.
	ErrUnavailable = errors.New("the HSM is unavailable")
	// ErrBusy: too much is waiting for the HSM already; later will work.
	ErrBusy = errors.New("too many requests wait for the HSM")
	// ErrCorrupt: the ciphertext is damaged, truncated, foreign or bound to
	// something else. It says nothing about the HSM's health.
	ErrCorrupt = errors.New("the ciphertext is damaged or was not made by this key ring")
	// ErrWrongKeyID: the request's key_id is not the one the ciphertext was made under.
	ErrWrongKeyID = errors.New("the key_id does not belong to the ciphertext")
	// ErrUnknownKey: the ciphertext names a KEK that is not on the token.
	ErrUnknownKey = errors.New("the KEK is not on the token")
	// ErrRevoked: the KEK is disabled, scheduled for destruction or gone.
	ErrRevoked = errors.New("the KEK is disabled or destroyed")
	// ErrRefused: the token forbids the operation with this key, for example
	// because CKA_ENCRYPT is false.
	ErrRefused = errors.New("the token refuses this use of the KEK")
	// ErrChanged: the key on the token is not as it was when the change was decided;
	// nothing was changed, or somebody else changed the same key at the same time.
	ErrChanged = errors.New("the KEK was changed meanwhile")
	// ErrPIN: the PIN was refused, or is locked or expired; it is not tried
	// again before its source changes or an operator clears the latch.
	ErrPIN = errors.New("the token refused the PIN")
	// ErrState: what must outlive a restart cannot be kept or read, because the disk
	// is full or the state directory is gone. The HSM has no part in it.
	ErrState = errors.New("the state directory cannot be used")
	// ErrNoKey: the ring has no key that could encrypt.
	ErrNoKey = errors.New("the ring has no usable KEK")
	// ErrAmbiguous: several tokens or keys match where one is meant.
	ErrAmbiguous = errors.New("several candidates match")
	// ErrTooLarge: the plaintext would not fit the contract's 1 KiB of ciphertext.
	ErrTooLarge = errors.New("the plaintext is too large")
	// ErrEmpty: the plaintext is empty.
	ErrEmpty = errors.New("the plaintext is empty")
)

// Class names the class of an error as the log and the traces spell it: "ok" for nil,
// "deadline" and "canceled" for the context's own, "internal" for what has none. Of
// several classes in one error the more telling one counts.
func Class(err error) string {
	if err == nil {
		return "ok"
	}
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return c.name
		}
	}
	return "internal"
}

// The context's own errors come last: whoever wraps one together with a class knows
// better what happened.
var classes = [...]struct {
	err  error
	name string
}{
	{ErrRevoked, "revoked"},
	{ErrChanged, "changed"},
	{ErrRefused, "refused"},
	{ErrUnknownKey, "unknown-key"},
	{ErrWrongKeyID, "wrong-key-id"},
	{ErrCorrupt, "corrupt"},
	{ErrEmpty, "empty"},
	{ErrTooLarge, "too-large"},
	{ErrState, "state"},
	{ErrPIN, "pin"},
	{ErrNoKey, "no-key"},
	{ErrAmbiguous, "ambiguous"},
	{ErrBusy, "busy"},
	{ErrUnavailable, "unavailable"},
	{context.DeadlineExceeded, "deadline"},
	{context.Canceled, "canceled"},
}
