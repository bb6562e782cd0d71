// Package rotation takes clusters of one and of two nodes through the life of
// their KEKs: rotation under load, interrupted, and with a node that cannot take
// part; destruction and what guards it; revocation. Everything is done by kekctl and
// seen from outside: at the Kubernetes API, at kekd's socket, and in etcd's bytes.
package rotation

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kekd/e2e/internal/harness"
)

const (
	// provider is the plugin's name in the EncryptionConfiguration.
	provider = "kekd"
	// kmsReady is the apiserver's own check of the plugin.
	kmsReady = "/readyz/kms-providers"
	// kmsHealthyWithin bounds the time until the apiserver sees a plugin that is
	// healthy again: gRPC's backoff grows to two minutes.
	kmsHealthyWithin = 2 * time.Minute
	// takenUpWithin bounds the time until the apiserver writes under a key that kekd
	// has published: a good Status counts for 20 seconds.
	takenUpWithin = time.Minute
	// kekctlWithin bounds a run of kekctl, a whole rotation included.
	kekctlWithin = 3 * time.Minute
)

// TestOneNode runs its cases on one cluster, since a start of kube-apiserver is
// expensive. Every case makes its own objects. Most of the time goes into waits until no
// witness can be behind, so the clusters of all tests run at the same time.
func TestOneNode(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.run(t, []testCase{
		{"the whole journey under load", testWholeJourney},
		{"step by step under load, by migration", testMigration},
		{"a timer rotates when the primary is due", testIfDue},
		{"the token is lost and there is no backup", testTokenLost},
	})
}

// TestRefusedAndInterrupted: rotations that end early, and changes that are refused.
func TestRefusedAndInterrupted(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.run(t, []testCase{
		{"interrupted again and again", testInterrupted},
		{"killed in each step", testInterruptedAtEachStep},
		{"nothing is begun that cannot be finished", testNothingBegun},
		{"a key that is needed is not destroyed", testGuards},
	})
}

// TestTwoNodes: two kube-apiservers with a kekd each on one etcd and one token.
func TestTwoNodes(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	c.run(t, []testCase{
		{"clocks two seconds apart", testClocksApart},
		{"a kekd is stopped at the activation", testStoppedAtActivation},
		{"a kekd cannot reach the token at the activation", testCutOffAtActivation},
		{"a node misses the new key", testNodeMissing},
		{"a revoked key is refused everywhere", testRevoke},
	})
}

type testCase struct {
	name string
	run  func(*testing.T, *cluster)
}

// node is one machine of the control plane.
type node struct {
	kekd      *harness.Kekd
	apiserver *harness.APIServer
	kube      kubernetes.Interface

	// reconfigured says that kekd does not run with the default options and clock.
	reconfigured bool
}

// cluster is everything that the cases work with.
type cluster struct {
	nodes []*node
	etcd  *clientv3.Client

	etcdFlags, kubeFlags, nodeFlags []string
}

func newCluster(t *testing.T, nodes int) *cluster {
	t.Helper()
	etcd := harness.StartEtcd(t)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd.Endpoint}, DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatalf("make the etcd client: %v", err)
	}
	t.Cleanup(func() { _ = client.Close() })
	token := harness.NewToken(t)
	c := &cluster{etcd: client, etcdFlags: []string{"--etcd-endpoints", etcd.Endpoint}}
	for i := range nodes {
		n := new(node)
		if i == 0 {
			n.kekd = harness.NewKekd(t, token, harness.KekdOptions{})
		} else {
			n.kekd = harness.NewSibling(t, token.View(t), harness.KekdOptions{})
		}
		config := harness.EncryptionConfig(t, provider, n.kekd.Socket, "secrets", "configmaps")
		if i == 0 {
			n.apiserver = harness.NewAPIServer(t, etcd, config)
			c.kubeFlags = []string{"--kubeconfig", n.apiserver.Kubeconfig(t)}
		} else {
			n.apiserver = c.nodes[0].apiserver.Sibling(t, config)
		}
		if n.kube, err = kubernetes.NewForConfig(n.apiserver.RESTConfig()); err != nil {
			t.Fatalf("make the Kubernetes client: %v", err)
		}
		c.kubeFlags = append(c.kubeFlags, "--apiserver", n.apiserver.URL)
		c.nodeFlags = append(c.nodeFlags, "--node", n.kekd.URL)
		c.nodes = append(c.nodes, n)
	}
	return c
}

func (c *cluster) run(t *testing.T, cases []testCase) {
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c.repair(t)
			start := time.Now()
			tc.run(t, c)
			t.Logf("case took %v", time.Since(start).Round(time.Millisecond))
		})
	}
}

// repair brings everything up with the default options and without objects,
// whatever the case before left behind.
func (c *cluster) repair(t *testing.T) {
	t.Helper()
	for _, n := range c.nodes {
		if n.kekd.Token.IsAway() {
			n.kekd.Token.PutBack(t)
		}
		if n.reconfigured {
			n.configure(t, harness.KekdOptions{}, 0)
			n.reconfigured = false
		}
		if !n.kekd.Running() {
			n.kekd.Start(t)
		}
		n.kekd.WaitReady(t, 30*time.Second)
		n.awaitSettled(t)
		if !n.apiserver.Running() {
			n.apiserver.Start(t)
		}
		n.apiserver.WaitStatus(t, "/readyz", http.StatusOK, kmsHealthyWithin)
	}
	api := c.nodes[0].kube.CoreV1()
	for what, deleteAll := range map[string]func() error{
		"secrets": func() error {
			return api.Secrets(metav1.NamespaceDefault).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{})
		},
		"configmaps": func() error {
			return api.ConfigMaps(metav1.NamespaceDefault).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{})
		},
	} {
		if err := deleteAll(); err != nil {
			t.Fatalf("delete the %s of the case before: %v", what, err)
		}
	}
}

// awaitSettled waits until no key is pending that the case before has left.
func (n *node) awaitSettled(t *testing.T) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, "no key is pending", func(ctx context.Context) error {
		status, err := n.kekd.Status(ctx)
		for _, k := range status.KeyRing.Keys {
			if k.State == "pending" {
				err = fmt.Errorf("%s is", k.KeyID)
			}
		}
		return err
	})
}

// configure restarts kekd with other options and another clock.
func (n *node) configure(t *testing.T, options harness.KekdOptions, ahead time.Duration) {
	t.Helper()
	n.reconfigured = true
	n.kekd.Configure(t, options)
	n.kekd.SetClock(t, ahead)
	if n.kekd.Running() {
		n.kekd.Stop(t)
	}
	n.kekd.StartReady(t)
}

// restart ends a node's apiserver and kekd by SIGKILL and starts them: nothing
// that they had in memory is left.
func (n *node) restart(t *testing.T) {
	t.Helper()
	n.apiserver.Kill(t)
	n.kekd.Kill(t)
	n.kekd.StartReady(t)
	n.apiserver.StartReady(t)
}

// kekctl runs kekctl on the first node to its end and requires the exit code.
func (c *cluster) kekctl(t *testing.T, want int, args ...string) *harness.Kekctl {
	t.Helper()
	start := time.Now()
	k := c.nodes[0].kekd.Kekctl(t, args...)
	code := k.Wait(t, kekctlWithin)
	if took := time.Since(start); took > 10*time.Second {
		t.Logf("kekctl %s took %v", strings.Join(args[:min(2, len(args))], " "), took.Round(100*time.Millisecond))
	}
	if code != want {
		t.Fatalf("kekctl %q ends with %d, want %d\n%s%s", args, code, want, k.Stdout(t), k.Stderr(t))
	}
	return k
}

// kekctlJSON runs kekctl with -o json, requires that it succeeds, and decodes what
// it prints.
func (c *cluster) kekctlJSON(t *testing.T, out any, args ...string) {
	t.Helper()
	k := c.kekctl(t, 0, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(k.Stdout(t)), out); err != nil {
		t.Fatalf("kekctl %q: %v in %s", args, err, k.Stdout(t))
	}
}

// join puts the arguments of a command together.
func join(args []string, more ...[]string) []string {
	for _, m := range more {
		args = append(args, m...)
	}
	return args
}

// key is one of the ring.
type key struct{ ID, KeyID, State string }

// ring lists the keys, the oldest first.
func (c *cluster) ring(t *testing.T) []key {
	t.Helper()
	var listing struct{ Keys []key }
	c.kekctlJSON(t, &listing, "key", "list")
	return listing.Keys
}

// requireKey requires that the ring has exactly one key in the state.
func (c *cluster) requireKey(t *testing.T, state string) key {
	t.Helper()
	var found []key
	ring := c.ring(t)
	for _, k := range ring {
		if k.State == state {
			found = append(found, k)
		}
	}
	if len(found) != 1 {
		t.Fatalf("the ring is %+v, want one %s key", ring, state)
	}
	return found[0]
}

// requireState requires the state of a key; "gone" when the ring has no such key.
func (c *cluster) requireState(t *testing.T, id, want string) {
	t.Helper()
	state := "gone"
	for _, k := range c.ring(t) {
		if k.ID == id {
			state = k.State
		}
	}
	if state != want {
		t.Fatalf("key %s is %s, want %s", id, state, want)
	}
}
