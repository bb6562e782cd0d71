// Package cluster shows kekd at work under a real kube-apiserver with a real
// etcd, through what an operator sees: objects, the bytes in etcd, health
// endpoints and metrics.
package cluster

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kekd/e2e/internal/harness"
)

const (
	// provider is the plugin's name in the EncryptionConfiguration.
	provider = "kekd"
	// storedPrefix is what every encrypted value in etcd starts with.
	storedPrefix = "k8s:enc:kms:v2:" + provider + ":"
	// kmsReady is the apiserver's own check of the plugin.
	kmsReady = "/readyz/kms-providers"
	// kmsHealthyWithin bounds the time until the apiserver sees a plugin that is
	// healthy again: gRPC's backoff has grown to half a minute after an outage of
	// one minute, and the check itself is repeated every 3 to 20 seconds.
	kmsHealthyWithin = 2 * time.Minute
	// kmsUnhealthyWithin bounds the time until it sees an unhealthy one: a good
	// answer counts for 20 seconds.
	kmsUnhealthyWithin = time.Minute
)

// TestCluster runs all cases on one cluster, since a start of kube-apiserver is
// the dearest part. Every case stands alone: it makes its own objects, and a
// cluster that the case before left broken is put in order first.
func TestCluster(t *testing.T) {
	c := newCluster(t)
	cases := []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"what etcd holds is encrypted", testStoredEncrypted},
		{"reads back after an apiserver restart", testAPIServerRestart},
		{"reads back after kekd was killed", testKekdKilled},
		{"reads back after both restarted", testBothRestart},
		{"kekd starts after the apiserver", testKekdStartsLast},
		{"kekd is away for a minute", testKekdAwayForAMinute},
		{"readyz follows the health of kekd", testReadyzFollows},
		{"damaged objects fail alone", testDamagedObjects},
		{"a thousand secrets", testThousandSecrets},
		{"a list without its KEK does not hammer the token", testListWithoutKEK},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c.repair(t)
			start := time.Now()
			tc.run(t, c)
			t.Logf("case took %v", time.Since(start).Round(time.Millisecond))
		})
	}
}

// cluster is everything that the cases work with.
type cluster struct {
	token     *harness.Token
	kekd      *harness.Kekd
	apiserver *harness.APIServer
	kube      kubernetes.Interface
	etcd      *clientv3.Client

	// reconfigured says that kekd does not run with the default options.
	reconfigured bool
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{token: harness.NewToken(t)}
	c.kekd = harness.NewKekd(t, c.token, harness.KekdOptions{})
	etcd := harness.StartEtcd(t)
	config := harness.EncryptionConfig(t, provider, c.kekd.Socket, "secrets", "configmaps")
	c.apiserver = harness.NewAPIServer(t, etcd, config)

	var err error
	c.etcd, err = clientv3.New(clientv3.Config{Endpoints: []string{etcd.Endpoint}, DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatalf("make the etcd client: %v", err)
	}
	t.Cleanup(func() { _ = c.etcd.Close() })
	c.kube, err = kubernetes.NewForConfig(c.apiserver.RESTConfig())
	if err != nil {
		t.Fatalf("make the Kubernetes client: %v", err)
	}
	return c
}

// repair brings everything up with the default options, whatever the state.
func (c *cluster) repair(t *testing.T) {
	t.Helper()
	if c.token.IsAway() {
		c.token.PutBack(t)
	}
	if c.reconfigured {
		c.configure(t, harness.KekdOptions{})
		c.reconfigured = false
	}
	if !c.kekd.Running() {
		c.kekd.Start(t)
	}
	c.kekd.WaitReady(t, 30*time.Second)
	if !c.apiserver.Running() {
		took := c.apiserver.Start(t)
		t.Logf("kube-apiserver answered after %v", took.Round(time.Millisecond))
	}
	c.apiserver.WaitStatus(t, "/readyz", http.StatusOK, kmsHealthyWithin)
}

// configure restarts kekd with other options.
func (c *cluster) configure(t *testing.T, options harness.KekdOptions) {
	t.Helper()
	c.reconfigured = true
	c.kekd.Configure(t, options)
	if c.kekd.Running() {
		c.kekd.Stop(t)
	}
	c.kekd.StartReady(t)
}

// plaintext is what a case stores under a name; etcd must not hold it.
func plaintext(name string) string { return "plaintext of " + name }

// createSecret stores a Secret in the namespace default.
func (c *cluster) createSecret(ctx context.Context, name string) error {
	_, err := c.kube.CoreV1().Secrets(metav1.NamespaceDefault).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		StringData: map[string]string{"value": plaintext(name)},
	}, metav1.CreateOptions{})
	return err
}

// checkSecret reads a Secret from etcd, past the apiserver's watch cache, and
// compares its value.
func (c *cluster) checkSecret(ctx context.Context, name string) error {
	s, err := c.kube.CoreV1().Secrets(metav1.NamespaceDefault).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if got := string(s.Data["value"]); got != plaintext(name) {
		return fmt.Errorf("secret %s holds %q, want %q", name, got, plaintext(name))
	}
	return nil
}

func (c *cluster) mustCreateSecret(t *testing.T, name string) {
	t.Helper()
	if err := c.createSecret(t.Context(), name); err != nil {
		t.Fatalf("create secret %s: %v", name, err)
	}
}

func (c *cluster) mustReadSecret(t *testing.T, name string) {
	t.Helper()
	if err := c.checkSecret(t.Context(), name); err != nil {
		t.Fatalf("read secret %s: %v", name, err)
	}
}

// decryptCalls is how often the apiserver has asked the plugin to decrypt since
// it started.
func (c *cluster) decryptCalls(t *testing.T) float64 {
	t.Helper()
	return c.apiserver.Metrics(t).Sum("apiserver_envelope_encryption_kms_operations_latency_seconds",
		map[string]string{"provider_name": provider, "method_name": "/v2.KeyManagementService/Decrypt"})
}
