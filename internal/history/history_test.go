package history

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc/codes"

	"kekd/internal/kek"
	"kekd/internal/keypolicy"
	"kekd/internal/metrics"
	"kekd/internal/version"
)

// rig is a Recorder over kekd's own metrics.
type rig struct {
	*Recorder
	metrics *metrics.Metrics
	logs    *observer.ObservedLogs
}

func newRig(clock func() time.Time) *rig {
	m := metrics.New(version.Info{}, clock)
	core, logs := observer.New(zapcore.DebugLevel)
	return &rig{New(Config{Gatherer: m.Gatherer(), Clock: clock, Logger: zap.New(core)}), m, logs}
}

func (r *rig) read(t *testing.T) Reading {
	t.Helper()
	reading, err := r.Read()
	if err != nil {
		t.Fatal(err)
	}
	return reading
}

func ring(keys ...kek.Info) *kek.Ring {
	for i := range keys {
		keys[i].Ring = "k8s-kek"
	}
	return &kek.Ring{Label: "k8s-kek", Keys: keys}
}

// The numbers are those of the metrics, the real ones: a metric that is renamed fails
// this.
func TestNowIsWhatTheMetricsTell(t *testing.T) {
	at := time.Date(2026, 11, 2, 3, 4, 5, 0, time.UTC)
	r := newRig(func() time.Time { return at })
	m := r.metrics
	m.CollectLog(func() uint64 { return 17 })
	m.HealthChanged("starting", "coasting", "x")
	key := kek.Info{Ring: "k8s-kek", ID: "\x01a", State: kek.Primary}
	m.SetRing(ring(key))
	for range 3 {
		m.Request("Encrypt", codes.OK, 30*time.Microsecond, "")
	}
	m.Request("Decrypt", codes.OK, 40*time.Microsecond, "")
	m.Request("Decrypt", codes.Unavailable, 20*time.Second, "")
	m.Verified("Decrypt") // no failure
	m.Request("Status", codes.OK, time.Microsecond, "")
	m.HSMOperation("unwrap", "ok", 3*time.Millisecond, "")
	m.HSMOperation("unwrap", "timeout", time.Second, "")
	m.HSMOperation("probe", "ok", 3*time.Millisecond, "")
	for result, n := range map[string]int{"hit": 4, "miss": 2, "remembered": 1} {
		for range n {
			m.CacheRequest(result)
		}
	}
	m.CacheEviction("room")
	m.CacheEviction("revoked")
	m.Opened(key.KeyID())
	m.InFlight(2)
	m.HSMSessions(3, 4, 5)
	m.HSMLatched(true)
	m.HSMWorkerRestart("died")
	m.HSMWorkerRestart("token")
	m.HSMWorkerStartFailed("token")
	m.Rotated(nil)
	m.Rotated(errors.New("x"))
	m.Renewed(nil)
	m.Renewed(errors.New("x"))
	m.AuditRecords(100, 6)
	m.AuditCheckpoint(at.Add(-time.Minute), 99)
	m.AuditFailing("sign", true)
	m.Refused(7)
	m.TooMany()
	m.Panic()

	got := r.read(t)
	series := func(ended, failed, timed uint64, within map[float64]uint64) Series {
		s := Series{Ended: ended, Failed: failed, Timed: timed}
		for i, bound := range got.Bounds {
			for at, n := range within {
				if at <= bound {
					s.Within[i] += n
				}
			}
		}
		return s
	}
	want := Now{
		Sample: Sample{
			At: at, State: "coasting",
			Encrypt: series(3, 0, 3, map[float64]uint64{30e-6: 3}),
			Decrypt: series(3, 1, 2, map[float64]uint64{40e-6: 1}),
			Unwrap:  series(2, 1, 2, map[float64]uint64{3e-3: 1, 1: 1}),
			HSM:     series(3, 1, 3, map[float64]uint64{3e-3: 2, 1: 1}),
			Hits:    4, Misses: 2, Remembered: 1,
		},
		InFlight: 2, SessionsInUse: 3, SessionsLimit: 4, SessionsWaiting: 5, PINLatched: true, WorkerRestarts: 2, WorkerStartsFailed: 1,
		Evictions: 2, Rotations: 1, RotationsFailed: 1, Renewals: 1, RenewalsFailed: 1,
		AuditRecords: 100, AuditLost: 6, AuditSigned: at.Add(-time.Minute), AuditSequence: 99, AuditFailing: []string{"sign"},
		CallersRefused: 1, ConnectionsRefused: 1, Panics: 1, LogLinesLost: 17,
	}
	if diff := cmp.Diff(want, got.Now); diff != "" {
		t.Errorf("now (-want +got):\n%s", diff)
	}
	if use := got.Uses[kek.KeyIDHash(key.KeyID())]; use.Count != 1 || !use.Last.Equal(at) {
		t.Errorf("the key's use is %+v", use)
	}
	if got.Records.Count != 100 || !got.Records.Last.Equal(at) {
		t.Errorf("the trail's growth is %+v", got.Records)
	}
}

// An hour and more, with 10 Encrypts in each ten seconds.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(time.Now)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { r.Run(ctx) })
		synctest.Wait()
		if n := len(r.samples); n != 1 {
			t.Fatalf("%d samples at the start, want 1", n)
		}
		took := 30 * time.Microsecond
		for i := range 3*360 + 7 {
			if i == 3*360-24 {
				took = 30 * time.Millisecond // for the last five minutes and a bit
			}
			for range 10 {
				r.metrics.Request("Encrypt", codes.OK, took, "")
			}
			time.Sleep(Interval)
			synctest.Wait()
		}
		time.Sleep(3 * time.Second)
		got := r.read(t)
		if n := len(got.Samples); n != maxSamples+1 || cap(r.samples) != maxSamples {
			t.Errorf("%d samples were read of %d kept, want %d of %d", n, cap(r.samples), maxSamples+1, maxSamples)
		}
		hour := got.Last(time.Hour)
		if d := hour.Elapsed - time.Hour; d < -Interval || d > Interval {
			t.Errorf("the last hour is %v", hour.Elapsed)
		}
		if n := hour.Sample.Encrypt.Ended; n < 3590 || n > 3610 {
			t.Errorf("%d Encrypts in the last hour, want 3600", n)
		}
		five := got.Last(5 * time.Minute)
		if rate := five.PerSecond(five.Sample.Encrypt.Ended); rate < 0.9 || rate > 1.1 {
			t.Errorf("the rate is %v, want 1/s", rate)
		}
		if p, ok := five.Sample.Encrypt.Quantile(0.5, got.Bounds); !ok || p < 25*time.Millisecond || p > 50*time.Millisecond {
			t.Errorf("p50 of five minutes is %v", p)
		}
		if p, ok := hour.Sample.Encrypt.Quantile(0.5, got.Bounds); !ok || p < 25*time.Microsecond || p > 50*time.Microsecond {
			t.Errorf("p50 of the hour is %v", p)
		}
		if p, ok := hour.Sample.Encrypt.Quantile(0.99, got.Bounds); !ok || p < 25*time.Millisecond {
			t.Errorf("p99 of the hour is %v", p)
		}
		spans := got.Split(60, time.Minute)
		for i, s := range spans {
			if (s.Elapsed-time.Minute).Abs() > Interval || s.Sample.Encrypt.Ended != 60 {
				t.Errorf("minute %d lasts %v and has %d Encrypts, want 60", i, s.Elapsed, s.Sample.Encrypt.Ended)
			}
		}
		cancel()
		running.Wait()
	})
}

func TestFirstMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(time.Now)
		if got := r.read(t); got.Last(time.Hour).Elapsed != 0 || got.Last(time.Hour).PerSecond(5) != 0 {
			t.Errorf("before the first sample there is a span of %v", got.Last(time.Hour).Elapsed)
		}
		r.sample()
		r.metrics.Request("Encrypt", codes.OK, time.Millisecond, "")
		time.Sleep(25 * time.Second)
		got := r.read(t)
		if s := got.Last(time.Hour); s.Elapsed != 25*time.Second || s.Sample.Encrypt.Ended != 1 {
			t.Errorf("after 25 s the hour is %+v", s)
		}
		spans := got.Split(60, time.Minute)
		if spans[59].Sample.Encrypt.Ended != 1 || spans[59].Elapsed != 25*time.Second || spans[58].Elapsed != 0 {
			t.Errorf("the last minutes are %+v and %+v", spans[58], spans[59])
		}
		if _, ok := spans[58].Sample.Encrypt.Quantile(0.5, got.Bounds); ok {
			t.Error("there is a quantile of nothing")
		}
	})
}

// What a suspended machine or an administrator does to the clock.
func TestClockJumps(t *testing.T) {
	now := time.Date(2026, 11, 2, 3, 4, 5, 0, time.UTC)
	r := newRig(func() time.Time { return now })
	for range 10 {
		r.sample()
		now = now.Add(Interval)
	}
	now = now.Add(-time.Hour)
	if n := len(r.read(t).Samples); n != 1 {
		t.Errorf("an hour back: %d samples are read, want this moment's alone", n)
	}
	r.sample()
	if n := len(r.samples); n != 1 {
		t.Errorf("an hour back: %d samples are kept, want the newest alone", n)
	}
	now = now.Add(365 * 24 * time.Hour)
	r.sample()
	if n := len(r.samples); n != 1 {
		t.Errorf("a year ahead: %d samples are kept, want the newest alone", n)
	}
}

func TestQuantile(t *testing.T) {
	bounds := []float64{1, 2, 4}
	s := Series{Timed: 10, Within: [maxBuckets]uint64{2, 6, 9}}
	for q, want := range map[float64]time.Duration{0.1: 500 * time.Millisecond, 0.2: time.Second, 0.4: 1500 * time.Millisecond, 0.75: 3 * time.Second, 0.99: 4 * time.Second} {
		if got, ok := s.Quantile(q, bounds); !ok || (got-want).Abs() > time.Microsecond {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if _, ok := s.Quantile(0.5, nil); ok {
		t.Error("there is a quantile without buckets")
	}
}

func TestBrokenMetrics(t *testing.T) {
	broken := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return nil, errors.New("broken") })
	core, logs := observer.New(zapcore.DebugLevel)
	r := New(Config{Gatherer: broken, Clock: time.Now, Logger: zap.New(core)})
	r.HealthChanged("starting", "ready", "")
	r.sample()
	r.sample()
	got, err := r.Read()
	if err == nil || len(got.Samples) != 0 || len(got.Changes) != 1 {
		t.Errorf("read = %+v, %v; want the change, and the error", got, err)
	}
	if logs.Len() != 1 {
		t.Errorf("%d lines were logged, want one", logs.Len())
	}
}

func TestTooManyBuckets(t *testing.T) {
	registry := prometheus.NewRegistry()
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "kekd_grpc_request_duration_seconds", Buckets: prometheus.LinearBuckets(1, 1, maxBuckets+1)}, []string{"method"})
	registry.MustRegister(h)
	h.WithLabelValues("Encrypt").Observe(1)
	r := New(Config{Gatherer: registry, Clock: time.Now, Logger: zap.NewNop()})
	if _, err := r.Read(); err == nil {
		t.Error("a histogram that has no room is cut without a word")
	}
}

// texts are the changes, the latest first.
func texts(r *rig) []string {
	var all []string
	for _, c := range r.latest() {
		text := fmt.Sprintf("%s %s: %s", c.Level, c.Subject, c.Text)
		if c.Count > 1 {
			text += fmt.Sprintf(" (%d)", c.Count)
		}
		all = append(all, text)
	}
	return all
}

func TestChanges(t *testing.T) {
	now := time.Date(2026, 11, 2, 3, 4, 5, 0, time.UTC)
	r := newRig(func() time.Time { now = now.Add(time.Second); return now })
	a := kek.Info{ID: "\x01a", State: kek.Primary}
	b := kek.Info{ID: "\x01b", State: kek.Pending}
	r.SetRing(ring(a))
	r.SetRing(ring(a))
	r.SetRing(ring(a, b))
	a.State, b.State = kek.Disabled, kek.Primary
	r.SetRing(ring(a, b))
	r.SetRing(ring(b))
	r.HealthChanged("starting", "ready", "")
	r.HealthChanged("ready", "coasting", "the HSM is unavailable")
	for range 3 {
		r.RingLooked(errors.New("no slot"))
		r.Rotated(errors.New("no session"))
	}
	r.RingLooked(nil)
	r.Rotated(nil)
	r.Renewed(nil)
	r.Renewed(nil)
	old := keypolicy.Violation{Rule: keypolicy.MaxAge, KeyID: "k", Text: "is 90 days old"}
	r.SetPolicy(nil)
	r.SetPolicy([]keypolicy.Violation{old})
	old.Text = "is 91 days old"
	r.SetPolicy([]keypolicy.Violation{old})
	r.SetPolicy(nil)
	for range 4 {
		r.HSMWorkerStartFailed("token")
	}
	r.HSMWorkerRestart("died")
	r.HSMLatched(false)
	r.HSMLatched(true)
	r.HSMLatched(false)
	r.Breaker(false)
	r.Breaker(true)
	r.Breaker(false)
	r.AuditFailing("sign", false)
	r.AuditFailing("sign", true)
	r.AuditFailing("sign", true)
	r.AuditFailing("sign", false)
	idA, idB := ring(a).Keys[0].KeyID(), ring(b).Keys[0].KeyID()
	want := []string{
		"good audit trail: sign works again", "fault audit trail: sign fails",
		"good breaker: closed: the HSM answers", "warning breaker: open: requests that need the HSM fail at once",
		"good PIN: may be tried again", "fault PIN: the token refused it; it is not tried again",
		"warning HSM worker: came to its end (died) and is started again", "fault HSM worker: did not come up (token) (4)",
		"good policy: all rules are kept again", "warning policy: key k breaks the rule max-age",
		"note seed: renewed under the same key (2)", "good seed: a primary has taken over, with a seed of its own",
		"good key ring: read, and its primary is in use", "warning seed: no seed under the new primary: no session", "warning key ring: no look ends with a key in use: no slot",
		"warning health: ready to coasting: the HSM is unavailable", "good health: starting to ready",
		"warning key: " + idA + ", which was disabled, is gone from the token",
		"note key: " + idB + ": pending to primary", "warning key: " + idA + ": primary to disabled",
		"note key: " + idB + " is new on the ring: pending", "note key ring: first read: 1 key",
	}
	if diff := cmp.Diff(want, texts(r)); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

// Many changes of one group leave those of the others alone, and none grows.
func TestBounds(t *testing.T) {
	r := newRig(time.Now)
	r.HealthChanged("ready", "coasting", "x")
	for i := range 10_000 {
		r.Breaker(i%2 == 0)
		r.HSMWorkerRestart(strings.Repeat("\u00e9", i))
	}
	got := r.latest()
	if len(got) != maxChanges+1 {
		t.Errorf("%d changes are kept, want %d of the HSM and the one of the health", len(got), maxChanges)
	}
	for _, c := range got {
		if len(c.Text) > maxText || !utf8.ValidString(c.Text) {
			t.Errorf("a text of %d bytes: %q", len(c.Text), c.Text)
		}
	}
	// What doc.go promises.
	if size := unsafe.Sizeof(Sample{}); size != 800 {
		t.Errorf("a sample has %d bytes, want 800", size)
	}
	if size := groups * maxChanges * (unsafe.Sizeof(Change{}) + maxText); size > 80_000 {
		t.Errorf("the changes have %d bytes", size)
	}
}

// Everything at once; the race detector looks on.
func TestConcurrent(t *testing.T) {
	r := newRig(time.Now)
	r.metrics.CollectGrace(func() time.Time {
		// Reading the registry may find that time has changed the health.
		r.HealthChanged("ready", "coasting", "x")
		return time.Time{}
	})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 50 {
				r.sample()
				r.SetRing(ring(kek.Info{ID: kek.ID(fmt.Sprint(i)), State: kek.Primary}))
				r.HealthChanged("ready", "coasting", fmt.Sprint(i))
				if _, err := r.Read(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

func BenchmarkSample(b *testing.B) {
	r := newRig(time.Now)
	for b.Loop() {
		r.sample()
	}
}
