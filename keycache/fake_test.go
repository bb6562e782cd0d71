package keycache

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"kekd/internal/kek"
	"kekd/internal/secret"
)

const ringLabel = "k8s-kek"

// The keys of the tests.
var (
	keyA = testKey(1, kek.Primary)
	keyB = testKey(2, kek.Retired)
)

func testKey(n byte, state kek.State) kek.Info {
	id := make([]byte, 17)
	id[0], id[8], id[16] = 1, n, 0xee
	return kek.Info{Ring: ringLabel, ID: kek.ID(id), CheckValue: kek.CheckValue{0xca, 0xfe, n}, State: state}
}

// in returns the key in another state.
func in(k kek.Info, state kek.State) kek.Info {
	k.State = state
	return k
}

func ringOf(keys ...kek.Info) *kek.Ring { return &kek.Ring{Label: ringLabel, Keys: keys} }

// fakeHSM wraps with AES-GCM under keys that follow from their ids, so two of
// them are like two nodes of one cluster. It binds the mechanism too, as the
// real ones do by working differently.
type fakeHSM struct {
	mu      sync.Mutex
	wraps   int
	unwraps int
	// buffers are all secrets that it was given or has given out by Unwrap.
	buffers []secret.Bytes
	// before, if set, runs first in each call and may wait or fail it.
	before func(ctx context.Context, op string) error
	// wrapped and unwrapped, if set, change results.
	wrapped   func([]byte) []byte
	unwrapped func(secret.Bytes) secret.Bytes
}

func (f *fakeHSM) Wrap(ctx context.Context, id kek.ID, m kek.Mechanism, plaintext secret.Bytes, aad []byte) ([]byte, error) {
	f.mu.Lock()
	f.wraps++
	f.buffers = append(f.buffers, plaintext)
	before, change := f.before, f.wrapped
	f.mu.Unlock()
	if before != nil {
		if err := before(ctx, "wrap"); err != nil {
			return nil, err
		}
	}
	if len(aad) == 0 {
		return nil, errors.New("no AAD")
	}
	nonce := make([]byte, nonceSize)
	_, _ = rand.Read(nonce)
	blob := fakeAEAD(id).Seal(nonce, nonce, plaintext, append([]byte{byte(m)}, aad...))
	if change != nil {
		blob = change(blob)
	}
	return blob, nil
}

func (f *fakeHSM) Unwrap(ctx context.Context, id kek.ID, m kek.Mechanism, blob, aad []byte) (secret.Bytes, error) {
	f.mu.Lock()
	f.unwraps++
	before, change := f.before, f.unwrapped
	f.mu.Unlock()
	if before != nil {
		if err := before(ctx, "unwrap"); err != nil {
			return nil, err
		}
	}
	if len(blob) < nonceSize {
		return nil, fmt.Errorf("fake: too short: %w", kek.ErrCorrupt)
	}
	plaintext, err := fakeAEAD(id).Open(nil, blob[:nonceSize], blob[nonceSize:], append([]byte{byte(m)}, aad...))
	if err != nil {
		return nil, fmt.Errorf("fake: %w", kek.ErrCorrupt)
	}
	if change != nil {
		plaintext = change(plaintext)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.buffers = append(f.buffers, plaintext)
	return plaintext, nil
}

func fakeAEAD(id kek.ID) cipher.AEAD {
	key := sha256.Sum256([]byte("fake kek " + id))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

func (f *fakeHSM) set(change func(*fakeHSM)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// ops returns how often the HSM was asked.
func (f *fakeHSM) ops() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wraps + f.unwraps
}

// failWith makes every call fail; nil makes them work again.
func (f *fakeHSM) failWith(err error) {
	f.set(func(f *fakeHSM) {
		f.before = nil
		if err != nil {
			f.before = func(context.Context, string) error { return err }
		}
	})
}

// notWiped returns how many secrets that passed through are still in memory.
func (f *fakeHSM) notWiped() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, b := range f.buffers {
		if slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) {
			n++
		}
	}
	return n
}

// hold makes calls of op wait until the returned function is called, or their
// context ends.
func (f *fakeHSM) hold(op string) (release func()) {
	gate := make(chan struct{})
	f.set(func(f *fakeHSM) {
		f.before = func(ctx context.Context, called string) error {
			if called != op {
				return nil
			}
			select {
			case <-gate:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	return func() { close(gate) }
}

// fakeClock is set by hand.
type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *fakeClock { return &fakeClock{now: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)} }

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// tally is an Observer that counts.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func (o *tally) count(what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.counts == nil {
		o.counts = make(map[string]int)
	}
	o.counts[what]++
}

func (o *tally) CacheRequest(result string)  { o.count("cache " + result) }
func (o *tally) CacheEviction(reason string) { o.count("evicted " + reason) }
func (o *tally) Opened(keyID string)         { o.count("opened " + keyID) }
func (o *tally) Breaker(open bool)           { o.count(fmt.Sprintf("breaker open %v", open)) }

func (o *tally) get(what string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.counts[what]
}

// memoryCounter is a Counter that forgets at exit.
type memoryCounter struct {
	mu     sync.Mutex
	totals map[kek.ID]uint64
	adds   int
	err    error
}

func (c *memoryCounter) Add(id kek.ID, n uint64) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.adds++
	if c.err != nil {
		return 0, c.err
	}
	if c.totals == nil {
		c.totals = make(map[kek.ID]uint64)
	}
	c.totals[id] += n
	return c.totals[id], nil
}

func seededConfig() Config {
	return Config{Ring: ringLabel, Mode: Seeded, MaxAge: 24 * time.Hour, MaxUses: 1 << 20, CacheSize: 16}
}

func directConfig() Config {
	return Config{Ring: ringLabel, Mode: Direct, DirectUses: &memoryCounter{}}
}

func newSealer(t testing.TB, cfg Config, w Wrapper) *Sealer {
	t.Helper()
	s, err := New(cfg, w)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if s.arena != nil && s.arena.InUse() != 0 {
			t.Errorf("%d seeds outlived the Sealer", s.arena.InUse())
		}
	})
	return s
}

// readySealer knows keyA and keyB and seals under keyA.
func readySealer(t testing.TB, cfg Config, w Wrapper) *Sealer {
	t.Helper()
	s := newSealer(t, cfg, w)
	s.SetRing(ringOf(keyB, keyA))
	use(t, s, keyA)
	return s
}

func use(t testing.TB, s *Sealer, key kek.Info) {
	t.Helper()
	if err := s.Use(context.Background(), key, kek.GCMCallerIV); err != nil {
		t.Fatal(err)
	}
}

func seal(t testing.TB, s *Sealer, plaintext string) kek.Sealed {
	t.Helper()
	sealed, err := s.Seal(context.Background(), []byte(plaintext))
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// opens fails the test unless sealed opens to want.
func opens(t testing.TB, s *Sealer, sealed kek.Sealed, want string) {
	t.Helper()
	got, err := s.Open(context.Background(), sealed)
	if err != nil {
		t.Error(err)
	} else if string(got) != want {
		t.Errorf("opened to %q, want %q", got, want)
	}
}

// refuses fails the test unless Open fails with the class want.
func refuses(t testing.TB, s *Sealer, sealed kek.Sealed, want error) {
	t.Helper()
	got, err := s.Open(context.Background(), sealed)
	if !errors.Is(err, want) {
		t.Errorf("Open() = %d bytes, %v; want %v", len(got), err, want)
	}
	if got != nil {
		t.Error("plaintext came with the error")
	}
}

// strangers returns values that another node has sealed under key, each from a
// seed of its own.
func strangers(t testing.TB, n int, key kek.Info) []kek.Sealed {
	t.Helper()
	node := newSealer(t, seededConfig(), &fakeHSM{})
	node.SetRing(ringOf(key))
	values := make([]kek.Sealed, n)
	for i := range values {
		use(t, node, key)
		values[i] = seal(t, node, fmt.Sprint("value ", i))
	}
	return values
}
