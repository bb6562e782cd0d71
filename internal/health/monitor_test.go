package health

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"kekd/internal/kek"
)

const (
	grace = 10 * time.Minute
	stale = time.Minute
)

var start = time.Date(2026, 11, 2, 3, 4, 5, 0, time.UTC)

// rig is a Monitor with a clock that stands still and a key that can be taken away.
type rig struct {
	*Monitor
	now     time.Time
	current string
	events  recorder
	logs    *observer.ObservedLogs
}

type recorder struct {
	changes []string
	success time.Time
}

func (r *recorder) HealthChanged(from, to, reason string) {
	r.changes = append(r.changes, strings.TrimSuffix(from+">"+to+": "+reason, ": "))
}
func (r *recorder) HealthSucceeded(at time.Time)   { r.success = at }
func (r *rig) advance(d time.Duration)             { r.now = r.now.Add(d) }
func (r *rig) publish(keyID string)                { r.current = keyID; r.Published(keyID) }
func (r *rig) currentKey() (keyID string, ok bool) { return r.current, r.current != "" }

func newRig(edit func(*Config)) *rig {
	r := &rig{now: start}
	core, logs := observer.New(zap.DebugLevel)
	r.logs = logs
	cfg := Config{
		Grace: grace, StaleAfter: stale, Current: r.currentKey,
		Clock: func() time.Time { return r.now }, Logger: zap.New(core), Observer: &r.events,
	}
	if edit != nil {
		edit(&cfg)
	}
	r.Monitor = New(cfg)
	return r
}

// errDown is an outage as hsm reports it: a class, and detail that must stay inside.
var errDown = fmt.Errorf("wrap: C_Encrypt: CKR_DEVICE_ERROR at /usr/lib/x.so: %w", kek.ErrUnavailable)

// TestStates walks to each state and checks every answer.
func TestStates(t *testing.T) {
	wrongPIN := fmt.Errorf("log in: %w", kek.ErrPIN)
	revoked := fmt.Errorf("key 01: %w", kek.ErrRevoked)
	const (
		unavailable = "the HSM is unavailable"
		pin         = "the token refused the PIN; it is not tried again before it is replaced or the latch is cleared"
		gone        = "the KEK is disabled, scheduled for destruction or gone"
	)
	tests := []struct {
		name   string
		walk   func(r *rig)
		state  State
		reason string
		class  error // of Status and MayEncrypt; nil if they serve
	}{
		{"new", func(*rig) {}, Starting, "kekd has not used the HSM yet", kek.ErrUnavailable},
		{"starting, HSM down", func(r *rig) { r.Failed(errDown) }, Starting, unavailable, kek.ErrUnavailable},
		{"starting, no key", func(r *rig) { r.Failed(kek.ErrNoKey) }, Starting, "the key ring has no usable KEK", kek.ErrUnavailable},
		{"starting, HSM back but no key", func(r *rig) { r.Failed(errDown); r.Succeeded() }, Starting, "kekd has not used the HSM yet", kek.ErrUnavailable},
		{"starting, for longer than the grace", func(r *rig) { r.Failed(errDown); r.advance(time.Hour) }, Starting, unavailable, kek.ErrUnavailable},
		{"starting, PIN refused", func(r *rig) { r.Failed(wrongPIN) }, Unready, pin, kek.ErrUnavailable},
		{"published", func(r *rig) { r.publish("k") }, Ready, "", nil},
		{"published, then probes pass", func(r *rig) { r.publish("k"); r.advance(stale - 1); r.Succeeded(); r.advance(stale - 1) }, Ready, "", nil},
		{"probes do not finish", func(r *rig) { r.publish("k"); r.advance(stale) }, Coasting, "the HSM check has not finished for too long", nil},
		{"probes do not finish for the whole grace", func(r *rig) { r.publish("k"); r.advance(grace) }, Unready, "the HSM check has not finished for too long", kek.ErrUnavailable},
		{"probe failed", func(r *rig) { r.publish("k"); r.Failed(errDown) }, Coasting, unavailable, nil},
		{"probe timed out", func(r *rig) { r.publish("k"); r.Failed(context.DeadlineExceeded) }, Coasting, "the HSM did not answer in time", nil},
		{"probe failed for an unknown reason", func(r *rig) { r.publish("k"); r.Failed(errors.New("x")) }, Coasting, "the HSM check failed", nil},
		{"last moment of the grace", func(r *rig) { r.publish("k"); r.Failed(errDown); r.advance(grace - 1) }, Coasting, unavailable, nil},
		{"grace over", func(r *rig) { r.publish("k"); r.Failed(errDown); r.advance(grace) }, Unready, unavailable, kek.ErrUnavailable},
		{"grace counts from the last success", func(r *rig) {
			r.publish("k")
			r.advance(grace - 1)
			r.Failed(errDown)
			r.advance(1)
		}, Unready, unavailable, kek.ErrUnavailable},
		{"failing on does not extend the grace", func(r *rig) {
			r.publish("k")
			for range 10 {
				r.Failed(errDown)
				r.advance(grace / 10)
			}
		}, Unready, unavailable, kek.ErrUnavailable},
		{"recovered while coasting", func(r *rig) { r.publish("k"); r.Failed(errDown); r.Succeeded() }, Ready, "", nil},
		{"recovered after the grace", func(r *rig) { r.publish("k"); r.Failed(errDown); r.advance(time.Hour); r.Succeeded() }, Ready, "", nil},
		{"PIN refused after ready", func(r *rig) { r.publish("k"); r.Failed(wrongPIN) }, Unready, pin, kek.ErrUnavailable},
		{"PIN latch cleared", func(r *rig) { r.publish("k"); r.Failed(wrongPIN); r.Succeeded() }, Ready, "", nil},
		{"revoked", func(r *rig) { r.publish("k"); r.Revoked(revoked) }, Revoked, gone, kek.ErrRevoked},
		{"revoked before anything was published", func(r *rig) { r.Revoked(revoked) }, Revoked, gone, kek.ErrRevoked},
		{"revoked, then a late probe passes", func(r *rig) { r.publish("k"); r.Revoked(revoked); r.Succeeded() }, Revoked, gone, kek.ErrRevoked},
		{"revoked, then the HSM fails", func(r *rig) { r.publish("k"); r.Revoked(revoked); r.Failed(wrongPIN) }, Revoked, gone, kek.ErrRevoked},
		{"revoked, then a newer key", func(r *rig) { r.publish("k"); r.Revoked(revoked); r.publish("k2") }, Ready, "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(nil)
			tt.walk(r)

			report := r.Report()
			if report.State != tt.state || report.Reason != tt.reason {
				t.Errorf("Report = %s, %q, want %s, %q", report.State, report.Reason, tt.state, tt.reason)
			}
			keyID, err := r.Status()
			if !errors.Is(err, tt.class) || (err == nil) != tt.state.Serves() {
				t.Errorf("Status error = %v, want class %v", err, tt.class)
			}
			if encrypt := r.MayEncrypt(); !errors.Is(encrypt, tt.class) || (encrypt == nil) != (err == nil) {
				t.Errorf("MayEncrypt = %v, Status = %v, want both of class %v", encrypt, err, tt.class)
			}
			if want := r.current; err == nil && (keyID != want || report.KeyID != want) {
				t.Errorf("key_id = %q in Status, %q in Report, want %q", keyID, report.KeyID, want)
			}
			if err == nil {
				return
			}
			if keyID != "" || report.KeyID != "" {
				t.Errorf("key_id = %q in Status, %q in Report although Status fails", keyID, report.KeyID)
			}
			var public interface{ PublicReason() string }
			if !errors.As(err, &public) {
				t.Fatalf("Status error %v has no PublicReason", err)
			}
			if want := fmt.Sprintf("kekd is %s: %s", tt.state, tt.reason); public.PublicReason() != want {
				t.Errorf("PublicReason = %q, want %q", public.PublicReason(), want)
			}
		})
	}
}

func TestNoGrace(t *testing.T) {
	r := newRig(func(c *Config) { c.Grace = 0 })
	r.publish("k")
	if err := r.MayEncrypt(); err != nil {
		t.Fatalf("MayEncrypt when ready = %v", err)
	}
	r.Failed(errDown)
	if got := r.Report().State; got != Unready {
		t.Errorf("state after the first failure = %s, want unready", got)
	}
}

// Between the moment a key is withdrawn and the moment the reason arrives, Status
// must not name it.
func TestStatusWithoutCurrentKey(t *testing.T) {
	r := newRig(nil)
	r.publish("k")
	r.current = ""
	if keyID, err := r.Status(); keyID != "" || !errors.Is(err, kek.ErrUnavailable) {
		t.Errorf("Status = %q, %v, want kek.ErrUnavailable", keyID, err)
	}
	if got := r.Report().KeyID; got != "" {
		t.Errorf("Report names key_id %q", got)
	}
}

func TestReportTimes(t *testing.T) {
	r := newRig(nil)
	check := func(want Report) {
		t.Helper()
		if diff := cmp.Diff(want, r.Report()); diff != "" {
			t.Errorf("Report (-want +got):\n%s", diff)
		}
	}
	check(Report{State: Starting, Reason: "kekd has not used the HSM yet", Since: start})
	r.advance(time.Second)
	r.publish("k")
	ready := r.now
	check(Report{State: Ready, Since: ready, LastSuccess: ready, KeyID: "k"})
	r.advance(10 * time.Second)
	r.Succeeded()
	success := r.now
	check(Report{State: Ready, Since: ready, LastSuccess: success, KeyID: "k"})
	r.advance(10 * time.Second)
	r.Failed(errDown)
	check(Report{State: Coasting, Reason: "the HSM is unavailable", Since: r.now, LastSuccess: success,
		CoastingUntil: success.Add(grace), KeyID: "k"})
	coasting := r.now
	r.advance(10 * time.Second)
	r.Failed(kek.ErrBusy)
	check(Report{State: Coasting, Reason: "too many requests wait for the HSM", Since: coasting, LastSuccess: success,
		CoastingUntil: success.Add(grace), KeyID: "k"})
	r.advance(grace)
	check(Report{State: Unready, Reason: "too many requests wait for the HSM", Since: r.now, LastSuccess: success})
}

func TestTransitionsAreToldOnce(t *testing.T) {
	r := newRig(nil)
	r.publish("k")
	for range 3 {
		r.Failed(errDown)
		r.advance(time.Second)
	}
	r.advance(grace)
	for range 3 {
		_ = r.MayEncrypt()
	}
	r.Succeeded()
	r.Revoked(kek.ErrRevoked)
	r.Revoked(kek.ErrRevoked)

	want := []string{
		"starting>ready", "ready>coasting: the HSM is unavailable", "coasting>unready: the HSM is unavailable", "unready>ready",
		"ready>revoked: the KEK is disabled, scheduled for destruction or gone",
	}
	if diff := cmp.Diff(want, r.events.changes); diff != "" {
		t.Errorf("transitions observed (-want +got):\n%s", diff)
	}
	if !r.events.success.Equal(r.now) {
		t.Errorf("last success observed = %v, want %v", r.events.success, r.now)
	}
	var logged []string
	for _, e := range r.logs.All() {
		fields := e.ContextMap()
		logged = append(logged, fmt.Sprintf("%s %v>%v", e.Level, fields["from"], fields["to"]))
	}
	want = []string{"info starting>ready", "warn ready>coasting", "error coasting>unready", "info unready>ready", "error ready>revoked"}
	if diff := cmp.Diff(want, logged); diff != "" {
		t.Errorf("transitions logged (-want +got):\n%s", diff)
	}
	// The detail is in the log, and nowhere else.
	if err, _ := r.logs.All()[1].ContextMap()["error"].(string); !strings.Contains(err, "CKR_DEVICE_ERROR") {
		t.Errorf("the log of an outage has the error %q, want the detail", err)
	}
}

func TestNewReasonIsLogged(t *testing.T) {
	r := newRig(nil)
	r.Failed(errDown)
	r.Failed(errDown)
	r.Failed(kek.ErrNoKey)
	if got := r.logs.FilterLevelExact(zapcore.WarnLevel).Len(); got != 2 {
		t.Errorf("%d lines were logged for two reasons", got)
	}
	if len(r.events.changes) != 0 {
		t.Errorf("a new reason was observed as a transition: %v", r.events.changes)
	}
}

// Every class has its own reason, so that an operator can tell them apart.
func TestReasonsAreDistinct(t *testing.T) {
	seen := map[string]bool{reasonStarting: true, reasonStale: true, reasonNoSeed: true, reasonOther: true}
	for _, r := range reasons {
		if got := reasonOf(fmt.Errorf("detail: %w", r.class)); got != r.text || seen[got] {
			t.Errorf("reason of %v = %q, want its own", r.class, got)
		}
		seen[r.text] = true
	}
}

func TestConcurrentUse(t *testing.T) {
	m := New(Config{
		Grace: time.Millisecond, StaleAfter: time.Microsecond, Clock: time.Now, Logger: zap.NewNop(),
		Current: func() (string, bool) { return "k", true },
	})
	var wg sync.WaitGroup
	for _, call := range []func(){
		func() { m.Published("k") }, m.Succeeded, func() { m.Failed(errDown) }, func() { m.Revoked(kek.ErrRevoked) },
		func() { _ = m.MayEncrypt() }, func() { _ = m.Report() },
		func() {
			if id, err := m.Status(); (id == "") == (err == nil) {
				t.Errorf("Status = %q, %v, want one of the two", id, err)
			}
		},
	} {
		wg.Go(func() {
			for range 500 {
				call()
			}
		})
	}
	wg.Wait()
}

func BenchmarkMayEncrypt(b *testing.B) {
	m := New(Config{
		Grace: time.Hour, StaleAfter: time.Hour, Clock: time.Now, Logger: zap.NewNop(),
		Current: func() (string, bool) { return "k", true },
	})
	m.Published("k")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := m.MayEncrypt(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
