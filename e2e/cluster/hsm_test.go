package cluster

import (
	"testing"

	"kekd/e2e/internal/harness"
)

// hsmOperations are kekd's counted uses of the KEK since it started, whatever
// their result, but for those that reached no worker, and so no HSM. The prober's
// are apart: it runs all the time, on purpose.
type hsmOperations struct{ Wraps, Unwraps, Probes float64 }

func (c *cluster) hsmOperations(t *testing.T) hsmOperations {
	t.Helper()
	return operations(c.kekd.Metrics(t))
}

func operations(m harness.Metrics) hsmOperations {
	asked := func(op string) float64 {
		const name = "kekd_hsm_operations_total"
		return m.Sum(name, map[string]string{"op": op}) - m.Sum(name, map[string]string{"op": op, "result": "unavailable"})
	}
	return hsmOperations{Wraps: asked("wrap"), Unwraps: asked("unwrap"), Probes: asked("probe")}
}

// uses is the number of operations that requests caused.
func (o hsmOperations) uses() float64 { return o.Wraps + o.Unwraps }

// requireHSMOperations fails the test when kekd used the KEK more than limit
// times since before, probes apart. kekd must not have restarted since.
func (c *cluster) requireHSMOperations(t *testing.T, before hsmOperations, limit float64) {
	t.Helper()
	after := c.hsmOperations(t)
	if got := after.uses() - before.uses(); got > limit || got < 0 {
		t.Errorf("%v HSM operations (before %+v, after %+v), want at most %v", got, before, after, limit)
	} else {
		t.Logf("HSM operations: %v (limit %v), and %v probes", got, limit, after.Probes-before.Probes)
	}
}
