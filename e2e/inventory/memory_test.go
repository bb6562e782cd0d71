package inventory

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"kekd/e2e/internal/harness"
)

// What an inventory may cost.
const (
	etcdGrowth = 100 << 10 // KiB
	kekctlPeak = 100 << 10 // KiB
)

// largeStore are etcd's flags for a gigabyte or more. By its defaults it has 10,000
// transactions in memory, and reads them all again when it starts.
var largeStore = []string{"--quota-backend-bytes=8589934592", "--snapshot-count=100", "--snapshot-catchup-entries=10", "--max-wals=1"}

// TestMemory: small Secrets followed by large ones neither let etcd grow nor kekctl,
// and constant writes change nothing about that. KEKD_INVENTORY_FULL=1 takes ten
// times as many (make inventory-memory).
func TestMemory(t *testing.T) {
	small, large := 19_750, 600
	if os.Getenv("KEKD_INVENTORY_FULL") != "" {
		small, large = 197_500, 2_500
	}
	etcd := harness.StartEtcd(t, largeStore...)
	c, _ := newStore(t, etcd)
	begun := time.Now()
	fillSized(t, c, "a", small, 1000)
	fillSized(t, c, "b", large, 500_000)
	t.Logf("%d objects written in %v", small+large, time.Since(begun).Round(time.Second))

	for name, churn := range map[string]bool{"at rest": false, "under constant writes": true} {
		t.Run(name, func(t *testing.T) {
			// A fresh process has little garbage, and maps its file at the start.
			etcd.Kill(t)
			etcd.Start(t)
			settle(t, c, etcd.PID())
			if churn {
				ctx, stop := context.WithCancel(t.Context())
				var written atomic.Int64
				ended := make(chan struct{})
				go func() { defer close(ended); overwrite(ctx, c, small, &written) }()
				defer func() { stop(); <-ended; t.Logf("%d objects overwritten meanwhile", written.Load()) }()
				time.Sleep(3 * time.Second) // let etcd's memory settle under the load
			}
			watch := watchMemory(etcd.PID())
			r, used := mustInventory(t, "--etcd-endpoints", etcd.Endpoint)
			before, peak := watch()
			t.Logf("%d objects in %.2f s, kekctl %v of CPU, peak %d MiB; etcd's memory went from %s to at most %s",
				r.Objects, r.Seconds, used.cpu.Round(10*time.Millisecond), used.peakKiB>>10, before, peak)
			if r.Objects != small+large+1 {
				t.Errorf("%d objects, want %d", r.Objects, small+large+1)
			}
			if used.peakKiB > kekctlPeak {
				t.Errorf("kekctl's peak is %d KiB, want at most %d", used.peakKiB, kekctlPeak)
			}
			if grown := peak.all - before.all; grown > etcdGrowth {
				t.Errorf("etcd grew by %d KiB, want at most %d", grown, etcdGrowth)
			}
		})
	}
}

// settle reads small Secrets, a few at a time, until that makes etcd grow no more: what
// a process that was just started takes for its heap is not the inventory's doing.
func settle(t *testing.T, c *clientv3.Client, pid int) {
	t.Helper()
	const enough = 2 << 10 // KiB
	first, end := sizedKey("a", 0), clientv3.GetPrefixRangeEnd("/registry/secrets/a/")
	for begun := time.Now(); ; {
		before := memoryOf(pid)
		for key, pages := first, 0; key != "" && pages < 2000; pages++ {
			resp, err := c.Get(t.Context(), key, clientv3.WithRange(end), clientv3.WithLimit(32), clientv3.WithSerializable())
			if err != nil {
				t.Fatalf("read small Secrets: %v", err)
			}
			if key = ""; resp.More {
				key = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
			}
		}
		after := memoryOf(pid)
		t.Logf("etcd's memory went from %s to %s", before, after)
		if after.all-before.all < enough {
			return
		}
		if time.Since(begun) > time.Minute {
			t.Fatalf("etcd's memory does not settle: %s, then %s", before, after)
		}
	}
}

// sizedKey is the key of Secret number i of a namespace.
func sizedKey(namespace string, i int) string {
	return fmt.Sprintf("/registry/secrets/%s/object-%07d", namespace, i)
}

// fillSized writes n Secrets of a size into a namespace.
func fillSized(t *testing.T, c *clientv3.Client, namespace string, n, size int) {
	t.Helper()
	body := make([]byte, size)
	for i := range body {
		body[i] = byte(rand.Uint32())
	}
	value := sealed(newKey, body)
	batch := min(max(1_000_000/size, 1), 100)
	writers, ctx := errgroup.WithContext(t.Context())
	writers.SetLimit(2)
	for from := 0; from < n; from += batch {
		var puts []clientv3.Op
		for i := from; i < min(from+batch, n); i++ {
			puts = append(puts, clientv3.OpPut(sizedKey(namespace, i), value))
		}
		writers.Go(func() error {
			for try := 1; ; try++ {
				// A gigabyte may be more than a busy disk takes in time.
				if err := commit(ctx, c, puts...); err == nil || try == 10 || ctx.Err() != nil {
					return err
				}
			}
		})
	}
	if err := writers.Wait(); err != nil {
		t.Fatalf("fill etcd: %v", err)
	}
}

// overwrite writes small Secrets anew, at random and without a pause.
func overwrite(ctx context.Context, c *clientv3.Client, n int, written *atomic.Int64) {
	value := sealed(newKey, make([]byte, 1000))
	for ctx.Err() == nil {
		if _, err := c.Put(ctx, sizedKey("a", rand.IntN(n)), value); err == nil {
			written.Add(1)
		}
	}
}

// memory is what a process has resident, in KiB: all, and what is not of a file.
type memory struct{ all, anonymous int }

func (m memory) String() string {
	return fmt.Sprintf("%d MiB (%d anonymous)", m.all>>10, m.anonymous>>10)
}

// watchMemory watches a process until its result is asked for: what it had at the
// start, and the largest values since.
func watchMemory(pid int) func() (before, peak memory) {
	runtime.GC()
	before := memoryOf(pid)
	peak := before
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			m := memoryOf(pid)
			peak = memory{max(peak.all, m.all), max(peak.anonymous, m.anonymous)}
		}
	}()
	return func() (memory, memory) {
		close(stop)
		<-ended
		return before, peak
	}
}

func memoryOf(pid int) memory {
	var m memory
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m
	}
	for line := range strings.Lines(string(status)) {
		_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &m.all)
		_, _ = fmt.Sscanf(line, "RssAnon: %d kB", &m.anonymous)
	}
	return m
}
