// Package rewrap runs kekctl rewrap on real kube-apiservers: some that do not encrypt
// with kekd, and objects that cannot be rewritten.
package rewrap

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kekd/e2e/internal/harness"
)

const (
	provider     = "kekd"
	kekctlWithin = 4 * time.Minute
)

// cluster is one etcd with a good API server, and a second one that each case
// configures.
type cluster struct {
	etcd      *clientv3.Client
	kekd      *harness.Kekd
	good, bad *harness.APIServer
	kube      kubernetes.Interface
	etcdFlags []string
	kubeFlags []string
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	etcd := harness.StartEtcd(t)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd.Endpoint}, DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatalf("make the etcd client: %v", err)
	}
	t.Cleanup(func() { _ = client.Close() })
	c := &cluster{etcd: client, etcdFlags: []string{"--etcd-endpoints", etcd.Endpoint}}
	c.kekd = harness.NewKekd(t, harness.NewToken(t), harness.KekdOptions{})
	c.kekd.StartReady(t)
	config := c.encryption(t, kms(provider, c.kekd.Socket), identity)
	c.good = harness.NewAPIServer(t, etcd, config)
	c.good.StartReady(t)
	c.bad = c.good.Sibling(t, config)
	if c.kube, err = kubernetes.NewForConfig(c.good.RESTConfig()); err != nil {
		t.Fatalf("make the Kubernetes client: %v", err)
	}
	c.kubeFlags = []string{"--kubeconfig", c.good.Kubeconfig(t)}
	return c
}

const (
	identity = "identity: {}"
	aescbc   = "aescbc: {keys: [{name: key1, secret: MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=}]}"
)

func kms(name, socket string) string {
	return fmt.Sprintf("kms: {apiVersion: v2, name: %s, endpoint: 'unix://%s', timeout: 3s}", name, socket)
}

// encryption writes an EncryptionConfiguration with these providers.
func (c *cluster) encryption(t testing.TB, providers ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "encryption.yaml")
	text := "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n  - resources: [secrets, configmaps]\n    providers:\n"
	for _, p := range providers {
		text += "      - " + p + "\n"
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// create makes objects in a namespace, several at a time.
func (c *cluster) create(t testing.TB, namespace, resource string, n int) {
	t.Helper()
	_, _ = c.kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	names := make(chan string)
	var workers sync.WaitGroup
	for range 16 {
		workers.Go(func() {
			for name := range names {
				meta := metav1.ObjectMeta{Name: name}
				var err error
				if resource == "secrets" {
					_, err = c.kube.CoreV1().Secrets(namespace).Create(t.Context(), &corev1.Secret{ObjectMeta: meta, StringData: map[string]string{"v": name}}, metav1.CreateOptions{})
				} else {
					_, err = c.kube.CoreV1().ConfigMaps(namespace).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"v": name}}, metav1.CreateOptions{})
				}
				if err != nil {
					t.Errorf("create %s %s: %v", resource, name, err)
				}
			}
		})
	}
	for i := range n {
		names <- fmt.Sprintf("%s-%04d", namespace, i)
	}
	close(names)
	workers.Wait()
}

// stored returns what etcd holds of the resources, by key.
func (c *cluster) stored(t *testing.T) map[string][]byte {
	t.Helper()
	values := map[string][]byte{}
	for _, resource := range []string{"secrets", "configmaps"} {
		resp, err := c.etcd.Get(t.Context(), "/registry/"+resource+"/", clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range resp.Kvs {
			values[string(kv.Key)] = kv.Value
		}
	}
	return values
}

// restore puts values back into etcd.
func (c *cluster) restore(t *testing.T, values map[string][]byte) {
	t.Helper()
	for key, value := range values {
		if _, err := c.etcd.Put(t.Context(), key, string(value)); err != nil {
			t.Fatal(err)
		}
	}
}

// changed are the keys whose value is not under kekd any more.
func changed(before, after map[string][]byte) []string {
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(before)) {
		if !bytes.Equal(before[key], after[key]) {
			keys = append(keys, key)
		}
	}
	return keys
}

func (c *cluster) rewrap(t testing.TB, flags ...string) (code int, k *harness.Kekctl) {
	t.Helper()
	return c.run(t, slices.Concat([]string{"rewrap", "--yes", "--method", "update", "--rate", "1000"}, c.etcdFlags, flags))
}

func (c *cluster) rotate(t *testing.T, flags ...string) (code int, k *harness.Kekctl) {
	t.Helper()
	return c.run(t, slices.Concat([]string{"rotate", "--yes", "--method", "update", "--activate-in", "12s"}, c.etcdFlags, flags))
}

// run runs kekctl to its end.
func (c *cluster) run(t testing.TB, args []string) (code int, k *harness.Kekctl) {
	t.Helper()
	k = c.kekd.Kekctl(t, args...)
	begun := time.Now()
	code = k.Wait(t, kekctlWithin)
	t.Logf("kekctl %s: %d after %v\n%s", strings.Join(args, " "), code, time.Since(begun).Round(time.Millisecond), k.Stderr(t))
	return code, k
}

// keys are the key_ids of the ring with their states.
func (c *cluster) keys(t testing.TB) []string {
	t.Helper()
	k := c.kekd.Kekctl(t, "key", "list", "-o", "json")
	if code := k.Wait(t, kekctlWithin); code != 0 {
		t.Fatalf("kekctl key list ends with %d: %s", code, k.Stderr(t))
	}
	var listing struct {
		Keys []struct{ KeyID, State string }
	}
	if err := json.Unmarshal([]byte(k.Stdout(t)), &listing); err != nil {
		t.Fatalf("%v in %s", err, k.Stdout(t))
	}
	var keys []string
	for _, key := range listing.Keys {
		keys = append(keys, key.KeyID+" "+key.State)
	}
	return keys
}

// rotateKey makes another key the primary, so that everything is stale, and waits
// until the good API server has taken it up.
func (c *cluster) rotateKey(t testing.TB) {
	t.Helper()
	k := c.kekd.Kekctl(t, "key", "rotate", "--now", "--yes")
	if code := k.Wait(t, kekctlWithin); code != 0 {
		t.Fatalf("kekctl key rotate ends with %d: %s", code, k.Stderr(t))
	}
}
