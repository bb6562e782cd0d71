package inventory

import (
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// rounds is how often each kekctl takes the inventory.
const rounds = 9

// BenchmarkInventory measures kekctl inventory over 100,000 objects, or as many as
// KEKD_INVENTORY_OBJECTS says, beside the kekctl of KEKD_INVENTORY_BASE if there is
// one: in turns, so that what else the machine does meets both alike.
func BenchmarkInventory(b *testing.B) {
	n := 100_000
	if s := os.Getenv("KEKD_INVENTORY_OBJECTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			b.Fatalf("KEKD_INVENTORY_OBJECTS: %v", err)
		}
	}
	etcd := harness.StartEtcd(b, largeStore...)
	c, counts := newStore(b, etcd)
	fill(b, c, 1, n, counts)
	contenders := []*contender{{name: "this", path: harness.KekctlBinary(b)}}
	if base := os.Getenv("KEKD_INVENTORY_BASE"); base != "" {
		contenders = append(contenders, &contender{name: "base", path: base})
	}
	for _, c := range contenders {
		c.round(b, etcd, n) // which warms etcd up, and is not counted
		*c = contender{name: c.name, path: c.path}
	}
	for b.Loop() {
		for range rounds {
			for _, c := range contenders {
				c.round(b, etcd, n)
			}
		}
	}
	for _, c := range contenders {
		b.Logf("%d objects, %s kekctl: %.2f s, %.2f s of CPU, and %.2f s of etcd's; peak %d MiB",
			n, c.name, median(c.wall), median(c.cpu), median(c.etcd), c.peakKiB>>10)
		b.ReportMetric(median(c.wall), "s/"+c.name)
	}
	if len(contenders) > 1 {
		b.ReportMetric(median(contenders[0].wall)/median(contenders[1].wall), "of-base")
	}
	b.ReportMetric(0, "ns/op") // says nothing
}

// contender is a kekctl that is measured beside another.
type contender struct {
	name, path string
	// wall, cpu and etcd are the seconds of each round: passed, of kekctl's CPU and
	// of etcd's.
	wall, cpu, etcd []float64
	peakKiB         int
}

func (c *contender) round(b *testing.B, etcd *harness.Etcd, n int) {
	b.Helper()
	before := cpuOf(b, etcd.PID())
	r, used := mustInventoryOf(b, c.path, "--etcd-endpoints", etcd.Endpoint)
	if r.Objects != n {
		b.Fatalf("%s: %d objects, want %d", c.name, r.Objects, n)
	}
	c.wall = append(c.wall, used.wall.Seconds())
	c.cpu = append(c.cpu, used.cpu.Seconds())
	c.etcd = append(c.etcd, (cpuOf(b, etcd.PID()) - before).Seconds())
	c.peakKiB = max(c.peakKiB, used.peakKiB)
}

func cpuOf(b *testing.B, pid int) time.Duration {
	b.Helper()
	used, err := harness.ProcessorTime(pid)
	if err != nil {
		b.Fatal(err)
	}
	return used
}

func median(values []float64) float64 {
	return harness.Quantile(slices.Sorted(slices.Values(values)), 0.5)
}
