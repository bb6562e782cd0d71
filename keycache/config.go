package keycache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"kekd/internal/kek"
	"kekd/internal/secret"
	"kekd/internal/tracing"
)

// Wrapper is the HSM as this package needs it. It is safe for concurrent use
// and heeds its context. Errors wrap one of kek's classes. One with a method
// NotAsked() bool that returns true was found without the HSM and at once, and says
// nothing about its health. The slices that it
// returns belong to the caller; those that it is given are the caller's again
// once it returns.
type Wrapper interface {
	// Wrap encrypts plaintext under the KEK with mechanism m, bound to aad,
	// which is never empty.
	Wrap(ctx context.Context, id kek.ID, m kek.Mechanism, plaintext secret.Bytes, aad []byte) ([]byte, error)
	// Unwrap is the inverse of Wrap with the same id, m and aad. A blob that was
	// not made so is kek.ErrCorrupt.
	Unwrap(ctx context.Context, id kek.ID, m kek.Mechanism, blob, aad []byte) (secret.Bytes, error)
}

// Counter counts the uses of a KEK across restarts. It is safe for concurrent
// use.
type Counter interface {
	// Add adds n to the count of the key, makes it durable and returns the new
	// total. After an error the total may or may not have grown.
	Add(id kek.ID, n uint64) (total uint64, err error)
}

// Observer is told what happens. Its methods are called often and under way:
// they must be quick, safe for concurrent use and must not call the Sealer.
type Observer interface {
	// CacheRequest: an Open of a seeded envelope in seeded mode found its seed
	// (CacheHit), had to ask the HSM (CacheMiss), or met the memory of a
	// failure (CacheRemembered). CacheVerify stands for the latter two where kekctl
	// verify had damaged the seed.
	CacheRequest(result string)
	// CacheEviction: a seed was wiped from the cache, for EvictedForRoom,
	// EvictedRevoked, EvictedDoubted (what the HSM has made of it opens nothing) or
	// EvictedClosed.
	CacheEviction(reason string)
	// Opened: a value sealed under this key_id was opened. The key is on the
	// ring, so the set of values is bounded.
	Opened(keyID string)
	// Breaker: the breaker before the HSM has opened or closed.
	Breaker(open bool)
}

// What an Observer is told; these are all the values there are.
const (
	CacheHit        = "hit"
	CacheMiss       = "miss"
	CacheRemembered = "remembered"
	CacheVerify     = "verify"

	EvictedForRoom = "room"
	EvictedRevoked = "revoked"
	EvictedDoubted = "doubted"
	EvictedClosed  = "closed"
)

// Mode says whether seeds are used for sealing.
type Mode uint8

const (
	// Seeded seals from a seed and keeps unwrapped seeds for opening.
	Seeded Mode = iota + 1
	// Direct asks the HSM for each request and keeps no seed.
	Direct
)

// String returns the mode as the configuration spells it.
func (m Mode) String() string {
	switch m {
	case Seeded:
		return "seeded"
	case Direct:
		return "direct"
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

const (
	defaultUnwrapTimeout = 3 * time.Second
	defaultMaxWaiting    = 64
)

// Config configures a Sealer. Fields without a default must be set.
type Config struct {
	// Ring is the ring's label: not empty, without zero bytes.
	Ring string
	Mode Mode
	// MaxAge ends a seed for Seal; opening what it sealed has no end. Seeded
	// mode only.
	MaxAge time.Duration
	// MaxUses is how many Seals one seed serves. Seeded mode only.
	MaxUses uint64
	// CacheSize is how many unwrapped seeds are kept for Open, besides the one
	// in use. Each takes 32 bytes of secret memory. Seeded mode only.
	CacheSize int
	// LockMemory keeps that memory out of swap, by mlock.
	LockMemory bool
	// UnwrapTimeout ends one request to the HSM, whoever waits for it. The
	// default is 3 s, as long as kube-apiserver waits by default.
	UnwrapTimeout time.Duration
	// MaxWaiting is how many requests may be with the HSM at once; one more
	// gets kek.ErrBusy. The default is 64.
	MaxWaiting int
	// Clock defaults to time.Now.
	Clock func() time.Time
	// Observer may be nil.
	Observer Observer
	// Look reads the key ring off the token once more and tells SetRing; it returns
	// when that is done, or ctx ends, and an error if the ring could not be read. It
	// is called for a key that the ring lacks, from several goroutines at once, and
	// limits by itself how often the token is asked. It may be nil.
	Look func(ctx context.Context) error
	// Tracer is nil for none.
	Tracer *tracing.Tracer
	// DirectUses counts the uses of each KEK under AES-GCM. Direct mode only.
	DirectUses Counter
}

// withDefaults fills in what may be left out and returns all that is wrong.
func (c Config) withDefaults() (Config, error) {
	if c.UnwrapTimeout == 0 {
		c.UnwrapTimeout = defaultUnwrapTimeout
	}
	if c.MaxWaiting == 0 {
		c.MaxWaiting = defaultMaxWaiting
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Observer == nil {
		c.Observer = nobody{}
	}
	var problems []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf("configure the key cache: "+format, args...))
		}
	}
	require(c.Ring != "" && !strings.Contains(c.Ring, "\x00"), "Ring: want a label without zero bytes, got %q", c.Ring)
	require(c.UnwrapTimeout > 0, "UnwrapTimeout: want more than 0, got %s", c.UnwrapTimeout)
	require(c.MaxWaiting > 0, "MaxWaiting: want at least 1, got %d", c.MaxWaiting)
	switch c.Mode {
	case Seeded:
		require(c.MaxAge > 0, "MaxAge: want more than 0, got %s", c.MaxAge)
		require(c.MaxUses > 0, "MaxUses: want at least 1, got %d", c.MaxUses)
		require(c.CacheSize > 0, "CacheSize: want at least 1, got %d", c.CacheSize)
	case Direct:
		require(c.DirectUses != nil, "DirectUses: direct mode needs a counter")
	default:
		require(false, "Mode: want seeded or direct, got %s", c.Mode)
	}
	return c, errors.Join(problems...)
}

// nobody is the Observer of who wants none.
type nobody struct{}

func (nobody) CacheRequest(string)  {}
func (nobody) CacheEviction(string) {}
func (nobody) Opened(string)        {}
func (nobody) Breaker(bool)         {}
