package keychange

import (
	"fmt"
	"time"

	"kekd/internal/kek"
)

// Verb is a change of a key's state, by the name of its command and of its operation
// in the audit trail.
type Verb string

const (
	// Cancel removes a pending key.
	Cancel Verb = "cancel"
	// Disable takes a key out of use until it is enabled again.
	Disable Verb = "disable"
	Enable  Verb = "enable"
	// Destroy schedules a destruction; the key is out of use and can be restored.
	Destroy Verb = "destroy"
	// Restore cancels a scheduled destruction.
	Restore Verb = "restore"
	// Purge removes a key for good whose date has come.
	Purge Verb = "purge"
)

// guarded reports whether the change takes a key out of use, so that it needs
// evidence.
func (v Verb) guarded() bool { return v != Enable && v != Restore }

// removes reports whether the key is gone afterwards.
func (v Verb) removes() bool { return v == Cancel || v == Purge }

// allowed says why a key in its state can't be changed so; empty if it can.
func (v Verb) allowed(k kek.Info, now time.Time) string {
	switch v {
	case Cancel:
		if k.State != kek.Pending {
			return fmt.Sprintf("key %s is %s; only a pending key can be cancelled", k.ID, k.State)
		}
	case Disable:
		return disableAllowed(k)
	case Destroy:
		return destroyAllowed(k)
	case Purge:
		switch {
		case k.State != kek.Scheduled:
			return fmt.Sprintf("key %s is %s; only a key that is scheduled for destruction can be purged: kekctl key destroy %s --after 30d", k.ID, k.State, k.ID)
		case now.Before(k.DestroyAfter):
			return fmt.Sprintf("key %s must not be purged before %s (UTC)", k.ID, k.DestroyAfter.Format(time.DateOnly))
		}
	case Enable:
		return useAllowed(k, kek.Disabled, Restore)
	case Restore:
		return useAllowed(k, kek.Scheduled, Enable)
	}
	return ""
}

func disableAllowed(k kek.Info) string {
	switch k.State {
	case kek.Retired:
		return ""
	case kek.Primary:
		return fmt.Sprintf("key %s is the primary: everything that is written needs it; rotate first with kekctl rotate, or, if it must not be used any more, kekctl revoke %s", k.ID, k.ID)
	case kek.Pending:
		return fmt.Sprintf("key %s is pending: disabled, it would stop all writes at its activation; use kekctl key cancel %s", k.ID, k.ID)
	}
	return fmt.Sprintf("key %s is %s already", k.ID, k.State)
}

func destroyAllowed(k kek.Info) string {
	switch k.State {
	case kek.Retired, kek.Disabled:
		return ""
	case kek.Scheduled:
		return fmt.Sprintf("key %s is scheduled already, for %s; kekctl key restore cancels that", k.ID, k.DestroyAfter.Format(time.DateOnly))
	case kek.Pending:
		return fmt.Sprintf("key %s is pending; use kekctl key cancel %s", k.ID, k.ID)
	}
	return fmt.Sprintf("key %s is the primary and cannot be destroyed; rotate first with kekctl rotate", k.ID)
}

// useAllowed is for what puts a key into use again that is out of use in this state;
// the other verb is for the other state.
func useAllowed(k kek.Info, from kek.State, other Verb) string {
	switch k.State {
	case from:
		return ""
	case kek.Disabled, kek.Scheduled:
		return fmt.Sprintf("key %s is %s; use kekctl key %s %s", k.ID, k.State, other, k.ID)
	}
	return fmt.Sprintf("key %s is in use already: it is %s", k.ID, k.State)
}

// plan says what will be done.
func (v Verb) plan(k kek.Info, day time.Time) string {
	switch v {
	case Cancel:
		return fmt.Sprintf("Removes the pending key %s, which would become the primary at %s.", k.ID, k.Activation.Format(time.RFC3339))
	case Disable:
		return fmt.Sprintf("Disables key %s: no kekd decrypts with it any more. kekctl key enable enables it again.", k.KeyID())
	case Destroy:
		return fmt.Sprintf("Takes key %s out of use, to be purged after %s. Until then kekctl key restore brings it back.", k.KeyID(), day.Format(time.DateOnly))
	case Purge:
		return fmt.Sprintf("DESTROYS key %s for good. Backups of etcd that need it become worthless.", k.KeyID())
	}
	return fmt.Sprintf("Makes key %s usable again: every kekd decrypts with it.", k.KeyID())
}

// Done says what was done to a key, and what comes next.
func (r Result) Done(refresh time.Duration) string {
	k := r.Key
	switch r.Verb {
	case Cancel:
		return fmt.Sprintf("Key %s is gone; the primary stays what it is.", k.ID)
	case Disable:
		return fmt.Sprintf("Key %s is disabled; every kekd refuses it within %s. A running kube-apiserver keeps what it has unwrapped until it is restarted.", k.ID, refresh)
	case Destroy:
		return fmt.Sprintf("Key %s is out of use within %s. Nothing is destroyed yet: from %s on, kekctl key purge %s does that.", k.ID, refresh, k.DestroyAfter.Format(time.DateOnly), k.ID)
	case Purge:
		return fmt.Sprintf("Key %s is destroyed.", k.ID)
	}
	return fmt.Sprintf("Key %s is usable again within %s.", k.ID, refresh)
}

// shown reports whether the token shows the key as the change was to leave it; found
// is false where the token does not hold it.
func (v Verb) shown(k kek.Info, found bool, day time.Time) bool {
	switch v {
	case Cancel, Purge:
		return !found
	case Disable:
		return found && k.State == kek.Disabled
	case Destroy:
		return found && k.State == kek.Scheduled && k.DestroyAfter.Equal(day)
	}
	return found && k.State != kek.Disabled && k.State != kek.Scheduled
}
