package metrics

import (
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"

	"kekd/hsm/wire"
	"kekd/internal/health"
	"kekd/internal/kek"
	"kekd/internal/version"
)

var now = time.Date(2026, 11, 2, 3, 4, 5, 500e6, time.UTC)

func newMetrics() *Metrics {
	return New(version.Info{Version: "v1", Revision: "abc", Time: "unknown", Go: "go1.26"}, func() time.Time { return now })
}

// exercised returns Metrics that have reported everything there is to report.
func exercised() *Metrics {
	m := newMetrics()
	m.Arrived()
	m.Verified("Decrypt")
	m.Request("Encrypt", codes.OK, 30*time.Microsecond, "")
	m.Request("Decrypt", codes.Unavailable, time.Second, "")
	m.InFlight(2)
	m.InFlight(-1)
	m.Refused(65534)
	m.TooMany()
	m.Panic()
	m.CacheRequest("hit")
	m.CacheEviction("revoked")
	m.Opened(primaryID())
	m.Opened(primaryID())
	m.Breaker(true)
	m.Rotated(nil)
	m.Renewed(errors.New("no"))
	m.HSMOperation("unwrap", "ok", 2*time.Millisecond, "")
	m.HSMWorkerRestart("died")
	m.HSMWorkerStartFailed("token")
	m.HSMSessions(3, 4, 1)
	m.HSMLatched(true)
	m.HealthChanged("starting", "ready", "")
	m.HealthSucceeded(now)
	m.SetRing(testRing())
	m.CollectSeeds(func() Seeds {
		return Seeds{Cached: 5, Capacity: 4096, Waiting: 2, Remembered: 1, Created: now, Uses: 7, DirectUses: 9}
	})
	m.CollectGrace(func() time.Time { return now })
	m.CollectLog(func() uint64 { return 11 })
	m.AuditRecords(12, 3)
	m.TraceSpans("dropped", 5)
	m.AuditCheckpoint(now, 4711)
	m.AuditFailing("sign", true)
	return m
}

// primaryID is the key_id of testRing's primary.
func primaryID() string { return kek.KeyID("r", "b", kek.CheckValue{}) }

func testRing() *kek.Ring {
	key := func(id kek.ID, s kek.State, activation time.Time) kek.Info {
		return kek.Info{Ring: "r", ID: id, State: s, Activation: activation}
	}
	return &kek.Ring{Label: "r", Keys: []kek.Info{
		key("a", kek.Retired, time.Unix(1000, 0)),
		key("b", kek.Primary, time.Unix(2000, 0)),
		key("d", kek.Pending, time.Unix(4000, 0)),
		key("c", kek.Pending, time.Unix(3000, 0)),
		key("e", kek.Scheduled, time.Time{}),
	}}
}

// seriesOf lists the series of one metric, without HELP and TYPE.
func seriesOf(t *testing.T, m *Metrics, name string) []string {
	t.Helper()
	families, err := m.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, series := range f.GetMetric() {
			got = append(got, seriesText(f, series))
		}
	}
	return got
}

// expect compares the series of one metric.
func expect(t *testing.T, m *Metrics, name string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, seriesOf(t, m, name)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestValues(t *testing.T) {
	m := exercised()
	expect(t, m, "kekd_build_info", "{go_version=go1.26,revision=abc,version=v1} 1")
	expect(t, m, "kekd_grpc_requests_total",
		"{code=DeadlineExceeded,method=Decrypt} 0", "{code=DeadlineExceeded,method=Encrypt} 0", "{code=DeadlineExceeded,method=Status} 0",
		"{code=Internal,method=Decrypt} 0", "{code=Internal,method=Encrypt} 0", "{code=Internal,method=Status} 0",
		"{code=OK,method=Decrypt} 0", "{code=OK,method=Encrypt} 1", "{code=OK,method=Status} 0",
		"{code=ResourceExhausted,method=Decrypt} 0", "{code=ResourceExhausted,method=Encrypt} 0", "{code=ResourceExhausted,method=Status} 0",
		"{code=Unavailable,method=Decrypt} 1", "{code=Unavailable,method=Encrypt} 0", "{code=Unavailable,method=Status} 0",
		"{code=verify,method=Decrypt} 1")
	expect(t, m, "kekd_grpc_request_duration_seconds",
		"{method=Decrypt} 1 in 1", "{method=Encrypt} 1 in 3e-05", "{method=Status} 0 in 0")
	expect(t, m, "kekd_grpc_requests_arrived_total", "{} 1")
	expect(t, m, "kekd_grpc_requests_in_flight", "{} 1")
	expect(t, m, "kekd_callers_refused_total", "{} 1")
	expect(t, m, "kekd_connections_refused_total", "{} 1")
	expect(t, m, "kekd_coasting_ends_timestamp_seconds", "{} 1.7935886455e+09")
	expect(t, m, "kekd_hsm_sessions_limit", "{} 4")
	expect(t, m, "kekd_hsm_worker_start_failures_total", "{reason=pin} 0", "{reason=setup} 0", "{reason=token} 1")
	expect(t, m, "kekd_panics_total", "{} 1")
	expect(t, m, "kekd_seed_cache_requests_total", "{result=hit} 1", "{result=miss} 0", "{result=remembered} 0", "{result=verify} 0")
	expect(t, m, "kekd_seed_cache_evictions_total", "{reason=closed} 0", "{reason=doubted} 0", "{reason=revoked} 1", "{reason=room} 0")
	var decrypts []string
	for _, k := range testRing().Keys {
		n := " 0" // an idle key shows
		if k.KeyID() == primaryID() {
			n = " 2"
		}
		decrypts = append(decrypts, "{key_id_hash="+kek.KeyIDHash(k.KeyID())+"}"+n)
	}
	expect(t, m, "kekd_decrypts_total", sorted(decrypts...)...)
	expect(t, m, "kekd_hsm_breaker_open", "{} 1")
	expect(t, m, "kekd_rotations_total", "{result=error} 0", "{result=ok} 1")
	expect(t, m, "kekd_seed_renewals_total", "{result=error} 1", "{result=ok} 0")
	expect(t, m, "kekd_hsm_operations_total", "{op=unwrap,result=ok} 1", "{op=wrap,result=ok} 0")
	expect(t, m, "kekd_hsm_operation_duration_seconds", "{op=unwrap} 1 in 0.002", "{op=wrap} 0 in 0")
	expect(t, m, "kekd_hsm_worker_restarts_total", "{reason=died} 1")
	expect(t, m, "kekd_hsm_sessions", "{state=in_use} 3", "{state=waiting} 1")
	expect(t, m, "kekd_hsm_pin_latched", "{} 1")
	expect(t, m, "kekd_last_probe_success_timestamp_seconds", "{} 1.7935886455e+09")
	expect(t, m, "kekd_seed_cache_entries", "{} 5")
	expect(t, m, "kekd_seed_cache_capacity", "{} 4096")
	expect(t, m, "kekd_hsm_requests_waiting", "{} 2")
	expect(t, m, "kekd_remembered_failures", "{} 1")
	expect(t, m, "kekd_seed_created_timestamp_seconds", "{} 1.7935886455e+09")
	expect(t, m, "kekd_seed_uses", "{} 7")
	expect(t, m, "kekd_direct_uses", "{} 9")
}

func TestHealth(t *testing.T) {
	m := newMetrics()
	from := ""
	for _, s := range []health.State{health.Starting, health.Ready, health.Coasting, health.Unready, health.Revoked} {
		if from != "" {
			m.HealthChanged(from, string(s), "")
		}
		from = string(s)
		var want []string
		for _, other := range []health.State{health.Coasting, health.Ready, health.Revoked, health.Starting, health.Unready} {
			value := "0"
			if other == s {
				value = "1"
			}
			want = append(want, "{state="+string(other)+"} "+value)
		}
		expect(t, m, "kekd_health_state", want...)
		healthy := "{} 0"
		if s == health.Ready || s == health.Coasting {
			healthy = "{} 1"
		}
		expect(t, m, "kekd_healthy", healthy)
	}
	expect(t, m, "kekd_health_transitions_total",
		"{to=coasting} 1", "{to=ready} 1", "{to=revoked} 1", "{to=starting} 0", "{to=unready} 1")
}

func TestRing(t *testing.T) {
	m := newMetrics()
	for _, name := range []string{"kekd_key_info", "kekd_key_ring_read_timestamp_seconds", "kekd_primary_key_since_timestamp_seconds"} {
		expect(t, m, name) // nothing before the first reading
	}
	info := func(id kek.ID, state string) string {
		return "{key_id_hash=" + kek.KeyIDHash(kek.KeyID("r", id, kek.CheckValue{})) + ",state=" + state + "} 1"
	}
	m.SetRing(testRing())
	expect(t, m, "kekd_key_info", sorted(info("a", "retired"), info("b", "primary"), info("c", "pending"),
		info("d", "pending"), info("e", "scheduled-for-destruction"))...)
	at := func(id kek.ID, activation string) string {
		return "{key_id_hash=" + kek.KeyIDHash(kek.KeyID("r", id, kek.CheckValue{})) + "} " + activation
	}
	expect(t, m, "kekd_key_activation_timestamp_seconds", sorted(at("a", "1000"), at("b", "2000"), at("c", "3000"), at("d", "4000"))...)
	expect(t, m, "kekd_primary_key_since_timestamp_seconds", "{} 2000")
	expect(t, m, "kekd_next_key_activation_timestamp_seconds", "{} 3000")
	expect(t, m, "kekd_key_ring_read_timestamp_seconds", "{} 1.7935886455e+09")

	// The next reading replaces all of it. Two objects of one id are one series.
	other := kek.Info{Ring: "r", ID: "x", State: kek.Primary}
	m.SetRing(&kek.Ring{Label: "r", Keys: []kek.Info{other, other}})
	expect(t, m, "kekd_key_info", info("x", "primary"))
	expect(t, m, "kekd_key_activation_timestamp_seconds") // another tool made it
	expect(t, m, "kekd_primary_key_since_timestamp_seconds")
	expect(t, m, "kekd_next_key_activation_timestamp_seconds")
}

func TestNoSeed(t *testing.T) {
	m := newMetrics()
	m.CollectSeeds(func() Seeds { return Seeds{} })
	expect(t, m, "kekd_seed_created_timestamp_seconds")
	expect(t, m, "kekd_seed_uses")
	expect(t, m, "kekd_seed_cache_entries", "{} 0")
}

// What is not on a label's list must not become a time series.
func TestLabelsAreClosed(t *testing.T) {
	m := newMetrics()
	for _, odd := range []string{"x1", "x2", "\xff"} {
		m.Request(odd, codes.Code(1000), 0, "")
		m.CacheRequest(odd)
		m.CacheEviction(odd)
		m.HSMOperation(odd, odd, 0, "")
		m.HSMWorkerRestart(odd)
	}
	families, err := m.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "kekd_") {
			continue
		}
		for _, series := range f.GetMetric() {
			if text := seriesText(f, series); strings.Contains(text, "x1") || strings.Contains(text, "1000") {
				t.Errorf("%s%s was made of a value that is not on its list", f.GetName(), text)
			}
		}
	}
	expect(t, m, "kekd_hsm_worker_restarts_total", "{reason=died} 0", "{reason=other} 3")
}

func TestLint(t *testing.T) {
	m := exercised()
	var names []string
	for _, row := range catalogue(t, m) {
		names = append(names, row.name)
	}
	problems, err := testutil.GatherAndLint(m.Gatherer(), names...)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestBucketsRise(t *testing.T) {
	last := math.Inf(-1)
	for _, b := range durations() {
		if b <= last {
			t.Errorf("bucket %v follows %v", b, last)
		}
		last = b
	}
}

func TestConcurrentUse(t *testing.T) {
	m := exercised()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				m.Opened(primaryID())
				m.Request("Encrypt", codes.OK, time.Microsecond, "")
				m.HealthChanged("ready", "coasting", "")
				m.SetRing(testRing())
				if _, err := m.Gatherer().Gather(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	want := "{key_id_hash=" + kek.KeyIDHash(primaryID()) + "} 202"
	if got := seriesOf(t, m, "kekd_decrypts_total"); !slices.Contains(got, want) {
		t.Errorf("%q lack %s", got, want)
	}
}

func BenchmarkRequest(b *testing.B) {
	m := newMetrics()
	b.ReportAllocs()
	for b.Loop() {
		m.Request("Decrypt", codes.OK, 40*time.Microsecond, "")
		m.Opened("r/00/000000")
		m.CacheRequest("hit")
	}
}

// What the worker can be asked for is counted under its own name.
func TestOperationsOfTheWorker(t *testing.T) {
	t.Parallel()
	for op := wire.OpLoad; op <= wire.OpClose; op++ {
		if got := closed(op.String(), hsmOperations); got != op.String() {
			t.Errorf("operation %s is counted as %s", op, got)
		}
	}
}
