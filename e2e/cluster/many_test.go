package cluster

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// writers is how many clients create objects at once.
const writers = 16

// createMany creates n Secrets with a common prefix.
func (c *cluster) createMany(t *testing.T, prefix string, n int) {
	t.Helper()
	start := time.Now()
	names := make(chan string)
	failed := make(chan error, writers)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for name := range names {
				if err := c.createSecret(ctx, name); err != nil {
					failed <- fmt.Errorf("create secret %s: %w", name, err)
					cancel()
					return
				}
			}
		})
	}
feed:
	for i := range n {
		select {
		case names <- fmt.Sprintf("%s-%04d", prefix, i):
		case <-ctx.Done():
			break feed
		}
	}
	close(names)
	wg.Wait()
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
	t.Logf("%d secrets created in %v", n, time.Since(start).Round(time.Millisecond))
}

// requireMany reads all Secrets with the prefix and compares their values. Each is
// read by itself, which comes from etcd and is decrypted: a list, in pages too,
// comes from the watch cache in Kubernetes 1.37.
func (c *cluster) requireMany(t *testing.T, prefix string, n int) {
	t.Helper()
	start := time.Now()
	before := c.decoded(t)
	var g errgroup.Group
	g.SetLimit(writers)
	for i := range n {
		g.Go(func() error {
			name := fmt.Sprintf("%s-%04d", prefix, i)
			if err := c.checkSecret(t.Context(), name); err != nil {
				return fmt.Errorf("read secret %s: %w", name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if got := c.decoded(t) - before; got < float64(n) {
		t.Errorf("the apiserver decoded %v Secrets from etcd, want %d: this case shows nothing", got, n)
	}
	t.Logf("%d secrets read and compared in %v", n, time.Since(start).Round(time.Millisecond))
}

// decoded is how many Secrets the apiserver has taken from etcd since it started.
func (c *cluster) decoded(t *testing.T) float64 {
	t.Helper()
	return c.apiserver.Metrics(t).Sum("apiserver_storage_transformation_operations_total",
		map[string]string{"resource": "secrets", "transformation_type": "from_storage", "status": "OK"})
}

func testThousandSecrets(t *testing.T, c *cluster) {
	const n = 1000
	before := c.hsmOperations(t)
	calls := c.decryptCalls(t)
	c.createMany(t, "many", n)
	c.requireMany(t, "many", n)
	t.Logf("calls of Decrypt: %v", c.decryptCalls(t)-calls)
	c.requireHSMOperations(t, before, 0)
}
