package hsm_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	"kekd/hsm"
	"kekd/hsm/hsmtest"
	"kekd/hsm/wire"
)

func TestOtherLabels(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	labels, more, err := r.token.OtherLabels(t.Context())
	must(t, err)
	if len(labels) != 0 || more != 0 {
		t.Errorf("the ring's own key: got %q and %d more", labels, more)
	}

	// Another ring sees this one's label, that of a disabled key included.
	other := r.Open(t, func(c *hsm.Config) { c.Ring = "mistyped" })
	labels, _, err = other.OtherLabels(t.Context())
	must(t, err)
	if diff := cmp.Diff([]string{r.Config.Ring}, labels); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	// Many, and unkind ones.
	r.edit(t, func(token *hsmtest.FakeToken) {
		key := token.Objects[0]
		for i := range wire.MaxLabels + 5 {
			twin := &hsmtest.FakeObject{Handle: uint(1000 + i), Value: key.Value, Attributes: maps.Clone(key.Attributes)}
			label := fmt.Sprintf("A%02d", i)
			if i == 0 {
				label = "A00\x1b[31m" + strings.Repeat("x", 200)
			}
			twin.Attributes[pkcs11.CKA_LABEL] = []byte(label)
			token.Objects = append(token.Objects, twin)
		}
	})
	labels, more, err = other.OtherLabels(t.Context())
	must(t, err)
	if len(labels) != wire.MaxLabels || more != 6 {
		t.Errorf("got %d labels and %d more, want %d and 6", len(labels), more, wire.MaxLabels)
	}
	if n := len([]rune(labels[0])); n != wire.MaxLabel+1 || strings.ContainsRune(labels[0], '\x1b') {
		t.Errorf("a label as it must not be shown: %q", labels[0])
	}
}
