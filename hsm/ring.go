package hsm

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// What stands in a key's label behind the ring's own when the key is out of use.
const (
	suffixDisabled = "/disabled"
	// suffixDestroy stands before a date.
	suffixDestroy = "/destroy-after-"
)

// Use is the state that an administrator gives a key. The zero Use is Enabled.
type Use struct{ suffix string }

// Enabled is a key that works as its activation time says.
func Enabled() Use { return Use{} }

// Disabled is a key that is out of use until it is enabled again.
func Disabled() Use { return Use{suffixDisabled} }

// DestroyAfter is a key that is out of use and may be destroyed after a day (UTC).
func DestroyAfter(day time.Time) Use { return Use{suffixDestroy + day.UTC().Format(time.DateOnly)} }

// describeKey turns what the token tells into an Info. Its State is Disabled,
// Scheduled, or not set yet.
func describeKey(ring string, k wire.Key) kek.Info {
	info := kek.Info{Ring: ring, ID: kek.ID(k.ID), CheckValue: k.CheckValue, Attributes: k.Attributes}
	info.Activation, _ = info.ID.Activation()
	suffix := strings.TrimPrefix(k.Attributes.Label, ring)
	switch {
	case suffix == "":
		if d := k.Attributes.Decrypt; d != nil && !*d {
			info.State = kek.Disabled
		}
	case strings.HasPrefix(suffix, suffixDestroy):
		if day, err := time.Parse(time.DateOnly, strings.TrimPrefix(suffix, suffixDestroy)); err == nil {
			info.State, info.DestroyAfter = kek.Scheduled, day
			break
		}
		info.State = kek.Disabled
	default:
		// suffixDisabled, or a suffix of a later version: out of use either way.
		info.State = kek.Disabled
	}
	return info
}

// Published is what this node remembers of the keys that it has told Kubernetes
// about. It is what keeps the ring from going backwards across restarts.
type Published struct {
	// Last is the id of the last primary, empty before the first.
	Last kek.ID
	// CheckValue is the last primary's, as published; zero if the token could not
	// compute it.
	CheckValue kek.CheckValue
	// Before are the ids that were primary before, oldest first.
	Before []kek.ID
}

// publishedJSON spells ids in hexadecimal, since they are no valid UTF-8.
type publishedJSON struct {
	Last       string   `json:"last"`
	CheckValue string   `json:"checkValue"`
	Before     []string `json:"before"`
}

// MarshalJSON implements json.Marshaler.
func (p Published) MarshalJSON() ([]byte, error) {
	out := publishedJSON{Last: p.Last.String(), CheckValue: p.CheckValue.String(), Before: []string{}}
	for _, id := range p.Before {
		out.Before = append(out.Before, id.String())
	}
	return json.Marshal(out)
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *Published) UnmarshalJSON(b []byte) error {
	var in publishedJSON
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	var out Published
	if in.Last != "" { // nothing was published yet
		id, err := kek.ParseID(in.Last)
		if err != nil {
			return err
		}
		out.Last = id
	}
	v, err := hex.DecodeString(in.CheckValue)
	if err != nil || len(v) != len(out.CheckValue) {
		return fmt.Errorf("check value %q is not %d bytes in hexadecimal", in.CheckValue, len(out.CheckValue))
	}
	copy(out.CheckValue[:], v)
	for _, s := range in.Before {
		id, err := kek.ParseID(s)
		if err != nil {
			return err
		}
		out.Before = append(out.Before, id)
	}
	*p = out
	return nil
}

// Advance returns p with the key as the last primary, and whether that is a change.
func (p Published) Advance(k kek.Info) (Published, bool) {
	switch {
	case p.Last == k.ID && (p.CheckValue != kek.CheckValue{} || k.CheckValue == kek.CheckValue{}):
		return p, false
	case p.Last == k.ID: // known now
		p.CheckValue = k.CheckValue
		return p, true
	}
	next := Published{Last: k.ID, CheckValue: k.CheckValue}
	if p.Last != "" {
		next.Before = append(slices.Clone(p.Before), p.Last)
	}
	return next, true
}

// swapped reports whether the key under the last primary's id is another key. A
// check value that could not be computed at one of the two times proves nothing.
func (p Published) swapped(k kek.Info) bool {
	var unknown kek.CheckValue
	return p.Last == k.ID && p.CheckValue != unknown && k.CheckValue != unknown && p.CheckValue != k.CheckValue
}

// RingOptions is what BuildRing needs besides the keys.
type RingOptions struct {
	Now time.Time
	// Published is what this node published before.
	Published Published
	// Primary names the primary among keys that other tools made; empty if the
	// configuration names none.
	Primary kek.ID
}

// BuildRing derives the state of every key and finds the primary: the newest
// activated key. It is a pure function of the token's attributes, the time and
// what was published, so all nodes come to the same result.
//
// The ring that it returns is good for decryption even when there is an error,
// which then says why nothing may encrypt: kek.ErrNoKey when no key is
// activated, kek.ErrRevoked when the newest activated key is out of use or the
// last published one is gone or replaced by another key of the same id (the ring
// never falls back to an older key: Kubernetes forbids a key_id that returns),
// kek.ErrRefused when the primary has CKA_ENCRYPT=false, kek.ErrAmbiguous when
// nothing tells which key is the primary. Only where an id does not name one key,
// which is kek.ErrAmbiguous too, there is no ring.
func BuildRing(label string, keys []kek.Info, o RingOptions) (*kek.Ring, error) {
	keys = slices.Clone(keys)
	slices.SortFunc(keys, func(a, b kek.Info) int { return a.ID.Compare(b.ID) })
	if err := checkIDs(keys); err != nil {
		return nil, err
	}
	newest, unclear := newestActivated(keys, o)
	for i := range keys {
		switch k := &keys[i]; {
		case k.State != 0: // out of use
		case i > newest && isOwn(k.ID):
			k.State = kek.Pending
		default:
			k.State = kek.Retired
		}
	}
	ring := &kek.Ring{Label: label, Keys: keys}
	switch {
	case unclear != nil:
		return ring, unclear
	case newest < 0:
		return ring, noPrimary(keys, o.Published)
	}
	k := &keys[newest]
	switch {
	case isOwn(k.ID) && k.ID.Compare(o.Published.Last) < 0:
		return ring, fmt.Errorf("%w: the last primary %s is gone, and %s is older; a new key must be created%s", kek.ErrRevoked, o.Published.Last, k.ID, o.successor())
	case k.ID != o.Published.Last && slices.Contains(o.Published.Before, k.ID):
		return ring, fmt.Errorf("%w: the key %s was the primary before %s and cannot be it again; a new key must be created", kek.ErrRevoked, k.ID, o.Published.Last)
	case k.State == kek.Disabled || k.State == kek.Scheduled:
		return ring, fmt.Errorf("%w: the newest key %s is %s; the ring does not fall back to an older one, so a new key must be created", kek.ErrRevoked, k.ID, k.State)
	case o.Published.swapped(*k):
		return ring, fmt.Errorf("%w: another key stands under the id %s: its check value is %s and was %s", kek.ErrRevoked, k.ID, k.CheckValue, o.Published.CheckValue)
	case k.Attributes.Encrypt != nil && !*k.Attributes.Encrypt:
		return ring, fmt.Errorf("%w: the key %s has CKA_ENCRYPT=false", kek.ErrRefused, k.ID)
	}
	k.State = kek.Primary
	if k.ID == o.Published.Last && k.CheckValue == (kek.CheckValue{}) {
		// The token can't compute it any more, and the key_id must not change by that.
		k.CheckValue = o.Published.CheckValue
	}
	return ring, nil
}

// successor says what the key must be like that takes over from the last primary,
// where the clock that published it was ahead of this one; empty elsewhere.
func (o RingOptions) successor() string {
	if at, ok := o.Published.Last.Activation(); ok && at.After(o.Now) {
		return " that activates after " + at.Format(time.RFC3339)
	}
	return ""
}

func isOwn(id kek.ID) bool {
	_, own := id.Activation()
	return own
}

// checkIDs refuses a ring in which an id does not name one key.
func checkIDs(keys []kek.Info) error {
	for i, k := range keys {
		switch {
		case len(k.ID) == 0:
			return fmt.Errorf("%w: a key of the ring has no CKA_ID; give it one of its own (pkcs11-tool --set-id)", kek.ErrAmbiguous)
		case len(k.ID) > kek.MaxIDSize:
			return fmt.Errorf("%w: the CKA_ID %s has %d bytes, at most %d are supported", kek.ErrAmbiguous, k.ID, len(k.ID), kek.MaxIDSize)
		case i > 0 && keys[i-1].ID == k.ID:
			return fmt.Errorf("%w: two keys of the ring have the CKA_ID %s; give each an id of its own (pkcs11-tool --set-id)", kek.ErrAmbiguous, k.ID)
		}
	}
	return nil
}

// newestActivated returns the index of the newest activated key, in use or not;
// -1 when there is none, or nothing tells which it is. keys are sorted.
func newestActivated(keys []kek.Info, o RingOptions) (int, error) {
	// What was published once was activated, whatever the clock says now.
	now := o.Now
	if t, ok := o.Published.Last.Activation(); ok && t.After(now) {
		now = t
	}
	for i, k := range slices.Backward(keys) {
		if isOwn(k.ID) && !k.Activation.After(now) {
			return i, nil
		}
	}
	// Only keys of other tools are left. Nothing orders them, so none takes the
	// place of the last primary unless the configuration says so.
	if isOwn(o.Primary) {
		o.Primary = "" // keys of our own order themselves
	}
	if last := o.Published.Last; isOwn(last) || last != "" && (o.Primary == "" || o.Primary == last) {
		i := slices.IndexFunc(keys, func(k kek.Info) bool { return k.ID == last })
		if i < 0 || keys[i].State != 0 {
			return i, nil
		}
	}
	var foreign []int
	for i, k := range keys {
		if isOwn(k.ID) {
			continue
		}
		if k.ID == o.Primary {
			return i, nil
		}
		if k.State == 0 {
			foreign = append(foreign, i)
		}
	}
	switch {
	case o.Primary != "" && len(keys) > 0:
		return -1, fmt.Errorf("%w: keyRing.primary names %s, which is not in the ring; it has %s", kek.ErrAmbiguous, o.Primary, list(keys))
	case len(foreign) == 0:
		return lastForeign(keys), nil
	case len(foreign) == 1:
		return foreign[0], nil
	}
	return -1, fmt.Errorf("%w: the ring has %d keys that kekctl did not create, and nothing tells which is the newest: %s; name one by keyRing.primary, or create one with kekctl key create", kek.ErrAmbiguous, len(foreign), list(keys))
}

// lastForeign returns some key of another tool that is out of use, so that its
// state explains why the ring has no primary; -1 when there is none.
func lastForeign(keys []kek.Info) int {
	for i, k := range slices.Backward(keys) {
		if !isOwn(k.ID) {
			return i
		}
	}
	return -1
}

func noPrimary(keys []kek.Info, p Published) error {
	switch {
	case isOwn(p.Last):
		return fmt.Errorf("%w: the last primary %s is gone", kek.ErrRevoked, p.Last)
	case p.Last != "":
		return fmt.Errorf("%w: the last primary %s is gone; create a new key with kekctl key create, or name another by keyRing.primary", kek.ErrRevoked, p.Last)
	}
	for _, k := range keys {
		if k.State == kek.Pending {
			return fmt.Errorf("%w: the first key activates at %s", kek.ErrNoKey, k.Activation.Format(time.RFC3339))
		}
	}
	return fmt.Errorf("%w: create one with kekctl key create", kek.ErrNoKey)
}

func list(keys []kek.Info) string {
	ids := make([]string, 0, len(keys))
	for _, k := range keys {
		ids = append(ids, k.ID.String())
	}
	return strings.Join(ids, ", ")
}

// Hint returns the remedy that an error carries, empty if none.
func Hint(err error) string {
	if e, ok := errors.AsType[*LeftoverError](err); ok {
		return e.Hint()
	}
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e.Hint
	}
	if e, ok := errors.AsType[*latchedError](err); ok {
		return e.Hint()
	}
	return ""
}
