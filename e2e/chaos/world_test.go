package chaos

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kmstypes "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"
	"k8s.io/client-go/kubernetes"

	"kekd/e2e/internal/harness"
)

type ctx = context.Context

const (
	// ring is the key ring's label.
	ring = "k8s-kek"
	// provider is the plugin's name in the EncryptionConfiguration.
	provider = "kekd"
	// kekctlWithin bounds a run of kekctl.
	kekctlWithin = 2 * time.Minute
	// soon bounds what takes a second or two on an idle machine.
	soon = 30 * time.Second
	// callTimeout is kube-apiserver's for one call of the plugin.
	callTimeout = 3 * time.Second
	// lag is how long a key must have been out of use before kekctl takes it for
	// unused: kube-apiserver's poll of a minute, the refresh of one second, ten seconds
	// to spare, and here some more for a busy machine.
	lag = 80 * time.Second
)

// node is a machine of the control plane. Its kekd has one kube-apiserver, or none.
type node struct {
	name       string
	kekd       *harness.Kekd
	kms        *harness.KMS
	kekctlPath string
	kubeconfig string
	apiserver  *harness.APIServer
	kube       kubernetes.Interface
}

// world is a control plane on one token and one etcd.
type world struct {
	nodes []*node
	// token is the token as no kekd sees it, and never taken away.
	token   *harness.Token
	etcd    *clientv3.Client
	options harness.KekdOptions

	mu     sync.Mutex
	sealed []sealed

	// givenUp are the keys, by key_id, whose values may be lost.
	givenUp []string
}

// sealed is a value that a kekd has acknowledged.
type sealed struct {
	by        string
	plaintext []byte
	value     harness.Sealed
}

// newWorld starts kekds, the first of which have an API server each. Tokens of nodes are
// views of one token, each behind the module that does harm on command.
// The second node is prepared before its kekd runs for the first time.
func newWorld(t *testing.T, kekds, apiservers int, prepare ...func(*testing.T, *node)) *world {
	t.Helper()
	etcd := harness.StartEtcd(t)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd.Endpoint}, DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatalf("make the etcd client: %v", err)
	}
	t.Cleanup(func() { _ = client.Close() })
	w := &world{token: harness.NewToken(t), etcd: client, options: harness.KekdOptions{Audit: "continue", LogLevel: "info"}}
	for i := range kekds {
		n := &node{name: fmt.Sprintf("node %d", i), kekctlPath: harness.KekctlBinary(t)}
		n.kekd = harness.NewSibling(t, w.token.View(t).WithFaults(t), w.options)
		n.kekd.JumpClock(t, 0)
		if i == 1 {
			for _, f := range prepare {
				f(t, n)
			}
		}
		w.nodes = append(w.nodes, n)
	}
	w.nodes[0].kekd.CreateKey(t, 0)
	for i, n := range w.nodes {
		n.kekd.StartReady(t)
		n.kms = n.kekd.KMS(t)
		if i < apiservers {
			w.addAPIServer(t, etcd, n)
		}
	}
	w.describeCluster(t, etcd)
	return w
}

func (w *world) addAPIServer(t *testing.T, etcd *harness.Etcd, n *node) {
	t.Helper()
	config := harness.EncryptionConfig(t, provider, n.kekd.Socket, "secrets")
	if first := w.nodes[0]; first.apiserver != nil {
		n.apiserver = first.apiserver.Sibling(t, config)
	} else {
		n.apiserver = harness.NewAPIServer(t, etcd, config)
		for _, each := range w.nodes {
			each.kubeconfig = n.apiserver.Kubeconfig(t)
		}
	}
	n.apiserver.Start(t)
	n.apiserver.WaitStatus(t, "/readyz", http.StatusOK, 2*time.Minute)
	var err error
	if n.kube, err = kubernetes.NewForConfig(n.apiserver.RESTConfig()); err != nil {
		t.Fatalf("make the Kubernetes client: %v", err)
	}
}

// describeCluster tells every kekctl where the cluster is.
func (w *world) describeCluster(t *testing.T, etcd *harness.Etcd) {
	t.Helper()
	var nodes, servers []string
	for _, n := range w.nodes {
		nodes = append(nodes, n.kekd.URL)
		if n.apiserver != nil {
			servers = append(servers, n.apiserver.URL)
		}
	}
	w.options.Cluster = fmt.Sprintf(`{etcd: {endpoints: [%q]}, nodes: ["%s"], apiServers: ["%s"], resources: [secrets]}`,
		etcd.Endpoint, strings.Join(nodes, `", "`), strings.Join(servers, `", "`))
	for _, n := range w.nodes {
		n.kekd.Configure(t, w.options)
	}
}

// key is a KEK as kekctl lists it.
type key struct{ ID, KeyID, State string }

// keys lists the ring as a node sees it, oldest first.
func (n *node) keys(t testing.TB) []key {
	t.Helper()
	var listing struct{ Keys []key }
	n.json(t, &listing, "key", "list")
	return listing.Keys
}

// primary is the key that a node encrypts under.
func (n *node) primary(t testing.TB) key {
	t.Helper()
	for _, k := range n.keys(t) {
		if k.State == "primary" {
			return k
		}
	}
	t.Fatalf("%s has no primary: %+v", n.name, n.keys(t))
	return key{}
}

// create makes a key that activates later, and returns it.
func (n *node) create(t testing.TB, args ...string) key {
	t.Helper()
	var k key
	n.json(t, &k, append([]string{"key", "rotate", "--yes"}, args...)...)
	return k
}

// seal has a kekd encrypt a value, which must open from then on.
func (w *world) seal(c ctx, n *node) (string, error) {
	c, cancel := context.WithTimeout(c, callTimeout)
	defer cancel()
	plaintext := []byte(fmt.Sprintf("%s, %s", n.name, time.Now().Format(time.RFC3339Nano)))
	s, err := n.kms.Encrypt(c, plaintext)
	if err != nil {
		return "", err
	}
	w.mu.Lock()
	w.sealed = append(w.sealed, sealed{n.name, plaintext, s})
	w.mu.Unlock()
	return s.KeyID, nil
}

// ledger is all that was sealed so far.
func (w *world) ledger() []sealed {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.sealed)
}

// mustSeal requires that a node encrypts, and returns the key_id.
func (w *world) mustSeal(t testing.TB, n *node) string {
	t.Helper()
	id, err := w.seal(t.Context(), n)
	if err != nil {
		t.Fatalf("%s does not encrypt: %v", n.name, err)
	}
	return id
}

// awaitKey waits until a node encrypts under a key.
func (w *world) awaitKey(t testing.TB, n *node, keyID string) {
	t.Helper()
	harness.Eventually(t, soon, n.name+" encrypts under "+keyID, func(c ctx) error {
		got, err := w.seal(c, n)
		if err == nil && got != keyID {
			err = fmt.Errorf("it encrypts under %s", got)
		}
		return err
	})
}

// awaitState waits until a node's ring says so of a key.
func (n *node) awaitState(t testing.TB, keyID, want string) {
	t.Helper()
	harness.Eventually(t, soon, fmt.Sprintf("%s sees that %s is %s", n.name, keyID, want), func(c ctx) error {
		status, err := n.kekd.Status(c)
		if got := status.State(keyID); err == nil && got != want {
			err = fmt.Errorf("it says %s", got)
		}
		return err
	})
}

// opens decrypts a sealed value on a node.
func (n *node) opens(c ctx, s sealed) error {
	c, cancel := context.WithTimeout(c, callTimeout)
	defer cancel()
	got, err := n.kms.Decrypt(c, s.value)
	if err == nil && !bytes.Equal(got, s.plaintext) {
		err = errors.New("it decrypts to something else")
	}
	return err
}

// opensSoon is opens, asked again while the node is unavailable, as after a fault.
func (n *node) opensSoon(c ctx, s sealed) error {
	var err error
	for begun := time.Now(); time.Since(begun) < soon; {
		err = n.opens(c, s)
		if code := status.Code(err); code != codes.Unavailable && code != codes.DeadlineExceeded {
			break
		}
		select {
		case <-c.Done():
			return c.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
	return err
}

// requireAllOpen requires that every node opens everything that was sealed, but what is
// under the keys that were given up.
func (w *world) requireAllOpen(t testing.TB, givenUp ...string) {
	t.Helper()
	lost := map[string]int{}
	for _, n := range w.nodes {
		for _, s := range w.ledger() {
			if slices.Contains(givenUp, s.value.KeyID) {
				continue
			}
			if err := n.opensSoon(t.Context(), s); err != nil {
				if lost[s.value.KeyID]++; lost[s.value.KeyID] == 1 {
					t.Errorf("LOST: %s does not open what %s sealed under %s: %v", n.name, s.by, s.value.KeyID, err)
				}
			}
		}
	}
	if len(lost) > 0 {
		t.Errorf("of %d values these are lost, by key: %v\n%v", len(w.ledger()), lost, list(t, w.token))
	}
}

// writeSecret has an API server create a Secret, and returns the key_id in etcd.
func (w *world) writeSecret(c ctx, n *node, name string) (string, error) {
	_, err := n.kube.CoreV1().Secrets(metav1.NamespaceDefault).Create(c, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	resp, err := w.etcd.Get(c, "/registry/secrets/"+metav1.NamespaceDefault+"/"+name)
	if err != nil {
		return "", err
	}
	if len(resp.Kvs) != 1 {
		return "", fmt.Errorf("etcd holds %d values of the secret %s", len(resp.Kvs), name)
	}
	return keyIDOf(resp.Kvs[0].Value)
}

// keyIDOf reads the key_id off a value in etcd.
func keyIDOf(value []byte) (string, error) {
	text, ok := bytes.CutPrefix(value, []byte("k8s:enc:kms:v2:"+provider+":"))
	if !ok {
		return "", fmt.Errorf("the value begins with %.40q", value)
	}
	var o kmstypes.EncryptedObject
	err := proto.Unmarshal(text, &o)
	return o.KeyID, err
}

// requireReadable requires that a fresh API server reads every Secret.
func (w *world) requireReadable(t *testing.T) {
	t.Helper()
	n := w.nodes[0]
	n.apiserver.Kill(t)
	n.apiserver.Start(t)
	harness.Eventually(t, time.Minute, "a restarted API server reads every Secret", func(c ctx) error {
		_, err := n.kube.CoreV1().Secrets("").List(c, metav1.ListOptions{ResourceVersion: ""})
		return err
	})
	n.apiserver.WaitStatus(t, "/readyz", http.StatusOK, 2*time.Minute)
}

// clearSecrets removes all Secrets, so that etcd holds nothing under any key.
func (w *world) clearSecrets(t *testing.T) {
	t.Helper()
	if _, err := w.etcd.Delete(t.Context(), "/registry/secrets/", clientv3.WithPrefix()); err != nil {
		t.Fatalf("remove the Secrets: %v", err)
	}
}

// relabel changes a key's state with another tool than kekctl.
func (w *world) relabel(t *testing.T, id, label string) {
	t.Helper()
	onToken(t, w.token, tokenRequest{Op: "relabel", ID: id, NewLabel: label})
}

// due is the label of a key whose date to be purged has come.
func due() string {
	return ring + "/destroy-after-" + time.Now().UTC().AddDate(0, 0, -1).Format(time.DateOnly)
}

// idAt is a CKA_ID that activates at a time, as kekctl makes them: a format byte, Unix
// seconds and eight random bytes.
func idAt(at time.Time, tail byte) string {
	b := []byte{1}
	for i := range 8 {
		b = append(b, byte(uint64(at.Unix())>>(56-8*i)))
	}
	return hex.EncodeToString(append(b, tail, 1, 2, 3, 4, 5, 6, 7))
}
