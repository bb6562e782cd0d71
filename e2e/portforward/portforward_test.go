// Package portforward shows that kekctl reaches what listens on a node's loopback
// address through a real kube-apiserver: the pods of kekd and of etcd.
package portforward

import (
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kekd/e2e/internal/harness"
)

const kekctlWithin = 5 * time.Minute

func TestPortForward(t *testing.T) {
	token := harness.NewToken(t)
	kekd := harness.NewKekd(t, token, harness.KekdOptions{})
	kekd.StartReady(t)
	etcd := harness.StartEtcd(t)
	apiserver := harness.NewAPIServer(t, etcd, harness.EncryptionConfig(t, "kekd", kekd.Socket, "secrets"))
	apiserver.StartReady(t)
	kube, err := kubernetes.NewForConfig(apiserver.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	// Nobody else makes the account that every pod is given.
	if _, err := kube.CoreV1().ServiceAccounts(metav1.NamespaceSystem).Create(t.Context(),
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		t.Fatalf("create the service account: %v", err)
	}
	if _, err := kube.CoreV1().Secrets(metav1.NamespaceSystem).Create(t.Context(),
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}}, metav1.CreateOptions{}); err != nil {
		t.Fatalf("create a secret: %v", err)
	}
	node := startKubelet(t, kube)
	runPod(t, kube, "etcd-1", map[string]string{"component": "etcd"})
	runPod(t, kube, "kekd-1", map[string]string{"app.kubernetes.io/name": "kekd"})
	kubeconfig := apiserver.Kubeconfig(t)

	t.Run("etcd", func(t *testing.T) {
		c := kekd.Kekctl(t, "inventory", "--kubeconfig", kubeconfig, "--etcd-via-cluster", "--etcd-endpoints", etcd.Endpoint)
		if code := c.Wait(t, kekctlWithin); code != 0 || !strings.Contains(c.Stdout(t), kekd.Ring+"/") {
			t.Errorf("kekctl inventory ended with %d, and printed\n%s%s", code, c.Stdout(t), c.Stderr(t))
		}
		if port := portOf(t, etcd.Endpoint); !node.saw("etcd-1", port) {
			t.Errorf("no connection to port %s of the pod of etcd", port)
		}
	})
	t.Run("nothing listens", func(t *testing.T) {
		c := kekd.Kekctl(t, "inventory", "--kubeconfig", kubeconfig, "--etcd-via-cluster", "--etcd-endpoints", "http://127.0.0.1:1")
		if code := c.Wait(t, kekctlWithin); code != 1 {
			t.Errorf("kekctl inventory ended with %d", code)
		}
		const want = "forward port 1 of pod kube-system/etcd-1 on node node-1: "
		if !strings.Contains(c.Stderr(t), want) {
			t.Errorf("kekctl inventory said %q, want %q in it", c.Stderr(t), want)
		}
	})
	t.Run("kekd", func(t *testing.T) {
		c := kekd.Kekctl(t, "rotate", "--yes", "--activate-in", "20s", "--kubeconfig", kubeconfig, "--etcd-endpoints", etcd.Endpoint)
		const want = nodeName + " encrypts under the key"
		if code := c.Wait(t, kekctlWithin); code != 0 || !strings.Contains(c.Stderr(t), want) {
			t.Errorf("kekctl rotate ended with %d, and said %q, want %q in it", code, c.Stderr(t), want)
		}
		if port := portOf(t, kekd.URL); !node.saw("kekd-1", port) {
			t.Errorf("no connection to port %s of the pod of kekd", port)
		}
	})
	// Plain SPDY, the way of before 1.31, was not needed. A request that kekctl no longer
	// waits for may not reach the node.
	if n := apiserver.Metrics(t).Sum("apiserver_stream_tunnel_requests_total", nil); int(n) < node.connections() {
		t.Errorf("%v of %d connections came by websocket", n, node.connections())
	}
}

func portOf(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.Port()
}
