package health

import (
	"context"
	"errors"

	"kekd/internal/kek"
)

// The public reasons that belong to no error. All reasons are shown to whoever
// may read kube-apiserver's health or kekd's /readyz: they are a closed set
// without paths, return values or names.
const (
	reasonStarting = "kekd has not used the HSM yet"
	reasonStale    = "the HSM check has not finished for too long"
	reasonNoSeed   = "no seed is ready to encrypt"
	reasonOther    = "the HSM check failed"
)

// reasons maps errors to public reasons, the first match counts.
var reasons = [...]struct {
	class error
	text  string
}{
	{kek.ErrState, "kekd cannot use its state directory; its log has the reason"},
	{kek.ErrPIN, "the token refused the PIN; it is not tried again before it is replaced or the latch is cleared"},
	{kek.ErrRevoked, "the KEK is disabled, scheduled for destruction or gone"},
	{kek.ErrRefused, "the token refuses this use of the KEK"},
	{kek.ErrNoKey, "the key ring has no usable KEK"},
	{kek.ErrUnknownKey, "the KEK is not on the token"},
	{kek.ErrAmbiguous, "several tokens or KEKs match where one is meant"},
	{kek.ErrBusy, "too many requests wait for the HSM"},
	{context.DeadlineExceeded, "the HSM did not answer in time"},
	{kek.ErrUnavailable, "the HSM is unavailable"},
}

// reasonOf returns the public reason of an error.
func reasonOf(err error) string {
	for _, r := range reasons {
		if errors.Is(err, r.class) {
			return r.text
		}
	}
	return reasonOther
}

// stateError is why something is not served.
type stateError struct {
	state  State
	class  error // kek.ErrUnavailable or kek.ErrRevoked
	reason string
}

// Error implements error.
func (e *stateError) Error() string { return string(e.state) + ": " + e.reason }

// Unwrap returns the class.
func (e *stateError) Unwrap() error { return e.class }

// PublicReason returns the text that clients may see.
func (e *stateError) PublicReason() string { return "kekd is " + e.Error() }
