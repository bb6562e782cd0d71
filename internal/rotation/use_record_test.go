package rotation

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"kekd/hsm"
	"kekd/internal/kek"
)

// uses spells what a watcher says about the use of keys, by name: how long ago each
// was last used.
func uses(v *Watcher) map[string]string {
	ago := map[string]string{}
	for id, at := range v.Use().LastUsed {
		ago[nameOf(id)] = time.Since(at).String()
	}
	return ago
}

func expectUses(t *testing.T, v *Watcher, what string, want map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, uses(v)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// onDisk is the record in the world's memory: the names of the keys in use.
func (w *world) onDisk(t *testing.T) (file useFile, inUse string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.record == nil {
		return useFile{}, "nothing"
	}
	if err := json.Unmarshal(w.record, &file); err != nil {
		t.Fatal(err)
	}
	for _, text := range file.InUse {
		id, err := kek.ParseID(text)
		if err != nil {
			t.Fatal(err)
		}
		inUse += nameOf(id)
	}
	return file, inUse
}

// The key in use counts as used now, the one before until it was replaced.
func TestUseFollowsTheSwitch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		w := &world{keys: []kek.Info{key("a", -time.Hour)}}
		v, _, _ := w.watcher(t)
		expectUses(t, v, "before the first look", map[string]string{})
		run(t, v)
		pass(time.Minute)
		expectUses(t, v, "the first key", map[string]string{"a": "0s"})
		if _, inUse := w.onDisk(t); inUse != "a" {
			t.Errorf("on disk %s are in use, want a", inUse)
		}
		w.set(func() { w.keys = append(w.keys, key("b", time.Minute+7*time.Second)) })
		pass(refresh + 3*time.Second)
		expectUses(t, v, "just switched", map[string]string{"a": "3s", "b": "0s"})
		if _, inUse := w.onDisk(t); inUse != "ab" {
			t.Errorf("on disk %s are in use, want both: requests under the old key may be under way", inUse)
		}
		pass(refresh)
		expectUses(t, v, "later", map[string]string{"a": "13s", "b": "0s"})
		if _, inUse := w.onDisk(t); inUse != "b" {
			t.Errorf("on disk %s are in use, want b", inUse)
		}
		if u := v.Use(); len(u.Node) != 32 || !u.Recorded.Equal(begun) {
			t.Errorf("node %q, recorded since %s, want 32 digits and %s", u.Node, u.Recorded, begun)
		}
	})
}

func TestUseEndsWithTheWithdrawal(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(w *world){
		"disabled":  func(w *world) { w.keys[0] = disabled(w.keys[0]) },
		"destroyed": func(w *world) { w.keys = nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := &world{keys: []kek.Info{key("a", -time.Hour)}}
				v, _, _ := w.watcher(t)
				run(t, v)
				w.set(func() { change(w) })
				pass(2*refresh + time.Second)
				expectUses(t, v, "withdrawn at the first look", map[string]string{"a": "11s"})
				if _, inUse := w.onDisk(t); inUse != "" {
					t.Errorf("on disk %s are in use, want none", inUse)
				}
			})
		})
	}
}

// A request that was under way at the switch and ends after it counts, across a
// restart too.
func TestLateUseCounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", -time.Hour), key("b", time.Second)}}
		v, _, _ := w.watcher(t)
		run(t, v)
		pass(3 * time.Second) // switched two seconds ago
		w.set(func() { w.late = map[kek.ID]time.Time{w.keys[0].ID: time.Now()} })
		pass(2 * refresh)
		expectUses(t, v, "late", map[string]string{"a": "20s", "b": "0s"})
		w.set(func() { w.current, w.late = nil, nil })
		again, _, _ := w.watcher(t)
		expectUses(t, again, "late, and restarted", map[string]string{"a": "20s", "b": "0s"})
	})
}

// Nobody knows how long a kekd that crashed had used its key; it has not since it
// started again.
func TestUseAcrossRestarts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(w *world)
		want   map[string]string // 10 s after the start
		anew   bool              // the record begins at the start
	}{
		"the same key":                 {change: func(*world) {}, want: map[string]string{"a": "0s"}},
		"the same key, on a full disk": {change: func(w *world) { w.saveErr = errors.New("no space left on device") }, want: map[string]string{"a": "0s"}},
		"another key meanwhile":        {change: func(w *world) { w.keys = append(w.keys, key("b", 0)) }, want: map[string]string{"a": "10s", "b": "0s"}},
		"two other keys that a kekd without a record published": {
			change: func(w *world) {
				w.keys = append(w.keys, key("b", 0), key("c", 0))
				w.stored, _ = json.Marshal(hsm.Published{Last: w.keys[2].ID, Before: []kek.ID{w.keys[0].ID, w.keys[1].ID}})
			},
			want: map[string]string{"a": "10s", "b": "10s", "c": "0s"},
		},
		"no key any more":                        {change: func(w *world) { w.keys = nil }, want: map[string]string{"a": "10s"}},
		"without a record":                       {change: func(w *world) { w.record = nil }, want: map[string]string{"a": "0s"}, anew: true},
		"a damaged record":                       {change: func(w *world) { w.record = []byte("{") }, want: map[string]string{"a": "0s"}, anew: true},
		"a foreign record":                       {change: func(w *world) { w.record = []byte(`{"inUse":["zz"]}`) }, want: map[string]string{"a": "0s"}, anew: true},
		"without any memory":                     {change: func(w *world) { w.record, w.stored = nil, nil }, want: map[string]string{"a": "0s"}, anew: true},
		"no room for the record that is missing": {change: func(w *world) { w.record, w.recordErr = nil, errors.New("no space left on device") }, want: map[string]string{"a": "0s"}, anew: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := &world{keys: []kek.Info{key("a", -time.Hour)}}
				v, _, _ := w.watcher(t)
				v.Refresh(t.Context())
				before := v.Use()
				time.Sleep(time.Hour)
				w.set(func() {
					w.current = nil
					c.change(w)
				})
				started := time.Now()
				v, logs, _ := w.watcher(t)
				run(t, v)
				pass(10 * time.Second)
				expectUses(t, v, "restarted", c.want)
				if _, ok := w.Current(); ok != (len(w.keys) > 0) {
					t.Errorf("a key is in use: %t", ok)
				}
				after := v.Use()
				if anew := after.Recorded.Equal(started) && after.Node != before.Node; anew != c.anew {
					t.Errorf("the record began anew: %t, want %t (before %+v, after %+v)", anew, c.anew, before, after)
				}
				if err := v.Snapshot().Err; name == "the same key, on a full disk" && err != nil {
					t.Errorf("the look says %v, though nothing is to be saved", err)
				}
				unreadable := logs.FilterMessage("record of key use not readable, a new one begins").Len()
				if want := strings.Contains(name, "damaged") || strings.Contains(name, "foreign"); (unreadable == 1) != want {
					t.Errorf("%d warnings of an unreadable record", unreadable)
				}
				if _, inUse := w.onDisk(t); w.recordErr == nil && len(w.keys) > 0 && inUse != nameOf(w.keys[len(w.keys)-1].ID) {
					t.Errorf("on disk %s are in use", inUse)
				}
			})
		})
	}
}

// What cannot be recorded is not done, and what is being done continues.
func TestUseThatCannotBeRecorded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		full := errors.New("no space left on device")
		w := &world{keys: []kek.Info{key("a", -time.Hour)}}
		v, _, _ := w.watcher(t)
		run(t, v)
		w.took()
		w.set(func() {
			w.recordErr = full
			w.keys = append(w.keys, key("b", 5*time.Second))
		})
		pass(refresh)
		why := "record the use of key " + w.keys[1].ID.String() + " before it is published: no space left on device"
		expect(t, w, "with a full disk", "prove b", "save b", "rotated: "+why)
		expectUses(t, v, "with a full disk", map[string]string{"a": "0s"})
		if err := v.Snapshot().Err; !errors.Is(err, full) {
			t.Errorf("the look says %v, want %v", err, full)
		}
		w.set(func() { w.recordErr = nil })
		pass(refresh)
		expect(t, w, "with room again", "prove b", "use b by aes-kwp", "published b", "rotated: ok")
		expectUses(t, v, "with room again", map[string]string{"a": "0s", "b": "0s"})

		w.set(func() { w.recordErr = full })
		pass(refresh) // would note that a has ended
		if err := v.Snapshot().Err; !errors.Is(err, full) {
			t.Errorf("the look says %v, want %v", err, full)
		}
		if c, ok := w.Current(); !ok || nameOf(c.ID) != "b" {
			t.Error("a full disk stopped the key in use")
		}
		if _, inUse := w.onDisk(t); inUse != "ab" {
			t.Errorf("on disk %s are in use, want ab", inUse)
		}
		w.set(func() { w.recordErr = nil })
		pass(refresh)
		if _, inUse := w.onDisk(t); inUse != "b" || v.Snapshot().Err != nil {
			t.Errorf("on disk %s are in use, want b; the look says %v", inUse, v.Snapshot().Err)
		}
	})
}

// A state directory that was emptied, or put back from a copy, holds the record again
// after the next look.
func TestUseRecordIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", -time.Hour)}}
		v, _, _ := w.watcher(t)
		run(t, v)
		pass(refresh)
		first, _ := w.onDisk(t)
		old := w.record
		w.set(func() { w.keys = append(w.keys, key("b", refresh+time.Second)) })
		pass(3 * refresh)
		want, _ := w.onDisk(t)
		for name, held := range map[string][]byte{"emptied": nil, "put back": old, "damaged": []byte("}")} {
			w.set(func() { w.record = held })
			pass(refresh)
			if got, _ := w.onDisk(t); !got.equal(&want) || got.Node != first.Node {
				t.Errorf("%s: the record is %+v, want %+v", name, got, want)
			}
		}
	})
}

// step sets the wall clock of t and leaves its monotonic clock alone, as setting the
// system's clock does. Package time offers no way to do it: 30 bits of nanoseconds,
// and above them the seconds.
func step(t time.Time, by time.Duration) time.Time {
	*(*uint64)(unsafe.Pointer(&t)) += uint64(by/time.Second) << 30
	return t
}

// Readers shift a node's times by its offset of now. A clock that is set forward must
// not make a use look longer ago than it is.
func TestUseWhenTheClockIsSet(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		by   time.Duration
		want time.Duration // how long ago a was used by the clock as set, 10 s after its end
	}{
		"forward": {by: time.Hour, want: 10 * time.Second},
		"not":     {by: 0, want: 10 * time.Second},
		"back":    {by: -time.Hour, want: 10*time.Second - time.Hour}, // what the clock said is kept
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			end := time.Now()
			now := step(end.Add(10*time.Second), c.by)
			if got := now.Round(0).Sub(byClock(end, now)); got != c.want {
				t.Errorf("used %s ago, want %s", got, c.want)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", -time.Hour)}}
		offset := time.Duration(0)
		clock := func() time.Time { return time.Now().Round(0).Add(offset) }
		u, err := openUseRecord(memory{w}, clock, hsm.Published{})
		if err != nil {
			t.Fatal(err)
		}
		if err := u.begin("a", false, nil); err != nil {
			t.Fatal(err)
		}
		if err := u.keep("b", nil); err != nil {
			t.Fatal(err)
		}
		stored := clock()
		offset = -time.Hour
		if got := u.use(nil).LastUsed["a"]; !got.Equal(stored) {
			t.Errorf("after the clock was set back: %s, want %s, which is stored", got, stored)
		}
		if err := u.begin("a", false, nil); err != nil {
			t.Fatal(err)
		}
		if err := u.keep("b", nil); err != nil {
			t.Fatal(err)
		}
		if got := u.use(nil).LastUsed["a"]; !got.Equal(stored) {
			t.Errorf("used again by a clock that is behind: %s, want the later %s", got, stored)
		}
		if ids := slices.Collect(maps.Keys(u.use(nil).LastUsed)); len(ids) != 1 {
			t.Errorf("used: %v, want a alone", ids)
		}
	})
}

// A rotation is a switch from one key to another. The first key of a node is none, nor
// is the key that a restart, or an administrator who enables it again, brings back.
func TestOnlySwitchesAreRotations(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", -time.Hour)}}
		v, _, _ := w.watcher(t)
		v.Refresh(t.Context())
		expect(t, w, "the first key", "prove a", "save a", "use a by aes-kwp", "published a")
		w.current = nil
		v, _, _ = w.watcher(t)
		v.Refresh(t.Context())
		expect(t, w, "a restart", "prove a", "use a by aes-kwp", "published a")
		a := w.keys[0]
		w.keys[0] = disabled(a)
		v.Refresh(t.Context())
		w.keys[0] = a
		v.Refresh(t.Context())
		expect(t, w, "disabled and enabled", "unpublish", "revoked: "+kek.ErrRevoked.Error(), "prove a", "use a by aes-kwp", "published a")
		w.keys = append(w.keys, key("b", 0))
		w.useErr = kek.ErrUnavailable
		v.Refresh(t.Context())
		w.useErr = nil
		v.Refresh(t.Context())
		expect(t, w, "a switch, at the second try", "prove b", "save b", "use b by aes-kwp", "rotated: "+kek.ErrUnavailable.Error(),
			"prove b", "use b by aes-kwp", "published b", "rotated: ok")
		w.current = nil
		v, _, _ = w.watcher(t)
		w.keys = append(w.keys, key("c", 0))
		v.Refresh(t.Context())
		expect(t, w, "a switch after a restart", "prove c", "save c", "use c by aes-kwp", "published c", "rotated: ok")
	})
}
