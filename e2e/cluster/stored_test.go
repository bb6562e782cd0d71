package cluster

import (
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// stored returns the bytes that etcd holds of an object in the namespace default.
func (c *cluster) stored(t *testing.T, resource, name string) []byte {
	t.Helper()
	resp, err := c.etcd.Get(t.Context(), storedKey(resource, name))
	if err != nil {
		t.Fatalf("read %s %s from etcd: %v", resource, name, err)
	}
	if len(resp.Kvs) != 1 {
		t.Fatalf("etcd holds %d values of %s %s, want 1", len(resp.Kvs), resource, name)
	}
	return resp.Kvs[0].Value
}

func storedKey(resource, name string) string {
	return "/registry/" + resource + "/" + metav1.NamespaceDefault + "/" + name
}

// testStoredEncrypted: every value of the two resources in etcd carries the
// provider's prefix and none holds the plaintext.
func testStoredEncrypted(t *testing.T, c *cluster) {
	before := c.hsmOperations(t)
	const name = "stored"
	c.mustCreateSecret(t, name)
	if _, err := c.kube.CoreV1().ConfigMaps(metav1.NamespaceDefault).Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Data:       map[string]string{"value": plaintext(name)},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatalf("create configmap: %v", err)
	}
	c.mustReadSecret(t, name)
	m, err := c.kube.CoreV1().ConfigMaps(metav1.NamespaceDefault).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatalf("read configmap: %v", err)
	}
	if got := m.Data["value"]; got != plaintext(name) {
		t.Fatalf("configmap holds %q, want %q", got, plaintext(name))
	}

	for _, resource := range []string{"secrets", "configmaps"} {
		c.stored(t, resource, name) // it is there
		resp, err := c.etcd.Get(t.Context(), "/registry/"+resource+"/", clientv3.WithPrefix())
		if err != nil {
			t.Fatalf("read all %s from etcd: %v", resource, err)
		}
		for _, kv := range resp.Kvs {
			if value := string(kv.Value); !strings.HasPrefix(value, storedPrefix) {
				t.Errorf("%s starts %.40q, want %q", kv.Key, value, storedPrefix)
			} else if strings.Contains(value, "plaintext of") {
				t.Errorf("%s holds the plaintext", kv.Key)
			}
		}
		t.Logf("%s: %d values in etcd, all encrypted", resource, len(resp.Kvs))
	}
	// What is not configured stays readable: the check above can fail.
	resp, err := c.etcd.Get(t.Context(), "/registry/namespaces/"+metav1.NamespaceDefault)
	if err != nil {
		t.Fatalf("read the namespace from etcd: %v", err)
	}
	if len(resp.Kvs) != 1 || strings.HasPrefix(string(resp.Kvs[0].Value), "k8s:enc:") {
		t.Errorf("the namespace in etcd is %q, want one value that is not encrypted", resp.Kvs)
	}
	c.requireHSMOperations(t, before, 0)
}
