package cluster

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

// requireMany lists all Secrets in pages, which come from etcd and not from the
// watch cache, and compares the values of those with the prefix.
func (c *cluster) requireMany(t *testing.T, prefix string, n int) {
	t.Helper()
	start := time.Now()
	found := map[string]bool{}
	options := metav1.ListOptions{Limit: 250}
	for {
		page, err := c.kube.CoreV1().Secrets(metav1.NamespaceDefault).List(t.Context(), options)
		if err != nil {
			t.Fatalf("list secrets: %v", err)
		}
		for _, s := range page.Items {
			if !strings.HasPrefix(s.Name, prefix+"-") {
				continue
			}
			if got := string(s.Data["value"]); got != plaintext(s.Name) {
				t.Errorf("secret %s holds %q", s.Name, got)
			}
			found[s.Name] = true
		}
		if options.Continue = page.Continue; options.Continue == "" {
			break
		}
	}
	if len(found) != n {
		t.Errorf("list has %d secrets %s-*, want %d", len(found), prefix, n)
	}
	t.Logf("%d secrets listed and compared in %v", len(found), time.Since(start).Round(time.Millisecond))
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
