package rewrap

import (
	"encoding/json"
	"strings"
	"testing"
)

// mostChecks is how much of a rewrap's time may go into checking what the API
// servers write.
const mostChecks = 0.02

// BenchmarkRewrap rewraps 10,000 Secrets through a real kube-apiserver, as fast as
// it can, and shows how much of the time goes into the checks.
func BenchmarkRewrap(b *testing.B) {
	const n = 10_000
	c := newCluster(b)
	c.create(b, "many", "secrets", n)
	for b.Loop() {
		c.rotateKey(b)
		// kekd may not have seen the new key yet.
		code, k := c.rewrap(b, "--key-id", c.primary(b), "--rate", "100000", "-o", "json", "--apiserver", c.good.URL, c.kubeFlags[0], c.kubeFlags[1])
		if code != 0 {
			b.Fatalf("kekctl ends with %d, want 0", code)
		}
		var result struct{ Updated, Seconds, CheckSeconds float64 }
		if err := json.Unmarshal([]byte(k.Stdout(b)), &result); err != nil {
			b.Fatalf("%v in %s", err, k.Stdout(b))
		}
		share := result.CheckSeconds / result.Seconds
		b.Logf("%.0f objects in %.1f s, of that %.2f s of checks: %.1f %%", result.Updated, result.Seconds, result.CheckSeconds, share*100)
		b.ReportMetric(share*100, "%checks")
		if result.Updated < n || share > mostChecks {
			b.Errorf("%.0f objects were updated, want at least %d; %.1f %% of the time went into checks, want at most %.1f %%",
				result.Updated, n, share*100, mostChecks*100)
		}
	}
	b.ReportMetric(0, "ns/op") // says nothing
}

// primary is the key_id of the ring's primary.
func (c *cluster) primary(b *testing.B) string {
	b.Helper()
	for _, key := range c.keys(b) {
		if id, ok := strings.CutSuffix(key, " primary"); ok {
			return id
		}
	}
	b.Fatal("the ring has no primary")
	return ""
}
