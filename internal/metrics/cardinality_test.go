package metrics

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"kekd/internal/kek"
)

// A thousand keys that come and go, with callers at work, leave no more time series
// than the keys that are left account for.
func TestSeriesAreBoundedByTheRing(t *testing.T) {
	const keys, onRing = 1000, 3
	m := exercised()
	before := series(t, m)

	ring := func(first int) *kek.Ring {
		r := &kek.Ring{Label: "r"}
		for i := first; i < first+onRing; i++ {
			r.Keys = append(r.Keys, kek.Info{Ring: "r", ID: kek.ID(fmt.Sprintf("k%04d", i)), State: kek.Retired, Activation: time.Unix(int64(i), 0)})
		}
		return r
	}
	for first := range keys - onRing + 1 {
		r := ring(first)
		m.SetRing(r)
		var wg sync.WaitGroup
		for _, k := range r.Keys {
			wg.Go(func() {
				m.Opened(k.KeyID())
				m.Request("Decrypt", codes.OK, 40*time.Microsecond, "")
				m.HSMOperation("unwrap", "ok", time.Millisecond, "")
			})
		}
		wg.Wait()
	}
	after := series(t, m)
	byKey := []string{"kekd_key_info", "kekd_key_activation_timestamp_seconds", "kekd_decrypts_total"}
	for _, name := range byKey {
		if got := after[name]; got != onRing {
			t.Errorf("%s has %d series, want %d", name, got, onRing)
		}
	}
	for name, n := range after {
		if !slices.Contains(byKey, name) && n > before[name]+1 {
			t.Errorf("%s grew from %d series to %d", name, before[name], n)
		}
	}
	// A key that stays counts on: it is not forgotten with the others.
	expect(t, m, "kekd_decrypts_total", sorted(
		fmt.Sprintf("{key_id_hash=%s} 1", kek.KeyIDHash(kek.KeyID("r", "k0999", kek.CheckValue{}))),
		fmt.Sprintf("{key_id_hash=%s} 2", kek.KeyIDHash(kek.KeyID("r", "k0998", kek.CheckValue{}))),
		fmt.Sprintf("{key_id_hash=%s} 3", kek.KeyIDHash(kek.KeyID("r", "k0997", kek.CheckValue{}))))...)
}

// series counts the time series of each of kekd's own metrics.
func series(t *testing.T, m *Metrics) map[string]int {
	t.Helper()
	families, err := m.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	n := map[string]int{}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "kekd_") {
			n[f.GetName()] = len(f.GetMetric())
		}
	}
	return n
}

// Who scrapes with protobuf gets native histograms, and their buckets are bounded
// whatever is observed.
func TestNativeHistograms(t *testing.T) {
	m := newMetrics()
	for d := time.Nanosecond; d < time.Hour; d += d/200 + 1 {
		m.Request("Decrypt", codes.OK, d, "")
	}
	families, err := m.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "kekd_grpc_request_duration_seconds" {
			continue
		}
		for _, s := range f.GetMetric() {
			h := s.GetHistogram()
			if s.GetLabel()[0].GetValue() != "Decrypt" {
				continue
			}
			if len(h.GetBucket()) != len(durations()) || h.GetBucket()[0].GetUpperBound() != 10e-6 {
				t.Errorf("the classic buckets are %v", h.GetBucket())
			}
			if n := len(h.GetPositiveDelta()); n == 0 || n > nativeBuckets {
				t.Errorf("%d native buckets, want 1 to %d", n, nativeBuckets)
			}
			return
		}
	}
	t.Error("the histogram is missing")
}
