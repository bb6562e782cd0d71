package keychange

import (
	"fmt"
	"strings"

	"kekd/internal/kek"
)

// BadName is a name that cannot be a key's.
type BadName struct{ text string }

// Error implements error.
func (e *BadName) Error() string { return e.text }

// Find finds the key that an argument names: by its CKA_ID in hexadecimal, or by its
// key_id. A key_id must be right in all parts: another key may have had the CKA_ID
// before.
func Find(ring *kek.Ring, name string) (kek.Info, error) {
	label, id, err := kek.ParseKeyID(name)
	whole := err == nil
	if !whole {
		if id, err = kek.ParseID(name); err != nil {
			return kek.Info{}, &BadName{fmt.Sprintf("%v; give the CKA_ID or the key_id that kekctl key list shows", err)}
		}
	} else if label != ring.Label {
		return kek.Info{}, &BadName{fmt.Sprintf("key_id %q is of the ring %q, and keyRing.label is %q; kekctl key list shows the keys of this ring", name, label, ring.Label)}
	}
	k, ok := ring.Lookup(id)
	if !ok {
		return kek.Info{}, &Refused{Text: fmt.Sprintf("the ring %q has no key %s; kekctl key list shows its keys", ring.Label, id)}
	}
	if check := name[strings.LastIndexByte(name, '/')+1:]; whole && !strings.EqualFold(check, k.CheckValue.String()) {
		return kek.Info{}, &Refused{Text: fmt.Sprintf("key %s has the check value %s, and the key_id says %s; kekctl key list shows the key_ids", id, k.CheckValue, check)}
	}
	return k, nil
}
