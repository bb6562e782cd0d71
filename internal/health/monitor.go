package health

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"kekd/internal/kek"
)

// Observer is told of what happens, for metrics. Its methods are called with the
// Monitor's lock held: they must be quick and must not call the Monitor.
type Observer interface {
	// HealthChanged reports a transition between two states. The reason is that of
	// the Report: a text of a closed set, empty for state ready.
	HealthChanged(from, to, reason string)
	// HealthSucceeded reports that the HSM proved to work at this time.
	HealthSucceeded(at time.Time)
}

// Config is what a Monitor needs. All fields but Observer are required.
type Config struct {
	// Grace is how long after the last success kekd goes on serving; 0 stops at
	// the first failure.
	Grace time.Duration
	// StaleAfter is how old the last success may be while nothing fails. It must
	// be longer than a probe's interval and timeout together. A prober that
	// hangs must not leave kekd ready for ever.
	StaleAfter time.Duration
	// Current returns the key_id that Encrypt uses now, from the same snapshot
	// that Encrypt reads; false if there is none, or its seed has expired. It
	// must not block or call the Monitor.
	Current  func() (keyID string, ok bool)
	Clock    func() time.Time
	Logger   *zap.Logger
	Observer Observer
}

// Monitor holds the state. All methods are safe for concurrent use and none waits
// for anything but the Monitor's own short lock; Status and MayEncrypt do not
// take even that, as long as time changes nothing.
type Monitor struct {
	cfg Config

	// latest is what the facts come to. It is replaced under mu and read without.
	latest atomic.Pointer[verdict]

	// mu guards the facts.
	mu sync.Mutex
	// published is whether a key was ever published.
	published bool
	// lastSuccess is when the HSM last proved to work; zero if never.
	lastSuccess time.Time
	// failure is the last failure since lastSuccess, else nil.
	failure error
	// revoked is why the published key may not be used any more, else nil.
	revoked error
}

// verdict is what is answered until facts or time change it. It is immutable.
type verdict struct {
	state  State
	reason string // empty in state ready
	since  time.Time
	// until is when time alone changes the verdict; zero for never.
	until       time.Time
	lastSuccess time.Time
	err         error // nil if the state serves
}

// Report is the state in full, for /status and kekctl.
type Report struct {
	State State `json:"state"`
	// Reason is the public text why the state is not ready; empty if it is.
	Reason string `json:"reason,omitempty"`
	// Since is when the state began.
	Since time.Time `json:"since"`
	// LastSuccess is when the HSM last proved to work; zero if never.
	LastSuccess time.Time `json:"lastSuccess,omitzero"`
	// CoastingUntil is when coasting ends unless the HSM recovers; zero in any
	// other state.
	CoastingUntil time.Time `json:"coastingUntil,omitzero"`
	// KeyID is what Status answers with; empty if it fails.
	KeyID string `json:"keyID,omitempty"`
}

// New returns a Monitor in state starting.
func New(cfg Config) *Monitor {
	m := &Monitor{cfg: cfg}
	m.latest.Store(m.judge(cfg.Clock()))
	return m
}

// Published reports that a key was proven and is now what Encrypt uses. It ends
// every other state.
func (m *Monitor) Published(keyID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.published, m.revoked = true, nil
	m.succeed(zap.String("key_id", keyID))
}

// Succeeded reports that a proof passed. It ends an outage but no revocation: a
// probe that began before the key was revoked may end after.
func (m *Monitor) Succeeded() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.succeed()
}

// succeed notes a success. m.mu is held.
func (m *Monitor) succeed(fields ...zap.Field) {
	now := m.cfg.Clock()
	m.lastSuccess, m.failure = now, nil
	if m.cfg.Observer != nil {
		m.cfg.Observer.HealthSucceeded(now)
	}
	m.update(now, fields...)
}

// Failed reports that the HSM did not do what it should; err says why, and its
// class (kek.Err*) gives the public reason. A revoked KEK is no failure of the
// HSM: whoever watches the ring calls Revoked.
func (m *Monitor) Failed(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failure = err
	m.update(m.cfg.Clock(), zap.Error(err))
}

// Revoked reports that the published key may not be used any more; err wraps
// kek.ErrRevoked. Only Published ends it.
func (m *Monitor) Revoked(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revoked = err
	m.update(m.cfg.Clock(), zap.Error(err))
}

// Status returns the key_id to report to kube-apiserver, or why not. The error
// wraps kek.ErrUnavailable or kek.ErrRevoked and has a PublicReason.
func (m *Monitor) Status() (keyID string, err error) {
	v := m.verdict()
	if v.err != nil {
		return "", v.err
	}
	if id, ok := m.cfg.Current(); ok {
		return id, nil
	}
	// The key was withdrawn a moment ago and the reason has not arrived yet, or
	// the outage has outlived the seed.
	return "", &stateError{Unready, kek.ErrUnavailable, reasonNoSeed}
}

// MayEncrypt returns nil when Encrypt may be served, else an error as Status does.
func (m *Monitor) MayEncrypt() error { return m.verdict().err }

// Report returns the state in full.
func (m *Monitor) Report() Report {
	v := m.verdict()
	r := Report{State: v.state, Reason: v.reason, Since: v.since, LastSuccess: v.lastSuccess}
	if v.state == Coasting {
		r.CoastingUntil = v.until
	}
	if id, ok := m.cfg.Current(); ok && v.err == nil {
		r.KeyID = id
	}
	return r
}

// verdict returns the verdict that holds now.
func (m *Monitor) verdict() *verdict {
	v := m.latest.Load()
	if v.until.IsZero() {
		return v
	}
	now := m.cfg.Clock()
	if now.Before(v.until) {
		return v
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.update(now)
	return m.latest.Load()
}

// update judges the facts anew and tells of a transition. m.mu is held.
func (m *Monitor) update(now time.Time, fields ...zap.Field) {
	old := m.latest.Load()
	v := m.judge(now)
	if v.state == old.state {
		v.since = old.since
	}
	m.latest.Store(v)
	if v.state == old.state && v.reason == old.reason {
		return
	}
	if v.state != old.state && m.cfg.Observer != nil {
		m.cfg.Observer.HealthChanged(string(old.state), string(v.state), v.reason)
	}
	fields = append(fields, zap.String("from", string(old.state)), zap.String("to", string(v.state)))
	if v.reason != "" {
		fields = append(fields, zap.String("reason", v.reason))
	}
	if v.state == Coasting {
		fields = append(fields, zap.Time("until", v.until))
	}
	m.cfg.Logger.Log(logLevel(v.state), "health changed", fields...)
}

// logLevel is how loud entering a state is.
func logLevel(s State) zapcore.Level {
	switch s {
	case Starting, Coasting:
		return zap.WarnLevel
	case Unready, Revoked:
		return zap.ErrorLevel
	}
	return zap.InfoLevel
}

// judge turns the facts into a verdict that begins now. m.mu is held, or nobody
// else knows m yet.
func (m *Monitor) judge(now time.Time) *verdict {
	v := &verdict{since: now, lastSuccess: m.lastSuccess}
	switch {
	case m.revoked != nil:
		v.state, v.reason = Revoked, reasonOf(m.revoked)
	case errors.Is(m.failure, kek.ErrPIN):
		// No outage that passes by itself: an operator is needed, and should
		// hear of it before the grace is over.
		v.state, v.reason = Unready, reasonOf(m.failure)
	case !m.published:
		v.state, v.reason = Starting, reasonStarting
		if m.failure != nil {
			v.reason = reasonOf(m.failure)
		}
	default:
		m.judgeOutage(v, now)
	}
	switch {
	case v.state.Serves():
	case v.state == Revoked:
		v.err = &stateError{v.state, kek.ErrRevoked, v.reason}
	default:
		v.err = &stateError{v.state, kek.ErrUnavailable, v.reason}
	}
	return v
}

// judgeOutage decides between ready, coasting and unready for a published key. An
// outage counts from the last success, the latest time at which the HSM is known
// to have worked.
func (m *Monitor) judgeOutage(v *verdict, now time.Time) {
	stale := m.lastSuccess.Add(m.cfg.StaleAfter)
	if m.failure == nil && now.Before(stale) {
		v.state, v.until = Ready, stale
		return
	}
	v.reason = reasonStale
	if m.failure != nil {
		v.reason = reasonOf(m.failure)
	}
	if end := m.lastSuccess.Add(m.cfg.Grace); now.Before(end) {
		v.state, v.until = Coasting, end
		return
	}
	v.state = Unready
}
