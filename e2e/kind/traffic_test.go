package kind_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	namespace = "default"
	marker    = "a plain text that must not be found in etcd"
)

// put writes a Secret with the marker.
func (c *cluster) put(tb testing.TB, name string) {
	tb.Helper()
	eventually(tb, time.Minute, "write the Secret "+name, func() error {
		_, err := c.client.CoreV1().Secrets(namespace).Create(context.Background(), &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			StringData: map[string]string{"value": marker},
		}, metav1.CreateOptions{})
		return err
	})
}

// wants reads a Secret from etcd, through the API server.
func (c *cluster) wants(tb testing.TB, within time.Duration, names ...string) {
	tb.Helper()
	for _, name := range names {
		eventually(tb, within, "read the Secret "+name, func() error { return c.read(name) })
	}
}

func (c *cluster) read(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	s, err := c.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if got := string(s.Data["value"]); got != marker {
		return fmt.Errorf("the Secret %s has the value %q", name, got)
	}
	return nil
}

// stored is what etcd has of a Secret.
func (c *cluster) stored(tb testing.TB, name string) string {
	tb.Helper()
	return c.on(tb, c.nodes[0], `kubectl -n kube-system exec "etcd-$(hostname)" -- etcdctl --endpoints=https://127.0.0.1:2379 \
		--cacert=/etc/kubernetes/pki/etcd/ca.crt --cert=/etc/kubernetes/pki/etcd/server.crt --key=/etc/kubernetes/pki/etcd/server.key \
		get --print-value-only /registry/secrets/`+namespace+`/`+name)
}

// outages reads a Secret and a namespace, which nobody encrypts, all the time. What
// it returns ends that and prints how long each was not to be had at a stretch.
func (c *cluster) outages(t *testing.T, what, secret string) (stop func() (secrets, api time.Duration)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	var longest [2]time.Duration
	var counts [2][2]int
	for i, read := range []func() error{
		func() error { return c.read(secret) },
		func() error {
			short, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			_, err := c.client.CoreV1().Namespaces().Get(short, namespace, metav1.GetOptions{})
			return err
		},
	} {
		wait.Go(func() {
			good := time.Now()
			for ctx.Err() == nil {
				if err := read(); err != nil {
					counts[i][1]++
				} else {
					counts[i][0]++
					longest[i] = max(longest[i], time.Since(good))
					good = time.Now()
				}
				time.Sleep(20 * time.Millisecond)
			}
			longest[i] = max(longest[i], time.Since(good)) // it may not be over
		})
	}
	return func() (secrets, api time.Duration) {
		cancel()
		wait.Wait()
		t.Logf("MEASURED %s: a Secret could not be read for %v at a stretch (%d reads, %d failed), a namespace for %v (%d, %d)",
			what, longest[0].Round(10*time.Millisecond), counts[0][0], counts[0][1], longest[1].Round(10*time.Millisecond), counts[1][0], counts[1][1])
		return longest[0], longest[1]
	}
}

// load writes and reads Secrets all the time. What it returns ends that and gives the
// counts.
func (c *cluster) load(t *testing.T) (stop func() (requests int, failures []string)) {
	t.Helper()
	const writers = 3
	ctx, cancel := context.WithCancel(t.Context())
	var (
		wait     sync.WaitGroup
		mu       sync.Mutex
		requests int
		failures []string
	)
	note := func(what string, err error) {
		mu.Lock()
		defer mu.Unlock()
		requests++
		if err != nil && ctx.Err() == nil {
			failures = append(failures, fmt.Sprintf("%s %s: %v", time.Now().Format("15:04:05.000"), what, err))
		}
	}
	for i := range writers {
		wait.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name := fmt.Sprintf("load-%d-%d", i, n)
				_, err := c.client.CoreV1().Secrets(namespace).Create(context.Background(), &corev1.Secret{
					ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: map[string]string{"value": marker},
				}, metav1.CreateOptions{})
				note("write "+name, err)
				if err == nil {
					note("read "+name, c.read(name))
				}
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	return func() (int, []string) {
		cancel()
		wait.Wait()
		return requests, failures
	}
}
