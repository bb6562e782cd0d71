package worker

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/miekg/pkcs11"

	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// lookAgain is the remedy for a key that is not as it was seen.
const lookAgain = "somebody else changed the key meanwhile; look again with kekctl key list"

// changed makes the error for a key that is not as it was seen.
func changed(format string, args ...any) *wire.Error {
	return &wire.Error{Class: wire.ClassChanged, Text: fmt.Sprintf(format, args...), Hint: lookAgain}
}

// tooLate refuses to begin a change whose time is up.
func tooLate(what string, notAfter wire.Deadline) error {
	if !notAfter.Passed() {
		return nil
	}
	return &wire.Error{
		Class: wire.ClassLate, Text: fmt.Sprintf("it was too late to begin to %s: it had to be begun before %s", what, notAfter.Time().Format(time.RFC3339Nano)),
		Hint: "nothing was changed by this call; look again with kekctl key list, and decide anew",
	}
}

// now is what a key's object says, as far as changes depend on it.
type now struct {
	label            string
	encrypt, decrypt *bool
}

// bits are the usage bits by name, as seen and as they are now.
func (n now) bits(seen wire.Seen) [2]bit {
	return [2]bit{
		{"CKA_ENCRYPT", pkcs11.CKA_ENCRYPT, seen.Encrypt, n.encrypt},
		{"CKA_DECRYPT", pkcs11.CKA_DECRYPT, seen.Decrypt, n.decrypt},
	}
}

// bit is a usage bit of a KEK. A nil pointer means that the token does not tell.
type bit struct {
	name      string
	typ       uint
	seen, now *bool
}

// is reports whether the bit has a value, as far as the token tells.
func (b bit) is(v bool) bool { return b.now == nil || *b.now == v }

// asSeen reports whether the bit is as it was seen, as far as both are known.
func (b bit) asSeen() bool { return b.seen == nil || b.is(*b.seen) }

// readNow reads a key's object anew. A handle that leads to another key now is
// refused.
func (w *Worker) readNow(s session, id kek.ID, o pkcs11.ObjectHandle) (n now, err error) {
	got, err := w.module.GetAttribute(s.handle, o, pkcs11.CKA_ID)
	if err == nil && !bytes.Equal(got, []byte(id)) {
		err = vanished(id)
	}
	if err != nil {
		return n, err
	}
	if n.encrypt, err = w.readBool(s, o, pkcs11.CKA_ENCRYPT); err != nil {
		return n, err
	}
	if n.decrypt, err = w.readBool(s, o, pkcs11.CKA_DECRYPT); err != nil {
		return n, err
	}
	// The label counts most, so it is read last.
	label, err := w.module.GetAttribute(s.handle, o, pkcs11.CKA_LABEL)
	n.label = string(label)
	return n, err
}

// sameKey compares the check values. One that is not known on either side says
// nothing: most tokens can't compute that of a disabled key.
func (w *Worker) sameKey(s session, id kek.ID, o pkcs11.ObjectHandle, seen kek.CheckValue) error {
	var unknown kek.CheckValue
	if seen == unknown {
		return nil
	}
	v, err := w.checkValueOn(s, o)
	if err == nil && v != unknown && v != seen {
		err = changed("key %s has the check value %s now, not %s: it is another key", id, v, seen)
	}
	return err
}

// differs says in which way a key is not as it was seen; nil when it is.
func (n now) differs(id kek.ID, seen wire.Seen) error {
	var is, not []string
	if n.label != seen.Label {
		is, not = append(is, fmt.Sprintf("the label %q", n.label)), append(not, fmt.Sprintf("%q", seen.Label))
	}
	for _, b := range n.bits(seen) {
		if !b.asSeen() {
			is, not = append(is, fmt.Sprintf("%s=%t", b.name, *b.now)), append(not, fmt.Sprintf("%t", *b.seen))
		}
	}
	if is == nil {
		return nil
	}
	return changed("key %s has %s now, not %s", id, strings.Join(is, " and "), strings.Join(not, " and "))
}

// refused returns the error of a token that refuses something; nil for any other.
func refused(err error) *wire.Error {
	if e, ok := errors.AsType[*wire.Error](err); ok && e.Class == wire.ClassRefused {
		return e
	}
	return nil
}
