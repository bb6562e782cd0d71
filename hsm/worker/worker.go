package worker

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"kekd/hsm/p11"
	"kekd/hsm/wire"
	"kekd/internal/kek"
	"kekd/internal/secret"
)

// Opener loads the PKCS#11 module at a path.
type Opener func(path string) (p11.Cryptoki, error)

// OpenModule is the Opener of every real worker.
func OpenModule(path string) (p11.Cryptoki, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%s is not an absolute path", path)
	}
	return p11.Open(path)
}

// Worker does the operations of the protocol on one token. Load and Login come
// first, once each and one after the other; the rest may run concurrently.
type Worker struct {
	open   Opener
	module p11.Cryptoki

	// Set by Load and Login, read-only afterwards.
	ring   string
	slot   uint
	serial string
	wish   int
	limit  uint
	keep   session // the login lives as long as this session
	login  bool    // the token wants one
	pool   *sessions

	mu sync.Mutex
	// handles are the ring's keys as far as this process has met them. Guarded by mu.
	handles map[kek.ID]*handle
	// nilIV: where the token appends its IV, whether it wants to be given none.
	// Guarded by mu.
	nilIV bool

	canary canary
}

// handle is a key's objects. Immutable.
type handle struct {
	aes     pkcs11.ObjectHandle
	hmac    pkcs11.ObjectHandle
	hasHMAC bool
	kcv     kek.CheckValue
	// encrypts and local are CKA_ENCRYPT and CKA_LOCAL as of when kcv was computed.
	encrypts, local bool
}

func (k *handle) sameObjects(other *handle) bool {
	return k.aes == other.aes && k.hasHMAC == other.hasHMAC && k.hmac == other.hmac
}

// New makes a worker that has not loaded anything yet.
func New(open Opener) *Worker {
	return &Worker{open: open, handles: make(map[kek.ID]*handle)}
}

// Load loads and initialises the module and finds the token.
func (w *Worker) Load(req wire.LoadRequest) (wire.TokenInfo, error) {
	m, err := w.open(req.Module)
	if err != nil {
		return wire.TokenInfo{}, &wire.Error{
			Class: wire.ClassSetup, Text: fmt.Sprintf("load the PKCS#11 module %s: %v", req.Module, err),
			Hint: "hsm.module must name the vendor's PKCS#11 library; check the file, and its own libraries with ldd",
		}
	}
	if err := m.Initialize(req.InitArgs); err != nil {
		failed := failSetup("initialise the PKCS#11 module "+req.Module, err)
		if e, ok := errors.AsType[*wire.Error](failed); ok {
			e.Hint = "check the module's own configuration, hsm.env, and that the client or daemon that it needs is set up and runs (opencryptoki: pkcsslotd)"
		}
		return wire.TokenInfo{}, failed
	}
	w.module, w.ring, w.wish = m, req.Ring, req.Sessions
	lib, err := m.GetInfo()
	if err != nil {
		return wire.TokenInfo{}, failSetup("ask the module for its name", err)
	}
	slot, info, err := selectToken(m, req.Token)
	if err != nil {
		return wire.TokenInfo{}, err
	}
	w.slot, w.serial, w.limit = slot, info.SerialNumber, info.MaxSessionCount
	has := func(flag uint) bool { return info.Flags&flag != 0 }
	return wire.TokenInfo{
		Library:       fmt.Sprintf("%s %d.%d", trim(lib.LibraryDescription), lib.LibraryVersion.Major, lib.LibraryVersion.Minor),
		Slot:          slot,
		Label:         trim(info.Label),
		Serial:        trim(info.SerialNumber),
		Manufacturer:  trim(info.ManufacturerID),
		Model:         trim(info.Model),
		Firmware:      fmt.Sprintf("%d.%d", info.FirmwareVersion.Major, info.FirmwareVersion.Minor),
		LoginRequired: has(pkcs11.CKF_LOGIN_REQUIRED),
		ProtectedPath: has(pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH),
		PINLow:        has(pkcs11.CKF_USER_PIN_COUNT_LOW),
		PINFinalTry:   has(pkcs11.CKF_USER_PIN_FINAL_TRY),
		PINLocked:     has(pkcs11.CKF_USER_PIN_LOCKED),
	}, nil
}

// Login opens the session that holds the login, logs in where the token wants
// it, and makes the pool, whose size it returns. One call of C_Login at most,
// whatever happens.
func (w *Worker) Login(pin secret.Bytes, required bool) (int, error) {
	h, err := w.module.OpenSession(w.slot)
	if err != nil {
		return 0, failSetup("open the login session", err)
	}
	w.keep = session{handle: h, open: true}
	w.login = required
	if required {
		if err := w.module.Login(h, pin); err != nil {
			if e, ok := rvOf(err); !ok || e.RV != pkcs11.CKR_USER_ALREADY_LOGGED_IN {
				failed := failSetup("log in to the token", err)
				if e, ok := errors.AsType[*wire.Error](failed); ok && e.RV == pkcs11.CKR_USER_PIN_NOT_INITIALIZED {
					e.Hint = "the token says that nobody has set a user PIN; set it by the vendor's tool"
				}
				return 0, failed
			}
		}
	}
	size := poolSize(w.wish, w.limit)
	w.pool = newSessions(w.module, w.slot, size)
	return size, nil
}

// retryPause is the wait before a second try with a device that reports an
// error which throttling HSMs also use.
const retryPause = 100 * time.Millisecond

// plan says how run deals with a failure.
type plan struct {
	// tries is how often fn may run: 2, or 1 for calls that change the token and
	// may have taken effect although they failed.
	tries int
	// canary: settle an ambiguous failure by asking the canary. Not where a
	// failure is part of a proof, nor in the canary itself.
	canary bool
	// forget, if not nil, is called before another try when a handle was stale.
	forget func()
	// begun, if not nil, reports that fn has begun to change the token: after that
	// there is no other try.
	begun func() bool
}

// onSession runs fn on a session of the pool, and a second time where the error
// promises that a fresh session helps.
func (w *Worker) onSession(text string, fn func(s session) error) error {
	return w.run(text, plan{tries: 2}, fn)
}

// once runs fn with no second try.
func (w *Worker) once(text string, fn func(s session) error) error {
	return w.run(text, plan{tries: 1}, fn)
}

func (w *Worker) run(text string, p plan, fn func(s session) error) error {
	for attempt := 1; ; attempt++ {
		s, err := w.pool.acquire(context.Background())
		if err == nil {
			if err = fn(s); err == nil {
				w.pool.release(s)
				return nil
			}
			w.pool.drop(s)
		}
		e, ok := rvOf(err)
		if !ok {
			return fail(text, err)
		}
		_, what := judge(e)
		switch {
		case what == giveUp || attempt >= p.tries || p.begun != nil && p.begun():
			if !p.canary || !ambiguous(e) {
				return fail(text, err)
			}
			if attempt > p.tries { // the token has failed at it again, and at nothing else
				return &wire.Error{Class: wire.ClassRequest, Call: e.Call, RV: e.RV, Text: text}
			}
			if err := w.askCanary(text, e); err != nil {
				return err
			}
			// The token works, but it may have been indisposed for a moment: before the
			// ciphertext gets the blame, it is tried once more.
			attempt = p.tries
		case what == freshHandle && p.forget != nil:
			p.forget()
		case what == pauseThenRetry:
			time.Sleep(retryPause)
		}
	}
}

// onKey runs fn on a session with the handles of a key.
func (w *Worker) onKey(text string, id kek.ID, ask bool, fn func(s session, k *handle) error) error {
	k, err := w.key(id)
	if err != nil {
		return err
	}
	forget := func() {
		// Look again: the objects may have been copied or restored under new
		// handles. A key that is not found again means a token that lost it.
		if again, err := w.find(id); err == nil && again != nil {
			k = again
		}
	}
	return w.run(text, plan{tries: 2, canary: ask, forget: forget}, func(s session) error { return fn(s, k) })
}

// tokenAnswers checks that the token is still there and still the same, since
// some modules report an empty token as success when it is gone.
func (w *Worker) tokenAnswers() error {
	for tries := 1; ; tries++ {
		blank, err := w.askToken()
		if err == nil {
			return nil
		}
		// While another process logs in, SoftHSM has no token or one without a serial
		// for a moment, and for as many of them as there are processes that log in.
		if tries == blankTries || tries > 1 && !blank {
			return err
		}
		time.Sleep(retryPause)
	}
}

// blankTries is how often a token is asked that has no serial.
const blankTries = 10

// askToken compares the token's serial. blank: the token has none.
func (w *Worker) askToken() (blank bool, err error) {
	info, err := w.module.GetTokenInfo(w.slot)
	if err != nil {
		return false, fail("ask the token for its state", err)
	}
	if info.SerialNumber != w.serial {
		return trim(info.SerialNumber) == "", &wire.Error{Class: wire.ClassToken, Text: fmt.Sprintf(
			"the token's serial changed from %q to %q", trim(w.serial), trim(info.SerialNumber))}
	}
	return false, nil
}

// Close finalises the module. No call may be running.
func (w *Worker) Close() {
	if w.module == nil {
		return
	}
	// The process ends next; what C_Finalize says changes nothing.
	_ = w.module.Finalize()
}
