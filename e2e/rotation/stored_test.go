package rotation

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kmstypes "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"

	"kekd/e2e/internal/harness"
)

const (
	secrets    = "secrets"
	configmaps = "configmaps"
)

// storedPrefix is what every encrypted value in etcd starts with.
const storedPrefix = "k8s:enc:kms:v2:" + provider + ":"

// storedKey is the key in etcd of an object in the namespace default.
func storedKey(resource, name string) string {
	return "/registry/" + resource + "/" + metav1.NamespaceDefault + "/" + name
}

// keyIDOf reads the key_id off a value in etcd.
func keyIDOf(value []byte) (string, error) {
	text, ok := bytes.CutPrefix(value, []byte(storedPrefix))
	if !ok {
		return "", fmt.Errorf("the value starts %.40q, want %q", value, storedPrefix)
	}
	var o kmstypes.EncryptedObject
	if err := proto.Unmarshal(text, &o); err != nil {
		return "", err
	}
	return o.KeyID, nil
}

// stored returns the bytes that etcd holds of an object, and under which key.
func (c *cluster) stored(ctx context.Context, resource, name string) (value []byte, keyID string, err error) {
	resp, err := c.etcd.Get(ctx, storedKey(resource, name))
	if err != nil {
		return nil, "", err
	}
	if len(resp.Kvs) != 1 {
		return nil, "", fmt.Errorf("etcd holds %d values of %s %s, want 1", len(resp.Kvs), resource, name)
	}
	value = resp.Kvs[0].Value
	keyID, err = keyIDOf(value)
	return value, keyID, err
}

// standing counts the objects under each key_id, in all namespaces. Every value
// must be encrypted.
func (c *cluster) standing(t *testing.T, resources ...string) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, resource := range resources {
		resp, err := c.etcd.Get(t.Context(), "/registry/"+resource+"/", clientv3.WithPrefix())
		if err != nil {
			t.Fatalf("read all %s from etcd: %v", resource, err)
		}
		for _, kv := range resp.Kvs {
			keyID, err := keyIDOf(kv.Value)
			if err != nil {
				t.Fatalf("%s: %v", kv.Key, err)
			}
			counts[keyID]++
		}
	}
	return counts
}

// requireAllUnder requires that every object stands under one key, by what etcd
// holds and by what kekctl says of it.
func (c *cluster) requireAllUnder(t *testing.T, keyID string) {
	t.Helper()
	counts := c.standing(t, secrets, configmaps)
	total := counts[keyID]
	if len(counts) != 1 || total == 0 {
		t.Fatalf("etcd holds objects under %v, want all under %s", counts, keyID)
	}
	var report struct {
		Totals []struct {
			Class, KeyID string
			Objects      int
		}
	}
	c.kekctlJSON(t, &report, append([]string{"inventory"}, c.etcdFlags...)...)
	for _, count := range report.Totals {
		if count.Class == "kms-v2" && (count.KeyID != keyID || count.Objects < total) {
			t.Errorf("kekctl inventory counts %+v, want at least %d under %s and no others", count, total, keyID)
		}
	}
	t.Logf("all %d objects stand under %s", total, keyID)
}

// awaitWrites waits until every apiserver writes under the key, as what it has
// written shows.
func (c *cluster) awaitWrites(t *testing.T, keyID string) {
	t.Helper()
	for i, n := range c.nodes {
		n.awaitWrites(t, c, fmt.Sprintf("probe-%d", i), keyID)
	}
}

// awaitWrites is the cluster's for one apiserver, with a Secret of its own.
func (n *node) awaitWrites(t *testing.T, c *cluster, name, keyID string) {
	t.Helper()
	api := n.kube.CoreV1().Secrets(metav1.NamespaceDefault)
	try := 0
	took := harness.Eventually(t, takenUpWithin, n.apiserver.URL+" writes under the key", func(ctx context.Context) error {
		// The server asks for Status when it is asked for its health.
		if _, _, err := n.apiserver.Get(ctx, kmsReady); err != nil {
			return err
		}
		try++
		// A name for each try: a write that changes nothing may not reach etcd.
		s, err := api.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%03d", name, try)}}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		_, got, err := c.stored(ctx, secrets, s.Name)
		if err == nil && got != keyID {
			err = fmt.Errorf("it writes under %s, want %s", got, keyID)
		}
		return err
	})
	t.Logf("%s writes under the key after %v more", n.apiserver.URL, took.Round(100*time.Millisecond))
}
