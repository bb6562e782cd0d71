// Package speed measures what encryption at rest costs a real kube-apiserver: it
// creates and lists Secrets on clusters that differ in their
// EncryptionConfiguration alone, side by side in one run.
//
// # What is compared
//
// identity stores plaintext, secretbox encrypts under a key in the apiserver's
// own file. A KMS v2 plugin that does nothing shows what Kubernetes' own part of
// KMS v2 costs, whatever the plugin. kekd seeded and kekd direct have a SoftHSM
// token each, and two more a token that takes 20 ms longer. A second secretbox,
// the control, shows how far from 1.00 the noise alone goes. Each has an etcd and
// a kube-apiserver of its own.
//
// # How
//
// All clusters run at once and are measured in turns, in another order each
// round, so that a noisy minute hits all alike. A ratio is taken within a round;
// the median of all rounds is reported with its quartiles. What would hide the
// cost of encryption is left out: etcd does not wait for the disk, responses are
// not compressed, objects travel as protobuf, the client decodes a list after
// the clock was stopped.
//
// No time is ever asserted. A request that fails, an object that reads back
// wrong, or a list that did not come from where the report says, fails the run.
package speed

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// options are the command line behind `go test -args`.
type options struct {
	secrets, batch, workers, lists, restarts int
	delay                                    time.Duration
	update                                   bool
}

var flags options

func TestMain(m *testing.M) {
	flag.IntVar(&flags.secrets, "secrets", 10_000, "Secrets to create on each cluster")
	flag.IntVar(&flags.batch, "batch", 250, "Secrets that one cluster creates in one round")
	flag.IntVar(&flags.workers, "workers", 16, "clients that create at once")
	flag.IntVar(&flags.lists, "lists", 11, "lists of all Secrets for each cluster and source")
	flag.IntVar(&flags.restarts, "restarts", 3, "restarts of each kube-apiserver and kekd")
	flag.DurationVar(&flags.delay, "delay", 20*time.Millisecond, "what a slow HSM takes longer; 0: measure none")
	flag.BoolVar(&flags.update, "update", false, "write the report into docs/performance.md")
	os.Exit(m.Run())
}

func (o options) validate() error {
	var errs []error
	if o.batch < 1 || o.secrets > 1_000_000 || o.secrets < 2*o.batch || o.secrets%o.batch != 0 {
		errs = append(errs, fmt.Errorf("-secrets: must be a multiple of -batch (%d), at least twice that and at most 1000000, got %d", o.batch, o.secrets))
	}
	for _, n := range []struct {
		name       string
		value, max int
	}{{"workers", o.workers, 256}, {"lists", o.lists, 1000}, {"restarts", o.restarts, 100}} {
		if n.value < 1 || n.value > n.max {
			errs = append(errs, fmt.Errorf("-%s: must be 1 to %d, got %d", n.name, n.max, n.value))
		}
	}
	if o.delay != 0 && (o.delay < time.Millisecond || o.delay > time.Second) {
		errs = append(errs, fmt.Errorf("-delay: must be 0 or 1ms to 1s, got %v", o.delay))
	}
	return errors.Join(errs...)
}

// BenchmarkAPIServer is one run, whatever b.N is: `make bench-apiserver`.
func BenchmarkAPIServer(b *testing.B) {
	o := flags
	if err := o.validate(); err != nil {
		b.Fatal(err)
	}
	progress := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	progress("")

	clusters := startClusters(b, o, progress)
	measureCreates(b, o, clusters, progress)
	measureRestarts(b, o, clusters, progress)
	measureLists(b, o, clusters, progress)

	report := newReport(b, o, clusters)
	fmt.Print(report)
	if o.update {
		if err := harness.UpdatePage(performancePage, "apiserver", report); err != nil {
			b.Fatal(err)
		}
		progress("written to %s", performancePage)
	}
}

// inTurns calls f for each cluster in each round.
func inTurns(rounds int, clusters []*cluster, f func(round int, c *cluster)) {
	for round := range rounds {
		for _, i := range order(round, len(clusters)) {
			f(round, clusters[i])
		}
	}
}

// order is another one each round, so that what a cluster leaves behind (its
// garbage, its store's writes) falls upon all others alike: for an even n, each
// has each other one before it once in n rounds (a Williams design).
func order(round, n int) []int {
	turns := make([]int, n)
	for i := range turns {
		turns[i] = (i + 1) / 2
		if i%2 == 0 {
			turns[i] = n - i/2
		}
		turns[i] = (turns[i] + round) % n
	}
	return turns
}

func TestOrderIsBalanced(t *testing.T) {
	for _, n := range []int{6, 8} { // without and with a slow HSM
		before := map[[2]int]int{}
		for round := range n {
			turns := order(round, n)
			for i := 1; i < n; i++ {
				before[[2]int{turns[i-1], turns[i]}]++
			}
		}
		for i := range n {
			for j := range n {
				if got := before[[2]int{i, j}]; i != j && got != 1 || i == j && got != 0 {
					t.Errorf("of %d clusters, %d comes right before %d in %d rounds of %d", n, i, j, got, n)
				}
			}
		}
	}
}

// measureCreates creates all Secrets. The first round warms up, unmeasured.
func measureCreates(b *testing.B, o options, clusters []*cluster, progress func(string, ...any)) {
	b.Helper()
	rounds := o.secrets / o.batch
	for _, c := range clusters {
		c.before = c.read(b)
	}
	start := time.Now()
	inTurns(rounds, clusters, func(round int, c *cluster) {
		m, err := c.create(b.Context(), round*o.batch, o.batch, o.workers)
		if err != nil {
			b.Fatalf("%s: %v", c.name, err)
		}
		if round > 0 {
			c.creates = append(c.creates, m)
		}
	})
	for _, c := range clusters {
		c.creating = c.read(b).minus(c.before)
		if got := c.creating.toStorage; got < float64(o.secrets) {
			b.Fatalf("%s: kube-apiserver encoded %v Secrets for etcd, want %d", c.name, got, o.secrets)
		}
	}
	progress("created %d Secrets on each of %d clusters in %v", o.secrets, len(clusters), time.Since(start).Round(time.Second))
}

// measureRestarts restarts kekd, so that it has no seed in memory, and then
// kube-apiserver, which fills its watch cache before it is ready.
func measureRestarts(b *testing.B, o options, clusters []*cluster, progress func(string, ...any)) {
	b.Helper()
	start := time.Now()
	inTurns(o.restarts, clusters, func(_ int, c *cluster) {
		c.restarts = append(c.restarts, c.restart(b, o.secrets))
	})
	progress("restarted each %d times in %v", o.restarts, time.Since(start).Round(time.Second))
}

// measureLists lists all Secrets from each source. The first round warms up,
// unmeasured, and proves where the lists come from.
func measureLists(b *testing.B, o options, clusters []*cluster, progress func(string, ...any)) {
	b.Helper()
	start := time.Now()
	for _, c := range clusters {
		for _, from := range []source{fromCache, fromCacheInPages, fromEtcd} {
			before := c.read(b)
			if _, err := c.list(b.Context(), from, o.secrets); err != nil {
				b.Fatalf("%s: list from %s: %v", c.name, from, err)
			}
			decoded := c.read(b).minus(before).fromStorage
			if all := decoded >= float64(o.secrets); all != (from == fromEtcd) {
				b.Fatalf("%s: a list from %s decoded %v Secrets of etcd", c.name, from, decoded)
			}
		}
	}
	for _, c := range clusters {
		c.before = c.read(b)
	}
	inTurns(o.lists, clusters, func(_ int, c *cluster) {
		for _, from := range sources {
			m, err := c.list(b.Context(), from, o.secrets)
			if err != nil {
				b.Fatalf("%s: list from %s: %v", c.name, from, err)
			}
			c.lists[from] = append(c.lists[from], m)
		}
	})
	for _, c := range clusters {
		c.listing = c.read(b).minus(c.before)
	}
	progress("listed %d times from each source in %v", o.lists, time.Since(start).Round(time.Second))
}

// atMost bounds one request.
func atMost(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, time.Minute)
}
