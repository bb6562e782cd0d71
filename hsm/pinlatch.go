package hsm

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"kekd/hsm/wire"
	"kekd/internal/kek"
	"kekd/internal/secret"
)

// LatchName is the latch's name in the LatchStore.
const LatchName = "pin-latch"

// pinLocked is CKR_PIN_LOCKED.
const pinLocked = 0xA4

// LatchStore keeps small values across restarts. internal/state is one.
type LatchStore interface {
	// Load fills v; false when nothing is stored under the name.
	Load(name string, v any) (bool, error)
	Save(name string, v any) error
	Remove(name string) error
	// Writable returns nil when a Save could be made now.
	Writable() error
}

// LatchRecord is what is kept of a PIN that a token refused: enough to know it
// again, of no use for finding it (salted PBKDF2-HMAC-SHA256).
type LatchRecord struct {
	Serial     string    `json:"serial"`
	Reason     string    `json:"reason"`
	Since      time.Time `json:"since"`
	Salt       []byte    `json:"salt"`
	Iterations int       `json:"iterations"`
	Hash       []byte    `json:"hash"`
}

// latchIterations costs a guess about a fifth of a second.
const latchIterations = 600_000

// maxLatchIterations is what a later version may want: a few seconds. More is
// damage, and would hold up every login.
const maxLatchIterations = 10_000_000

// pinLatch keeps a refused PIN from being tried again.
type pinLatch struct {
	store LatchStore
	log   *zap.Logger
	watch Observer

	mu sync.Mutex
	// memory is the record while it can't be stored, else nil. Guarded by mu.
	memory *LatchRecord
	// known remembers the outcome of the slow hash for a record and a PIN, as a
	// keyed hash of both. Guarded by mu.
	known    [sha256.Size]byte
	knownHit bool
	key      []byte // random, for known and accepted
	// accepted is a keyed hash of the token and the PIN that let this process in last.
	// Guarded by mu.
	accepted [sha256.Size]byte
}

func newPINLatch(store LatchStore, log *zap.Logger, watch Observer) *pinLatch {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return &pinLatch{store: store, log: log, watch: watch, key: key}
}

// check refuses a login that could cost one of the last tries.
func (l *pinLatch) check(token wire.TokenInfo, pin []byte, allowFinal bool, source string) error {
	worked := l.worked(token, pin)
	rec, err := l.load()
	if err != nil && errors.Is(err, kek.ErrState) && worked {
		// What can't be read now stood in nobody's way before.
		l.log.Warn("the PIN latch cannot be read, going on with the PIN that has worked", zap.Error(err))
		rec, err = nil, nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", kek.ErrPIN, err)
	}
	if rec != nil && rec.Serial == token.Serial {
		if l.matches(rec, pin) {
			l.watch.HSMLatched(true)
			return &latchedError{since: rec.Since, reason: rec.Reason, source: source}
		}
		l.log.Info("the PIN has changed since it was refused, trying it", zap.String("source", source))
		if err := l.Clear(); err != nil {
			return fmt.Errorf("%w: %w", kek.ErrPIN, err)
		}
	}
	switch {
	case token.PINLocked:
		return &wire.Error{
			Class: wire.ClassPIN, Text: "the token reports that the user PIN is locked",
			Hint: "have the security officer unlock it with the vendor's tool",
		}
	case token.PINFinalTry && !allowFinal:
		return &wire.Error{
			Class: wire.ClassPIN, Text: "the token reports that one more wrong PIN locks it, so no login is tried",
			Hint: "log in once with the vendor's tool, which resets the counter; or set hsm.allowFinalPinTry",
		}
	}
	l.watch.HSMLatched(false)
	if worked {
		return nil
	}
	// A refusal must be remembered beyond this process, or each restart would spend
	// one of the few tries.
	if err := l.store.Writable(); err != nil {
		return fmt.Errorf("%w: the PIN is not tried while its refusal could not be remembered: %w", kek.ErrUnavailable, err)
	}
	return nil
}

// worked reports whether this very PIN let this process in to the token last.
func (l *pinLatch) worked(token wire.TokenInfo, pin []byte) bool {
	sum := secret.Sum(l.key, []byte(token.Serial), pin)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.accepted == sum
}

// accept notes that a PIN was right.
func (l *pinLatch) accept(token wire.TokenInfo, pin []byte) {
	sum := secret.Sum(l.key, []byte(token.Serial), pin)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepted = sum
}

// set latches a PIN that the token has just refused and returns the error to report.
func (l *pinLatch) set(token wire.TokenInfo, pin []byte, source string, cause error) error {
	reason := cause.Error()
	if e, ok := errors.AsType[*wire.Error](cause); ok {
		reason = wire.RVName(e.RV)
	}
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	rec := &LatchRecord{Serial: token.Serial, Reason: reason, Since: time.Now().UTC().Truncate(time.Second), Salt: salt, Iterations: latchIterations}
	hash, err := rec.hash(pin)
	if err != nil {
		return fmt.Errorf("%w: %w", kek.ErrPIN, err)
	}
	rec.Hash = hash
	l.watch.HSMLatched(true)
	l.log.Error("the token refused the PIN, which is not tried again", zap.String("source", source), zap.String("serial", token.Serial), zap.String("reason", reason))
	var unsaved *LatchRecord
	if err := l.store.Save(LatchName, rec); err != nil {
		// This process keeps it in memory until it can be stored.
		unsaved = rec
		l.log.Error("the PIN latch is not stored, a restart could try the PIN again", zap.Error(err))
	}
	l.mu.Lock()
	l.memory, l.accepted = unsaved, [sha256.Size]byte{}
	l.mu.Unlock()
	return &latchedError{since: rec.Since, reason: rec.Reason, source: source}
}

// Clear removes the latch.
func (l *pinLatch) Clear() error {
	l.mu.Lock()
	l.memory = nil
	l.mu.Unlock()
	if err := l.store.Remove(LatchName); err != nil {
		return fmt.Errorf("remove the PIN latch: %w", err)
	}
	l.watch.HSMLatched(false)
	return nil
}

// load returns the record in force; nil when there is none. One that could not
// be stored is newer than what is stored. Otherwise the store has the last word,
// so that an operator's removal of the file counts.
func (l *pinLatch) load() (*LatchRecord, error) {
	l.mu.Lock()
	unsaved := l.memory
	l.mu.Unlock()
	if unsaved != nil {
		// There may be room meanwhile.
		if err := l.store.Save(LatchName, unsaved); err == nil {
			l.mu.Lock()
			l.memory = nil
			l.mu.Unlock()
			l.log.Info("the PIN latch is stored now")
		}
		return unsaved, nil
	}
	rec := new(LatchRecord)
	found, err := l.store.Load(LatchName, rec)
	if err != nil {
		return nil, fmt.Errorf("read the PIN latch: %w", err)
	}
	if !found {
		return nil, nil
	}
	return rec, nil
}

// matches tells whether this is the PIN of the record.
func (l *pinLatch) matches(rec *LatchRecord, pin []byte) bool {
	sum := secret.Sum(l.key, rec.Hash, pin)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == sum {
		return l.knownHit
	}
	// A record that can't be computed with, or not in any good time, is taken as a
	// match: better one latch too many than one try.
	hit := true
	if rec.Iterations >= 1 && rec.Iterations <= maxLatchIterations && len(rec.Hash) == sha256.Size {
		hash, err := rec.hash(pin)
		hit = err != nil || subtle.ConstantTimeCompare(hash, rec.Hash) == 1
	}
	l.known, l.knownHit = sum, hit
	return hit
}

func (r *LatchRecord) hash(pin []byte) ([]byte, error) {
	// The serial goes in, so that a PIN refused by one token says nothing about
	// another's. Hashed before, because crypto/pbkdf2 leaves copies of what it gets.
	password := secret.Sum([]byte(r.Serial), pin)
	return pbkdf2.Key(sha256.New, string(password[:]), r.Salt, r.Iterations, sha256.Size)
}

// latchedError is a login that was not tried, or will not be tried again.
type latchedError struct {
	since  time.Time
	reason string
	source string
}

// Error implements error.
func (e *latchedError) Error() string {
	return fmt.Sprintf("the token refused the PIN from %s on %s: %s; it is not tried again",
		e.source, e.since.Format(time.RFC3339), e.reason)
}

// Hint says how the latch is removed.
func (e *latchedError) Hint() string {
	if e.reason == wire.RVName(pinLocked) {
		// The PIN may have been right: a new source is not what is wanted.
		return "have the security officer unlock the PIN with the vendor's tool; then clear the latch with kekctl pin unlatch, or put the new PIN into its source"
	}
	return "put the right PIN into its source, which is noticed by itself; or clear the latch with kekctl pin unlatch"
}

// Unwrap yields kek.ErrPIN.
func (e *latchedError) Unwrap() error { return kek.ErrPIN }
