package rotation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"kekd/hsm"
	"kekd/internal/config"
	"kekd/internal/kek"
	"kekd/internal/keypolicy"
	"kekd/keycache"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ringLabel = "k8s-kek"

// world is all that a Watcher works on, in one place, with a journal of what the
// watcher did to it.
type world struct {
	mu      sync.Mutex
	journal []string

	keys     []kek.Info
	keysErr  error
	looks    []time.Time
	hang     bool // Keys waits for its context
	proveErr error
	tryErr   error
	policy   []keypolicy.Violation

	ring    *kek.Ring
	current *keycache.Current
	useErr  error
	due     bool

	late map[kek.ID]time.Time

	stored  []byte
	saveErr error
	loadErr error
	// record is what is stored of the keys' use.
	record    []byte
	recordErr error // of saving it
}

func (w *world) note(format string, args ...any) {
	w.journal = append(w.journal, fmt.Sprintf(format, args...))
}

// took returns the journal so far and begins a new one.
func (w *world) took() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	j := w.journal
	w.journal = nil
	return j
}

// looked returns how many looks there were.
func (w *world) looked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.looks)
}

// violations returns the last that were observed.
func (w *world) violations() []keypolicy.Violation {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.policy
}

// set changes the world between two looks.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *world) Keys(ctx context.Context) ([]kek.Info, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks = append(w.looks, time.Now())
	if w.hang {
		w.mu.Unlock()
		<-ctx.Done()
		w.mu.Lock()
		return nil, ctx.Err()
	}
	return append([]kek.Info(nil), w.keys...), w.keysErr
}

func (w *world) Prove(_ context.Context, id kek.ID) (kek.Mechanism, []string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("prove %s", nameOf(id))
	return kek.KWP, []string{"aes-gcm: the token has no CKM_AES_GCM"}, w.proveErr
}

func (w *world) Try(_ context.Context, id kek.ID) (kek.Mechanism, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("try %s", nameOf(id))
	if w.tryErr != nil {
		return 0, w.tryErr
	}
	return kek.KWP, nil
}

func (w *world) SetRing(r *kek.Ring) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ring = r
	// As the real one: a key that may not decrypt any more is withdrawn.
	if c := w.current; c != nil {
		if k, ok := r.Lookup(c.ID); !ok || !k.State.Decrypts() {
			w.current = nil
		}
	}
}

func (w *world) Use(_ context.Context, key kek.Info, m kek.Mechanism) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("use %s by %s", nameOf(key.ID), m)
	if _, ok := w.ring.Lookup(key.ID); !ok {
		w.note("which is not in the ring")
	}
	if w.useErr != nil {
		return w.useErr
	}
	w.current = &keycache.Current{KeyID: key.KeyID(), ID: key.ID, Mechanism: m}
	w.due = false
	return nil
}

func (w *world) Unpublish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("unpublish")
	w.current = nil
}

func (w *world) Current() (keycache.Current, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current == nil {
		return keycache.Current{}, false
	}
	return *w.current, true
}

func (w *world) RenewalDue() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.due
}

func (w *world) Late() map[kek.ID]time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.late)
}

// health is the world's Health.
type health struct{ *world }

func (h health) Published(keyID string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	id, _ := kek.ParseID(strings.Split(keyID, "/")[1])
	h.note("published %s", nameOf(id))
}

func (h health) Failed(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.note("failed: %s", class(err))
}

func (h health) Revoked(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.note("revoked: %s", class(err))
}

// metrics is the world's Observer.
type metrics struct{ *world }

func (metrics) SetRing(*kek.Ring) {}

func (metrics) RingLooked(error) {}

func (m metrics) SetPolicy(v []keypolicy.Violation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.policy = v
}

func (m metrics) Rotated(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note("rotated: %s", class(err))
}

func (m metrics) Renewed(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note("renewed: %s", class(err))
}

// memory is the world's Memory, which keeps what a file would.
type memory struct{ *world }

func (m memory) Load(name string, v any) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	stored := m.stored
	if name == UseRecordName {
		stored = m.record
	}
	if m.loadErr != nil || stored == nil {
		return false, m.loadErr
	}
	return true, json.Unmarshal(stored, v)
}

func (m memory) Save(name string, v any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, err := json.Marshal(v)
	if name == UseRecordName { // no part of the journal
		if err := errors.Join(m.saveErr, m.recordErr); err != nil {
			return err
		}
		m.record = b
		return err
	}
	if m.saveErr != nil {
		m.note("save fails")
		return m.saveErr
	}
	m.stored = b
	p, _ := v.(hsm.Published)
	m.note("save %s", nameOf(p.Last))
	return err
}

func class(err error) string {
	if err == nil {
		return "ok"
	}
	if c := classOf(err); c != nil {
		return c.Error()
	}
	return err.Error()
}

// names of keys in the journal: the last byte of the id.
func nameOf(id kek.ID) string {
	if id == "" {
		return "nothing"
	}
	return string(id[len(id)-1:])
}

// key makes a key of kekd's own that activates at that time after the bubble's
// beginning.
func key(name string, activation time.Duration) kek.Info {
	id, err := kek.NewID(epoch().Add(activation), strings.NewReader(strings.Repeat(name, 8)))
	if err != nil {
		panic(err)
	}
	at, _ := id.Activation()
	return kek.Info{Ring: ringLabel, ID: id, Activation: at}
}

// epoch is when every bubble begins.
func epoch() time.Time { return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) }

func disabled(k kek.Info) kek.Info {
	k.State = kek.Disabled
	return k
}

const (
	refresh = 10 * time.Second
	timeout = 4 * time.Second
)

func (w *world) watcher(t *testing.T) (*Watcher, *observer.ObservedLogs, *observer.ObservedLogs) {
	t.Helper()
	return w.watcherWith(t, config.KeyPolicy{})
}

func (w *world) watcherWith(t *testing.T, policy config.KeyPolicy) (*Watcher, *observer.ObservedLogs, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	auditCore, audit := observer.New(zap.InfoLevel)
	v, err := New(Config{
		Ring: ringLabel, Refresh: refresh, Timeout: timeout, Token: w, Sealer: w, Health: health{w}, Memory: memory{w},
		Observer: metrics{w}, Policy: policy, Clock: time.Now, Logger: zap.New(core), Audit: zap.New(auditCore),
	})
	if err != nil {
		t.Fatal(err)
	}
	return v, logs, audit
}

// run runs a watcher until the bubble's test ends.
func run(t *testing.T, v *Watcher) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		v.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	synctest.Wait()
}

// pass lets time pass and everything that is due then happen.
func pass(d time.Duration) {
	time.Sleep(d) // the bubble's own clock
	synctest.Wait()
}

func expect(t *testing.T, w *world, what string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, w.took()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// A key is proven, remembered, used and only then published.
func TestFirstKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", -time.Hour)}}
		v, _, audit := w.watcher(t)
		select {
		case <-v.First():
			t.Error("something is published before the first look")
		default:
		}
		run(t, v)
		expect(t, w, "the first look", "prove a", "save a", "use a by aes-kwp", "published a")
		select {
		case <-v.First():
		default:
			t.Error("First is not closed")
		}
		s := v.Snapshot()
		if p, ok := s.Ring.Primary(); !ok || p.ID != w.keys[0].ID || s.Err != nil || !s.Refreshed.Equal(time.Now()) {
			t.Errorf("snapshot %+v, want the ring of just now", s)
		}
		published := audit.FilterMessage("key published").All()
		if len(published) != 1 || published[0].ContextMap()["key_id"] != w.keys[0].KeyID() {
			t.Errorf("audited %v, want the one key", published)
		}
		pass(3 * refresh)
		expect(t, w, "with nothing new")
		if n := w.looked(); n != 4 {
			t.Errorf("%d looks in three refreshes, want 4", n)
		}
	})
}

func TestUnsavedKeyIsNotPublished(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", -time.Hour)}, saveErr: errors.New("no space left on device")}
		v, _, _ := w.watcher(t)
		v.Refresh(t.Context())
		why := fmt.Sprintf("remember key %s before it is published: no space left on device", w.keys[0].ID)
		expect(t, w, "with a full disk", "prove a", "save fails", "failed: "+why)
		if _, ok := w.Current(); ok {
			t.Error("a key is in use that a restart would forget")
		}
		w.set(func() { w.saveErr = nil })
		v.Refresh(t.Context())
		expect(t, w, "with room again", "prove a", "save a", "use a by aes-kwp", "published a")
	})
}

func TestFailedProofAndUse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", -time.Hour)}, proveErr: kek.ErrRefused}
		v, _, _ := w.watcher(t)
		v.Refresh(t.Context())
		expect(t, w, "a key that is refused", "prove a", "failed: "+kek.ErrRefused.Error())
		w.set(func() { w.proveErr, w.useErr = nil, kek.ErrUnavailable })
		v.Refresh(t.Context())
		expect(t, w, "a seed that fails", "prove a", "save a", "use a by aes-kwp", "failed: "+kek.ErrUnavailable.Error())
		w.set(func() { w.useErr = nil })
		v.Refresh(t.Context())
		// It is remembered already.
		expect(t, w, "all well", "prove a", "use a by aes-kwp", "published a")
	})
}

// All nodes switch at the key's own time, whenever they last looked.
func TestActivationAtItsTime(t *testing.T) {
	t.Parallel()
	for _, ahead := range []time.Duration{time.Second, 7 * time.Second, refresh, refresh + time.Second, 35 * time.Second} {
		t.Run(ahead.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := &world{keys: []kek.Info{key("a", -time.Hour), key("b", ahead)}}
				v, _, _ := w.watcher(t)
				run(t, v)
				w.took()
				pass(ahead - time.Nanosecond)
				expect(t, w, "just before")
				if c, _ := w.Current(); nameOf(c.ID) != "a" {
					t.Errorf("key %s is in use, want a", nameOf(c.ID))
				}
				pass(time.Nanosecond)
				expect(t, w, "at its time", "prove b", "save b", "use b by aes-kwp", "published b", "rotated: ok")
			})
		})
	}
}

func TestFirstKeyActivatesLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", 2500*time.Millisecond)}}
		v, _, _ := w.watcher(t)
		run(t, v)
		pass(1999 * time.Millisecond) // its time is cut to the second
		expect(t, w, "before its time", "failed: "+kek.ErrNoKey.Error(), "try a", "failed: "+kek.ErrNoKey.Error())
		pass(time.Millisecond)
		expect(t, w, "at its time", "prove a", "save a", "use a by aes-kwp", "published a")
	})
}

// A pending key whose time came while the token was away must not make the
// watcher look without a pause.
func TestActivationWhileUnreachable(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(w *world){
		"unreachable": func(w *world) { w.keysErr = kek.ErrUnavailable },
		"ambiguous":   func(w *world) { w.keys = append(w.keys, w.keys[0]) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := &world{keys: []kek.Info{key("a", -time.Hour), key("b", 15*time.Second)}}
				v, _, _ := w.watcher(t)
				run(t, v)
				pass(refresh)
				keys := w.keys
				w.set(func() { fail(w); w.looks = nil })
				pass(20 * time.Second) // to 30 s, 15 s late
				if n := w.looked(); n < 10 || n > 20 {
					t.Errorf("%d looks in 20 s, want about one a second after the key's time", n)
				}
				if c, _ := w.Current(); nameOf(c.ID) != "a" {
					t.Errorf("key %s is in use, want a", nameOf(c.ID))
				}
				w.set(func() { w.keysErr, w.keys = nil, keys })
				pass(impatience)
				if c, _ := w.Current(); nameOf(c.ID) != "b" {
					t.Errorf("key %s is in use after the token came back, want b", nameOf(c.ID))
				}
			})
		})
	}
}

func TestRenewal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", -time.Hour)}}
		v, logs, _ := w.watcher(t)
		run(t, v)
		w.took()
		w.set(func() { w.due, w.useErr = true, kek.ErrUnavailable })
		pass(refresh)
		expect(t, w, "a renewal that fails is tried again, and is no failure yet", "use a by aes-kwp", "renewed: "+kek.ErrUnavailable.Error())
		w.set(func() { w.useErr = nil })
		pass(refresh)
		expect(t, w, "renewal", "use a by aes-kwp", "renewed: ok")
		pass(refresh)
		expect(t, w, "after it")
		if logs.FilterMessage("seed renewed").Len() != 1 {
			t.Error("the renewal is not logged once")
		}
	})
}

func TestRevokedKeyIsWithdrawn(t *testing.T) {
	t.Parallel()
	a, b := key("a", -2*time.Hour), key("b", -time.Hour)
	refused := b
	refused.Attributes.Encrypt = new(bool)
	for name, c := range map[string]struct {
		keys []kek.Info
		why  error
	}{
		"disabled":         {[]kek.Info{a, disabled(b)}, kek.ErrRevoked},
		"gone":             {[]kek.Info{a}, kek.ErrRevoked},
		"all gone":         {nil, kek.ErrRevoked},
		"must not encrypt": {[]kek.Info{a, refused}, kek.ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := &world{keys: []kek.Info{a, b}}
				v, _, audit := w.watcher(t)
				run(t, v)
				w.took()
				w.set(func() { w.keys = c.keys })
				pass(refresh)
				expect(t, w, "withdrawn", "unpublish", "revoked: "+c.why.Error())
				if _, ok := w.Current(); ok {
					t.Error("something is in use")
				}
				if !errors.Is(v.Snapshot().Err, c.why) {
					t.Errorf("snapshot says %v, want %v", v.Snapshot().Err, c.why)
				}
				pass(3 * time.Second)
				withdrawn := audit.FilterMessage("key withdrawn").All()
				if len(withdrawn) != 1 || withdrawn[0].ContextMap()["key_id"] != b.KeyID() {
					t.Errorf("audited %v, want the one key once", withdrawn)
				}
				w.took()
				w.set(func() { w.keys = append([]kek.Info{key("c", 0)}, c.keys...) })
				pass(impatience)
				expect(t, w, "a newer key came", "prove c", "save c", "use c by aes-kwp", "published c", "rotated: ok")
			})
		})
	}
}

// A key that goes in the same look as its successor comes is withdrawn too.
func TestRevokedWhileRotating(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := key("a", -2*time.Hour), key("b", -time.Hour)
		w := &world{keys: []kek.Info{a}}
		v, _, audit := w.watcher(t)
		run(t, v)
		w.took()
		w.set(func() { w.keys, w.proveErr = []kek.Info{disabled(a), b}, kek.ErrUnavailable })
		pass(refresh)
		expect(t, w, "the new key fails", "prove b", "rotated: "+kek.ErrUnavailable.Error(), "failed: "+kek.ErrUnavailable.Error())
		if audit.FilterMessage("key withdrawn").Len() != 1 {
			t.Error("the old key's end is not audited once")
		}
		w.set(func() { w.proveErr = nil })
		pass(impatience)
		expect(t, w, "the new key works", "prove b", "save b", "use b by aes-kwp", "published b", "rotated: ok")
	})
}

// A new key that does not work leaves the old one in use.
func TestFailedRotationKeepsTheOldKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", -2*time.Hour)}}
		v, _, _ := w.watcher(t)
		run(t, v)
		w.took()
		w.set(func() { w.keys, w.proveErr = append(w.keys, key("b", -time.Hour)), kek.ErrRefused })
		pass(refresh)
		expect(t, w, "the new key is refused", "prove b", "rotated: "+kek.ErrRefused.Error())
		if c, ok := w.Current(); !ok || nameOf(c.ID) != "a" {
			t.Errorf("key %s is in use, want a", nameOf(c.ID))
		}
	})
}

func TestAmbiguityKeepsWhatIsInUse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := key("a", -time.Hour)
		w := &world{keys: []kek.Info{a, a}}
		v, _, _ := w.watcher(t)
		run(t, v)
		expect(t, w, "before anything is in use", "failed: "+kek.ErrAmbiguous.Error())
		w.set(func() { w.keys = []kek.Info{a} })
		pass(impatience)
		w.took()
		ring := v.Snapshot().Ring
		w.set(func() { w.keys = []kek.Info{a, a} })
		pass(refresh)
		expect(t, w, "while something is in use")
		if c, ok := w.Current(); !ok || c.ID != a.ID {
			t.Error("the key is no longer in use")
		}
		if s := v.Snapshot(); s.Ring != ring || !errors.Is(s.Err, kek.ErrAmbiguous) || !s.Refreshed.Before(time.Now()) {
			t.Errorf("snapshot %+v, want the last clear ring and why it is old", s)
		}
	})
}

func TestUnreachableTokenKeepsTheKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keys: []kek.Info{key("a", -time.Hour)}}
		v, logs, _ := w.watcher(t)
		run(t, v)
		w.took()
		w.set(func() { w.keysErr = fmt.Errorf("%w: try 1", kek.ErrUnavailable) })
		pass(refresh)
		w.set(func() { w.keysErr = fmt.Errorf("%w: try 2", kek.ErrUnavailable) })
		pass(refresh)
		failed := "failed: " + kek.ErrUnavailable.Error()
		expect(t, w, "two looks", failed, failed)
		if _, ok := w.Current(); !ok {
			t.Error("the key is no longer in use")
		}
		w.set(func() { w.keysErr = kek.ErrPIN })
		pass(refresh)
		w.set(func() { w.keysErr = nil })
		pass(2 * refresh)
		var said []string
		for _, e := range logs.All() {
			said = append(said, fmt.Sprintf("%s: %v", e.Message, e.ContextMap()["error"]))
		}
		if diff := cmp.Diff([]string{
			"key ring not usable: " + kek.ErrUnavailable.Error() + ": try 1",
			"key ring not usable: " + kek.ErrPIN.Error(),
			"key ring usable again: <nil>",
		}, said); diff != "" {
			t.Errorf("logged, once for each change (-want +got):\n%s", diff)
		}
	})
}

func TestImpatientBeforeTheFirstKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{keysErr: kek.ErrUnavailable}
		v, _, _ := w.watcher(t)
		run(t, v)
		pass(5500 * time.Millisecond)
		if n := w.looked(); n != 6 {
			t.Errorf("%d looks in 5.5 s without a key, want one a second and the first", n)
		}
		w.set(func() { w.keysErr, w.keys = nil, []kek.Info{key("a", -time.Hour)} })
		pass(time.Second)
		select {
		case <-v.First():
		default:
			t.Error("First is not closed")
		}
	})
}

// A look takes no longer than its timeout, and a shutdown is nobody's failure.
func TestHungToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{hang: true}
		v, _, _ := w.watcher(t)
		begun := time.Now()
		v.Refresh(t.Context())
		if took := time.Since(begun); took != timeout {
			t.Errorf("a look took %s, want %s", took, timeout)
		}
		expect(t, w, "past the timeout", "failed: "+context.DeadlineExceeded.Error())
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			time.Sleep(time.Second)
			cancel()
		}()
		before := v.Snapshot()
		v.Refresh(ctx)
		expect(t, w, "kekd stops")
		if diff := cmp.Diff(before.Err.Error(), v.Snapshot().Err.Error()); diff != "" || v.Snapshot().Refreshed != before.Refreshed {
			t.Error("the snapshot says that something failed")
		}
	})
}

// What was published is known after a restart, so nothing older is used.
func TestMemorySurvivesRestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := key("a", -2*time.Hour), key("b", -time.Hour)
		w := &world{keys: []kek.Info{a, b}}
		v, _, _ := w.watcher(t)
		v.Refresh(t.Context())
		w.took()

		w.current = nil // a new process
		v, _, _ = w.watcher(t)
		v.Refresh(t.Context())
		expect(t, w, "the same ring", "prove b", "use b by aes-kwp", "published b")

		w.current, w.keys = nil, []kek.Info{a}
		v, _, audit := w.watcher(t)
		v.Refresh(t.Context())
		expect(t, w, "the newest key is gone", "unpublish", "revoked: "+kek.ErrRevoked.Error())
		if audit.Len() != 0 {
			t.Error("a key is said to be withdrawn that this process never used")
		}
	})
}

// What a vanished state directory held is written again once it is back.
func TestMemoryThatWasLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := key("a", -2*time.Hour), key("b", -time.Hour)
		w := &world{keys: []kek.Info{a, b}}
		v, _, _ := w.watcher(t)
		v.Refresh(t.Context())
		w.took()

		w.loadErr = fmt.Errorf("gone: %w", kek.ErrState)
		v.Refresh(t.Context())
		expect(t, w, "the memory is gone")
		if err := v.Snapshot().Err; !errors.Is(err, kek.ErrState) {
			t.Errorf("the snapshot has %v, want ErrState", err)
		}
		w.loadErr, w.stored = nil, nil
		v.Refresh(t.Context())
		expect(t, w, "it is back, and empty", "save b")
		if err := v.Snapshot().Err; err != nil {
			t.Errorf("the snapshot has %v", err)
		}

		w.current, w.keys = nil, []kek.Info{a} // a new process, and b is gone
		v, _, _ = w.watcher(t)
		v.Refresh(t.Context())
		expect(t, w, "the newest key is gone", "unpublish", "revoked: "+kek.ErrRevoked.Error())
	})
}

func TestUnreadableMemory(t *testing.T) {
	t.Parallel()
	w := &world{loadErr: errors.New("damaged file")}
	if _, err := New(Config{Memory: memory{w}}); !errors.Is(err, w.loadErr) {
		t.Errorf("got %v, want the memory's error", err)
	}
}
