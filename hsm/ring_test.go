package hsm

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"kekd/hsm/wire"
	"kekd/internal/kek"
)

const ringLabel = "k8s-kek"

// at is a time of these tests, in seconds since an arbitrary day.
func at(secs int64) time.Time {
	return time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(secs) * time.Second)
}

// own is the id of a key of kekd's own that activates at that time; n tells ids
// of one time apart.
func own(secs int64, n byte) kek.ID {
	b := binary.BigEndian.AppendUint64([]byte{1}, uint64(at(secs).Unix()))
	return kek.ID(append(b, n, 0, 0, 0, 0, 0, 0, 0))
}

// tokenKey is a key as the token lists it.
func tokenKey(id kek.ID, change ...func(*kek.Attributes)) kek.Info {
	k := wire.Key{ID: []byte(id), CheckValue: kek.CheckValue{1, 2, 3}, Attributes: kek.Attributes{Label: ringLabel}}
	for _, c := range change {
		c(&k.Attributes)
	}
	return describeKey(ringLabel, k)
}

func label(suffix string) func(*kek.Attributes) {
	return func(a *kek.Attributes) { a.Label = ringLabel + suffix }
}

func no() *bool { return new(bool) }

func noEncrypt(a *kek.Attributes) { a.Encrypt = no() }

func noDecrypt(a *kek.Attributes) { a.Decrypt = no() }

func TestDescribeKey(t *testing.T) {
	t.Parallel()
	day := time.Date(2026, 12, 24, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		change func(*kek.Attributes)
		state  kek.State
		after  time.Time
	}{
		"in use":                    {label(""), 0, time.Time{}},
		"does not encrypt":          {noEncrypt, 0, time.Time{}},
		"does not decrypt":          {noDecrypt, kek.Disabled, time.Time{}},
		"disabled":                  {label("/disabled"), kek.Disabled, time.Time{}},
		"scheduled":                 {label("/destroy-after-2026-12-24"), kek.Scheduled, day},
		"scheduled without a date":  {label("/destroy-after-"), kek.Disabled, time.Time{}},
		"scheduled for no such day": {label("/destroy-after-2026-02-30"), kek.Disabled, time.Time{}},
		"scheduled in other words":  {label("/destroy-after-24.12.2026"), kek.Disabled, time.Time{}},
		"suffix of a later version": {label("/archived"), kek.Disabled, time.Time{}},
		"empty suffix":              {label("/"), kek.Disabled, time.Time{}},
		"scheduled, does not decrypt": {func(a *kek.Attributes) {
			a.Label, a.Decrypt = ringLabel+"/destroy-after-2026-12-24", no()
		}, kek.Scheduled, day},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := tokenKey(own(10, 0), c.change)
			if k.State != c.state || !k.DestroyAfter.Equal(c.after) {
				t.Errorf("state %v after %v, want %v after %v", k.State, k.DestroyAfter, c.state, c.after)
			}
			if k.Ring != ringLabel || !k.Activation.Equal(at(10)) {
				t.Errorf("ring %q, activation %v; want the ring's label without suffix and the id's time", k.Ring, k.Activation)
			}
		})
	}
}

func TestBuildRing(t *testing.T) {
	t.Parallel()
	foreign, foreign2, foreign3 := kek.ID("\x01"), kek.ID("\x02"), kek.ID("\x03")
	type options struct {
		last    kek.ID
		before  []kek.ID
		primary kek.ID
	}
	for name, c := range map[string]struct {
		keys []kek.Info
		opts options
		want string // the states, oldest first; empty for no ring
		err  error
		says string
	}{
		"empty":                {nil, options{}, "-", kek.ErrNoKey, "kekctl key create"},
		"empty, had a primary": {nil, options{last: own(10, 0)}, "-", kek.ErrRevoked, "is gone"},
		"one key":              {[]kek.Info{tokenKey(own(10, 0))}, options{}, "primary", nil, ""},
		"activates now":        {[]kek.Info{tokenKey(own(100, 0))}, options{}, "primary", nil, ""},
		"activates in a second": {
			[]kek.Info{tokenKey(own(101, 0))}, options{}, "pending", kek.ErrNoKey, at(101).Format(time.RFC3339),
		},
		"old, newest, future": {
			[]kek.Info{tokenKey(own(300, 0)), tokenKey(own(10, 0)), tokenKey(own(200, 0)), tokenKey(own(90, 0)), tokenKey(own(20, 0))},
			options{}, "retired retired primary pending pending", nil, "",
		},
		"same second": {
			[]kek.Info{tokenKey(own(10, 7)), tokenKey(own(10, 3))}, options{}, "retired primary", nil, "",
		},
		"newest disabled": {
			[]kek.Info{tokenKey(own(10, 0)), tokenKey(own(20, 0), label("/disabled"))}, options{},
			"retired disabled", kek.ErrRevoked, "does not fall back",
		},
		"newest scheduled": {
			[]kek.Info{tokenKey(own(10, 0)), tokenKey(own(20, 0), label("/destroy-after-2030-01-01"))}, options{last: own(20, 0)},
			"retired scheduled-for-destruction", kek.ErrRevoked, "scheduled",
		},
		"newest does not decrypt": {
			[]kek.Info{tokenKey(own(10, 0)), tokenKey(own(20, 0), noDecrypt)}, options{}, "retired disabled", kek.ErrRevoked, "disabled",
		},
		"newest does not encrypt": {
			[]kek.Info{tokenKey(own(10, 0)), tokenKey(own(20, 0), noEncrypt)}, options{}, "retired retired", kek.ErrRefused, "CKA_ENCRYPT=false",
		},
		"newest disabled, a newer one came": {
			[]kek.Info{tokenKey(own(10, 0)), tokenKey(own(20, 0), label("/disabled")), tokenKey(own(30, 0))},
			options{last: own(20, 0)}, "retired disabled primary", nil, "",
		},
		"old one disabled": {
			[]kek.Info{tokenKey(own(10, 0), label("/disabled")), tokenKey(own(20, 0))}, options{}, "disabled primary", nil, "",
		},
		"pending one cancelled": {
			[]kek.Info{tokenKey(own(10, 0)), tokenKey(own(200, 0), label("/disabled"))}, options{}, "primary disabled", nil, "",
		},
		"newest gone": {
			[]kek.Info{tokenKey(own(10, 0))}, options{last: own(20, 0)}, "retired", kek.ErrRevoked, "a new key must be created",
		},
		"newest gone, a newer one came": {
			[]kek.Info{tokenKey(own(10, 0)), tokenKey(own(30, 0))}, options{last: own(20, 0)}, "retired primary", nil, "",
		},
		"newest gone, one of the same second is older": {
			[]kek.Info{tokenKey(own(20, 1))}, options{last: own(20, 2)}, "retired", kek.ErrRevoked, "is gone",
		},
		"newest gone, the next is pending": {
			[]kek.Info{tokenKey(own(10, 0)), tokenKey(own(200, 0))}, options{last: own(20, 0)}, "retired pending", kek.ErrRevoked, "is gone",
		},
		"all but a pending one gone": {
			[]kek.Info{tokenKey(own(200, 0))}, options{last: own(20, 0)}, "pending", kek.ErrRevoked, "is gone",
		},
		"clock went backwards": {
			// It is 100 now; 150 was published, so it was that late once.
			[]kek.Info{tokenKey(own(10, 0)), tokenKey(own(150, 0)), tokenKey(own(160, 0))}, options{last: own(150, 0)},
			"retired primary pending", nil, "",
		},
		"clock went backwards, newest disabled": {
			[]kek.Info{tokenKey(own(10, 0)), tokenKey(own(150, 0), label("/disabled"))}, options{last: own(150, 0)},
			"retired disabled", kek.ErrRevoked, "does not fall back",
		},
		"clock went backwards, newest gone": {
			[]kek.Info{tokenKey(own(10, 0)), tokenKey(own(140, 0))}, options{last: own(150, 0)}, "retired retired", kek.ErrRevoked,
			"a new key must be created that activates after " + at(150).Format(time.RFC3339),
		},
		"another node was ahead": {
			[]kek.Info{tokenKey(own(10, 0)), tokenKey(own(90, 0))}, options{last: own(10, 0)}, "retired primary", nil, "",
		},

		"one foreign key": {[]kek.Info{tokenKey(foreign)}, options{}, "primary", nil, ""},
		"one foreign key, published": {
			[]kek.Info{tokenKey(foreign)}, options{last: foreign}, "primary", nil, "",
		},
		"one foreign key, not the one named": {
			[]kek.Info{tokenKey(foreign)}, options{primary: foreign2}, "retired", kek.ErrAmbiguous, "keyRing.primary names 02",
		},
		"two foreign keys": {
			[]kek.Info{tokenKey(foreign), tokenKey(foreign2)}, options{}, "retired retired", kek.ErrAmbiguous, "01, 02",
		},
		"two foreign keys, one named": {
			[]kek.Info{tokenKey(foreign), tokenKey(foreign2)}, options{primary: foreign}, "primary retired", nil, "",
		},
		"two foreign keys, the named one disabled": {
			[]kek.Info{tokenKey(foreign, label("/disabled")), tokenKey(foreign2)}, options{primary: foreign}, "disabled retired", kek.ErrRevoked, "01",
		},
		"two foreign keys, one disabled": {
			[]kek.Info{tokenKey(foreign), tokenKey(foreign2, label("/disabled"))}, options{}, "primary disabled", nil, "",
		},
		"the only foreign key disabled": {
			[]kek.Info{tokenKey(foreign, label("/disabled"))}, options{last: foreign}, "disabled", kek.ErrRevoked, "disabled",
		},
		"foreign keys, then an own one": {
			[]kek.Info{tokenKey(foreign), tokenKey(foreign2), tokenKey(own(10, 0))}, options{last: foreign}, "retired retired primary", nil, "",
		},
		"the named foreign key is no longer asked once an own one is active": {
			[]kek.Info{tokenKey(foreign), tokenKey(own(10, 0))}, options{primary: foreign, last: foreign}, "retired primary", nil, "",
		},
		"foreign key and a pending own one": {
			[]kek.Info{tokenKey(foreign), tokenKey(own(200, 0))}, options{last: foreign}, "primary pending", nil, "",
		},
		"own key gone, a foreign one left": {
			[]kek.Info{tokenKey(foreign)}, options{last: own(10, 0)}, "retired", kek.ErrRevoked, "is gone",
		},
		"another foreign key named": {
			[]kek.Info{tokenKey(foreign), tokenKey(foreign2), tokenKey(foreign3)}, options{primary: foreign2, last: foreign}, "retired primary retired", nil, "",
		},
		"a foreign key named that was primary before": {
			[]kek.Info{tokenKey(foreign), tokenKey(foreign2)}, options{primary: foreign, last: foreign2, before: []kek.ID{foreign}},
			"retired retired", kek.ErrRevoked, "01 was the primary before 02",
		},

		// No other key takes the place of the one that was published, clear or not.
		"own key gone, several foreign ones left": {
			[]kek.Info{tokenKey(foreign), tokenKey(foreign2)}, options{last: own(10, 0)}, "retired retired", kek.ErrRevoked, "is gone",
		},
		"own key gone, a named foreign one left": {
			[]kek.Info{tokenKey(foreign), tokenKey(foreign2)}, options{last: own(10, 0), primary: foreign},
			"retired retired", kek.ErrRevoked, "is gone",
		},
		"own key gone, a foreign and a pending own one left": {
			[]kek.Info{tokenKey(foreign), tokenKey(own(200, 0))}, options{last: own(10, 0), before: []kek.ID{foreign}},
			"retired pending", kek.ErrRevoked, "is gone",
		},
		"own key disabled, a foreign one there": {
			[]kek.Info{tokenKey(foreign), tokenKey(own(10, 0), label("/disabled"))}, options{last: own(10, 0)},
			"retired disabled", kek.ErrRevoked, "does not fall back",
		},
		"own key disabled, the named foreign one there": {
			[]kek.Info{tokenKey(foreign), tokenKey(own(10, 0), label("/disabled"))}, options{primary: foreign},
			"retired disabled", kek.ErrRevoked, "does not fall back",
		},
		"published foreign key disabled, another one there": {
			[]kek.Info{tokenKey(foreign, label("/disabled")), tokenKey(foreign2)}, options{last: foreign},
			"disabled retired", kek.ErrRevoked, "01 is disabled",
		},
		"published foreign key disabled, several others there": {
			[]kek.Info{tokenKey(foreign, label("/disabled")), tokenKey(foreign2), tokenKey(foreign3)}, options{last: foreign},
			"disabled retired retired", kek.ErrRevoked, "01 is disabled",
		},
		"published foreign key disabled, another one named": {
			[]kek.Info{tokenKey(foreign, label("/disabled")), tokenKey(foreign2)}, options{last: foreign, primary: foreign2},
			"disabled primary", nil, "",
		},
		"published foreign key gone, another one there": {
			[]kek.Info{tokenKey(foreign2)}, options{last: foreign}, "retired", kek.ErrRevoked, "01 is gone; create a new key with kekctl key create, or name another by keyRing.primary",
		},
		"published foreign key gone, others there": {
			[]kek.Info{tokenKey(foreign2), tokenKey(foreign3)}, options{last: foreign}, "retired retired", kek.ErrRevoked, "01 is gone",
		},
		"published foreign key gone, another one named": {
			[]kek.Info{tokenKey(foreign2), tokenKey(foreign3)}, options{last: foreign, primary: foreign3}, "retired primary", nil, "",
		},
		"named and published foreign key gone, another one there": {
			[]kek.Info{tokenKey(foreign2)}, options{last: foreign, primary: foreign}, "retired", kek.ErrRevoked, "01 is gone",
		},
		"named and published foreign key gone, an own one pending": {
			[]kek.Info{tokenKey(own(200, 0))}, options{last: foreign, primary: foreign}, "pending", kek.ErrRevoked, "01 is gone",
		},
		"published foreign key among others, none named": {
			[]kek.Info{tokenKey(foreign), tokenKey(foreign2)}, options{last: foreign}, "retired retired", kek.ErrAmbiguous, "name one by keyRing.primary",
		},
		"published foreign key beside a disabled one": {
			[]kek.Info{tokenKey(foreign), tokenKey(foreign2, label("/disabled"))}, options{last: foreign}, "primary disabled", nil, "",
		},
		"all foreign keys disabled": {
			[]kek.Info{tokenKey(foreign, label("/disabled")), tokenKey(foreign2, noDecrypt)}, options{}, "disabled disabled", kek.ErrRevoked, "disabled",
		},

		"a missing key named": {
			[]kek.Info{tokenKey(foreign), tokenKey(foreign2)}, options{primary: foreign3}, "retired retired", kek.ErrAmbiguous, "keyRing.primary names 03, which is not in the ring; it has 01, 02",
		},
		"a missing key named, an own one active": {
			[]kek.Info{tokenKey(foreign), tokenKey(own(10, 0))}, options{primary: foreign3}, "retired primary", nil, "",
		},
		"an own key named": {
			[]kek.Info{tokenKey(own(10, 0)), tokenKey(own(20, 0))}, options{primary: own(10, 0)}, "retired primary", nil, "",
		},
		"a pending own key named, one foreign key": {
			[]kek.Info{tokenKey(foreign), tokenKey(own(200, 0))}, options{primary: own(200, 0)}, "primary pending", nil, "",
		},
		"a pending own key named, several foreign keys": {
			[]kek.Info{tokenKey(foreign), tokenKey(foreign2), tokenKey(own(200, 0))}, options{primary: own(200, 0)},
			"retired retired pending", kek.ErrAmbiguous, "name one by keyRing.primary, or create one with kekctl key create",
		},
		"several foreign keys and the first own one pending": {
			[]kek.Info{tokenKey(foreign), tokenKey(foreign2), tokenKey(own(200, 0))}, options{primary: foreign2, last: foreign2},
			"retired primary pending", nil, "",
		},
		"several foreign keys and the first own one active": {
			[]kek.Info{tokenKey(foreign), tokenKey(foreign2), tokenKey(own(100, 0))}, options{primary: foreign2, last: foreign2},
			"retired retired primary", nil, "",
		},
		"a pending own key disabled, a foreign one published": {
			[]kek.Info{tokenKey(foreign), tokenKey(own(200, 0), label("/disabled"))}, options{last: foreign}, "primary disabled", nil, "",
		},
		"a pending own key disabled, its time came": {
			[]kek.Info{tokenKey(foreign), tokenKey(own(100, 0), label("/disabled"))}, options{last: foreign},
			"retired disabled", kek.ErrRevoked, "does not fall back",
		},

		"cancelled at its time, on a node that switched": {
			[]kek.Info{tokenKey(own(10, 0))}, options{last: own(100, 0), before: []kek.ID{own(10, 0)}}, "retired", kek.ErrRevoked, "must be created",
		},
		"cancelled at its time, on a node that did not": {
			[]kek.Info{tokenKey(own(10, 0))}, options{last: own(10, 0)}, "primary", nil, "",
		},
		"same second, the later one published": {
			[]kek.Info{tokenKey(own(10, 3)), tokenKey(own(10, 7))}, options{last: own(10, 7)}, "retired primary", nil, "",
		},
		"same second, the earlier one published": {
			[]kek.Info{tokenKey(own(10, 3)), tokenKey(own(10, 7))}, options{last: own(10, 3)}, "retired primary", nil, "",
		},
		"same second, the later one disabled": {
			[]kek.Info{tokenKey(own(10, 3)), tokenKey(own(10, 7), label("/disabled"))}, options{last: own(10, 3)},
			"retired disabled", kek.ErrRevoked, "does not fall back",
		},
		"clock went backwards, another one of the published one's second": {
			[]kek.Info{tokenKey(own(150, 3)), tokenKey(own(150, 7)), tokenKey(own(151, 0))}, options{last: own(150, 3)},
			"retired primary pending", nil, "",
		},
		"clock went backwards, a newer one came for now": {
			[]kek.Info{tokenKey(own(100, 0)), tokenKey(own(150, 0))}, options{last: own(150, 0)}, "retired primary", nil, "",
		},
		"clock went backwards, to before a foreign key's successor": {
			[]kek.Info{tokenKey(foreign), tokenKey(own(150, 0))}, options{last: own(150, 0), before: []kek.ID{foreign}, primary: foreign},
			"retired primary", nil, "",
		},

		"two keys of one id": {
			[]kek.Info{tokenKey(own(10, 0)), tokenKey(own(10, 0), label("/disabled"))}, options{}, "", kek.ErrAmbiguous, "two keys",
		},
		"a key without id": {[]kek.Info{tokenKey(""), tokenKey(own(10, 0))}, options{}, "", kek.ErrAmbiguous, "no CKA_ID"},
		"an id that is too long": {
			[]kek.Info{tokenKey(kek.ID(strings.Repeat("a", 65)))}, options{}, "", kek.ErrAmbiguous, "65 bytes",
		},
		"the longest id": {[]kek.Info{tokenKey(kek.ID(strings.Repeat("a", 64)))}, options{}, "primary", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before := append([]kek.Info(nil), c.keys...)
			ring, err := BuildRing(ringLabel, c.keys, RingOptions{
				Now: at(100), Published: Published{Last: c.opts.last, Before: c.opts.before}, Primary: c.opts.primary,
			})
			if !errors.Is(err, c.err) || (err != nil) != (c.err != nil) || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("error %v, want %v that says %q", err, c.err, c.says)
			}
			if got := states(ring); got != c.want {
				t.Errorf("states %q, want %q", got, c.want)
			}
			if diff := cmp.Diff(before, c.keys); diff != "" {
				t.Errorf("the caller's keys changed (-before +after):\n%s", diff)
			}
		})
	}
}

func states(ring *kek.Ring) string {
	if ring == nil {
		return ""
	}
	if len(ring.Keys) == 0 {
		return "-"
	}
	var all []string
	for _, k := range ring.Keys {
		all = append(all, k.State.String())
	}
	return strings.Join(all, " ")
}

// ids draws ids that meet each other: few times, few tails, and foreign ones.
func ids() *rapid.Generator[kek.ID] {
	return rapid.Custom(func(t *rapid.T) kek.ID {
		if rapid.IntRange(0, 3).Draw(t, "kind") == 0 {
			return kek.ID([]byte{byte(rapid.IntRange(1, 4).Draw(t, "foreign"))})
		}
		return own(rapid.Int64Range(0, 6).Draw(t, "activation"), byte(rapid.IntRange(0, 2).Draw(t, "tail")))
	})
}

func TestBuildRingProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		suffixes := rapid.SampledFrom([]string{"", "", "", "/disabled", "/destroy-after-2027-01-01", "/x"})
		keys := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) kek.Info {
			var changes []func(*kek.Attributes)
			changes = append(changes, label(suffixes.Draw(t, "suffix")))
			if rapid.IntRange(0, 9).Draw(t, "encrypt") == 0 {
				changes = append(changes, noEncrypt)
			}
			if rapid.IntRange(0, 9).Draw(t, "decrypt") == 0 {
				changes = append(changes, noDecrypt)
			}
			return tokenKey(ids().Draw(t, "id"), changes...)
		}), 0, 6).Draw(t, "keys")
		o := RingOptions{Now: at(rapid.Int64Range(-1, 7).Draw(t, "now"))}
		if rapid.Bool().Draw(t, "published") {
			history := rapid.SliceOfN(ids(), 1, 4).Draw(t, "history")
			for _, id := range history {
				o.Published, _ = o.Published.Advance(kek.Info{ID: id})
			}
		}
		if rapid.IntRange(0, 2).Draw(t, "named") == 0 {
			o.Primary = ids().Draw(t, "primary")
		}

		ring, err := BuildRing(ringLabel, keys, o)
		again, errAgain := BuildRing(ringLabel, keys, o)
		if diff := cmp.Diff(ring, again, cmpopts.EquateEmpty()); diff != "" || fmt.Sprint(err) != fmt.Sprint(errAgain) {
			t.Fatalf("the same input gave %v and %v:\n%s", err, errAgain, diff)
		}
		shuffled := rapid.Permutation(keys).Draw(t, "shuffled")
		other, errOther := BuildRing(ringLabel, shuffled, o)
		if diff := cmp.Diff(ring, other, cmpopts.EquateEmpty()); diff != "" || fmt.Sprint(err) != fmt.Sprint(errOther) {
			t.Fatalf("another order gave %v, not %v:\n%s", errOther, err, diff)
		}
		if ring == nil {
			if !errors.Is(err, kek.ErrAmbiguous) {
				t.Fatalf("no ring, but %v", err)
			}
			return
		}
		// A node goes on with what it has then, which must not be out of use.
		last := find(keys, o.Published.Last)
		if errors.Is(err, kek.ErrAmbiguous) && o.Published.Last != "" && o.Primary == "" && (last.ID == "" || last.State != 0) {
			t.Fatalf("the last primary %s is out of use, but %v", o.Published.Last, err)
		}
		if len(ring.Keys) != len(keys) || ring.Label != ringLabel {
			t.Fatalf("%d keys of %q in the ring, %d were given", len(ring.Keys), ring.Label, len(keys))
		}
		primaries := 0
		for i, k := range ring.Keys {
			if i > 0 && ring.Keys[i-1].ID.Compare(k.ID) >= 0 {
				t.Fatalf("key %s is not behind %s", k.ID, ring.Keys[i-1].ID)
			}
			if given := find(keys, k.ID); given.State != 0 && k.State != given.State {
				t.Fatalf("key %s is %s, but the token says %s", k.ID, k.State, given.State)
			}
			late := isOwn(k.ID) && k.Activation.After(o.Now)
			if published, ok := o.Published.Last.Activation(); ok && !k.Activation.After(published) {
				late = false
			}
			if late && k.State != kek.Pending && k.State.Decrypts() {
				t.Fatalf("key %s is %s before its time", k.ID, k.State)
			}
			if k.State == kek.Primary {
				primaries++
				checkPrimary(t, k, ring, o)
			}
			if k.State == 0 {
				t.Fatalf("key %s has no state", k.ID)
			}
		}
		if primaries > 1 || (primaries == 1) != (err == nil) {
			t.Fatalf("%d primaries and %v", primaries, err)
		}
	})
}

func find(keys []kek.Info, id kek.ID) kek.Info {
	for _, k := range keys {
		if k.ID == id {
			return k
		}
	}
	return kek.Info{}
}

func checkPrimary(t *rapid.T, k kek.Info, ring *kek.Ring, o RingOptions) {
	if k.Attributes.Label != ringLabel || k.Attributes.Decrypt != nil || k.Attributes.Encrypt != nil {
		t.Fatalf("key %s is out of use and primary", k.ID)
	}
	if isOwn(k.ID) || isOwn(o.Published.Last) {
		if k.ID.Compare(o.Published.Last) < 0 {
			t.Fatalf("primary %s is older than the last one, %s", k.ID, o.Published.Last)
		}
	}
	if k.ID != o.Published.Last && !isOwn(k.ID) {
		if slices.Contains(o.Published.Before, k.ID) {
			t.Fatalf("foreign key %s is primary for a second time", k.ID)
		}
		if o.Published.Last != "" && o.Primary != k.ID {
			t.Fatalf("foreign key %s took the place of %s, and nobody said so", k.ID, o.Published.Last)
		}
	}
	for _, other := range ring.Keys {
		if isOwn(other.ID) && !other.Activation.After(o.Now) && other.ID.Compare(k.ID) > 0 {
			t.Fatalf("key %s is activated and newer than the primary %s", other.ID, k.ID)
		}
	}
}

func TestPublishedJSON(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		p    Published
		want string
	}{
		"nothing":     {Published{}, `{"last":"","checkValue":"000000","before":[]}`},
		"first":       {Published{Last: "\xff\x00"}, `{"last":"ff00","checkValue":"000000","before":[]}`},
		"with others": {Published{Last: "\x03", CheckValue: kek.CheckValue{1, 2, 0xff}, Before: []kek.ID{"\x01", "\x02"}}, `{"last":"03","checkValue":"0102ff","before":["01","02"]}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := json.Marshal(c.p)
			if err != nil || string(b) != c.want {
				t.Errorf("marshalled to %s, %v; want %s", b, err, c.want)
			}
			back := Published{Last: "stale", Before: []kek.ID{"stale"}}
			if err := json.Unmarshal(b, &back); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.p, back, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("read back (-want +got):\n%s", diff)
			}
		})
	}
	for _, bad := range []string{
		`{"last":"xyz","checkValue":"000000"}`, `{"last":"01"}`, `{"last":"01","checkValue":"00"}`,
		`{"last":"01","checkValue":"000000","before":["0"]}`, `{"last":"01","checkValue":"000000","before":[""]}`, `[]`, `{"last":7}`,
	} {
		p := Published{Last: "kept"}
		if err := json.Unmarshal([]byte(bad), &p); err == nil || p.Last != "kept" {
			t.Errorf("%s: read as %+v, %v; want an error and nothing changed", bad, p, err)
		}
	}
}

func TestPublishedAdvance(t *testing.T) {
	t.Parallel()
	var p Published
	known := kek.CheckValue{1, 2, 3}
	for _, step := range []struct {
		id      kek.ID
		v       kek.CheckValue
		changes bool
	}{
		{"a", known, true}, {"a", known, false}, {"b", kek.CheckValue{}, true}, {"b", known, true}, {"b", kek.CheckValue{}, false}, {"c", known, true},
	} {
		before := p
		kept := append([]kek.ID(nil), p.Before...)
		var changed bool
		if p, changed = p.Advance(kek.Info{ID: step.id, CheckValue: step.v}); changed != step.changes {
			t.Errorf("advancing to %s with check value %s: changed %t, want %t", step.id, step.v, changed, step.changes)
		}
		if diff := cmp.Diff(kept, before.Before, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("advancing changed the value before:\n%s", diff)
		}
	}
	if diff := cmp.Diff(Published{Last: "c", CheckValue: known, Before: []kek.ID{"a", "b"}}, p); diff != "" {
		t.Errorf("after a, b and c (-want +got):\n%s", diff)
	}
}

func TestSwappedKeyIsRevoked(t *testing.T) {
	t.Parallel()
	id := own(10, 0)
	key := tokenKey(id)
	published, _ := Published{}.Advance(kek.Info{ID: id, CheckValue: kek.CheckValue{1, 2, 3}})
	for name, c := range map[string]struct {
		now  kek.CheckValue
		want error
	}{
		"the same":       {kek.CheckValue{1, 2, 3}, nil},
		"not computable": {kek.CheckValue{}, nil},
		"another key's":  {kek.CheckValue{1, 2, 4}, kek.ErrRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := key
			key.CheckValue = c.now
			ring, err := BuildRing(ringLabel, []kek.Info{key}, RingOptions{Now: at(100), Published: published})
			if !errors.Is(err, c.want) || (err != nil) != (c.want != nil) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			k, ok := ring.Primary()
			if ok != (c.want == nil) {
				t.Errorf("has a primary: %t", ok)
			}
			if ok && k.CheckValue != published.CheckValue {
				t.Errorf("the key_id has become %s", k.KeyID())
			}
		})
	}
}
