package hsm

import (
	"bytes"
	"crypto/hmac"
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
)

// LatchName is the latch's name in the LatchStore.
const LatchName = "pin-latch"

// LatchStore keeps small values across restarts. internal/state is one.
type LatchStore interface {
	// Load fills v; false when nothing is stored under the name.
	Load(name string, v any) (bool, error)
	Save(name string, v any) error
	Remove(name string) error
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
	key      []byte // random, for known
}

func newPINLatch(store LatchStore, log *zap.Logger, watch Observer) *pinLatch {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return &pinLatch{store: store, log: log, watch: watch, key: key}
}

// check refuses a login that could cost one of the last tries.
func (l *pinLatch) check(token wire.TokenInfo, pin []byte, allowFinal bool, source string) error {
	rec, err := l.load()
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
	return nil
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
		// This process keeps it in memory; a restart would try once more.
		unsaved = rec
		l.log.Error("the PIN latch is not stored, a restart will try the PIN again", zap.Error(err))
	}
	l.mu.Lock()
	l.memory = unsaved
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
	mac := hmac.New(sha256.New, l.key)
	mac.Write(rec.Hash)
	mac.Write(pin)
	sum := [sha256.Size]byte(mac.Sum(nil))
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == sum {
		return l.knownHit
	}
	hash, err := rec.hash(pin)
	// A record that can't be computed with is taken as a match: better one latch
	// too many than one try.
	damaged := err != nil || rec.Iterations < 1 || len(rec.Hash) != len(hash)
	hit := damaged || subtle.ConstantTimeCompare(hash, rec.Hash) == 1
	l.known, l.knownHit = sum, hit
	return hit
}

func (r *LatchRecord) hash(pin []byte) ([]byte, error) {
	// The serial goes in, so that a PIN refused by one token says nothing about
	// another's.
	input := bytes.Join([][]byte{[]byte(r.Serial), pin}, []byte{0})
	defer clear(input)
	return pbkdf2.Key(sha256.New, string(input), r.Salt, r.Iterations, sha256.Size)
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
	return "put the right PIN into its source, which is noticed by itself; or clear the latch with kekctl pin unlatch"
}

// Unwrap yields kek.ErrPIN.
func (e *latchedError) Unwrap() error { return kek.ErrPIN }
