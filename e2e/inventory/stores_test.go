package inventory

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/google/go-cmp/cmp"

	"kekd/e2e/internal/harness"
)

// TestRestart: etcd is killed while it is read, and comes back: each object is
// counted once.
func TestRestart(t *testing.T) {
	etcd := harness.StartEtcd(t)
	c, counts := newStore(t, etcd)
	fill(t, c, 1, 50_000, counts)
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		time.Sleep(700 * time.Millisecond) // reading takes longer
		etcd.Kill(t)
		time.Sleep(3 * time.Second) // longer than etcd's client tries by itself
		etcd.Start(t)
	}()
	r, used := mustInventory(t, "--etcd-endpoints", etcd.Endpoint)
	<-killed
	if diff := cmp.Diff(counts, r.counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	if r.Resumed == 0 {
		t.Errorf("the inventory met no outage; it took %v", used.wall)
	}
}

// TestOverrides: kube-apiserver keeps a resource in a second etcd.
func TestOverrides(t *testing.T) {
	own, other := harness.StartEtcd(t), harness.StartEtcd(t)
	c, _ := newStore(t, own)
	if _, err := c.Put(t.Context(), "/registry/secrets/a/1", sealed(newKey, []byte("x"))); err != nil {
		t.Fatal(err)
	}
	if _, err := client(t, other).Put(t.Context(), "/registry/configmaps/a/1", sealed(oldKey, []byte("x"))); err != nil {
		t.Fatal(err)
	}
	r, _ := mustInventory(t, "--etcd-endpoints", own.Endpoint, "--etcd-servers-overrides", "/configmaps#"+other.Endpoint)
	want := map[string]map[standing]int{
		"namespaces": {{Class: "unencrypted"}: 1},
		"secrets":    {{"kms-v2", "kekd", newKey}: 1},
		"configmaps": {{"kms-v2", "kekd", oldKey}: 1},
	}
	if diff := cmp.Diff(want, r.counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	if len(r.Stores) != 2 || r.Stores[1].Endpoint != other.Endpoint {
		t.Errorf("stores: %+v", r.Stores)
	}
}

// TestVerify: a real kube-apiserver names the objects that it cannot decrypt.
func TestVerify(t *testing.T) {
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
	for _, name := range []string{"good", "flipped", "cut"} {
		if _, err := kube.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"inventory", "--verify", "--kubeconfig", apiserver.Kubeconfig(t), "--etcd-endpoints", etcd.Endpoint, "-o", "json"}
	verify := func(code int, args ...string) (v struct {
		Read, Failed int
		Failures     []struct{ Key, Reason string }
	}) {
		t.Helper()
		c := kekd.Kekctl(t, args...)
		if got := c.Wait(t, 5*time.Minute); got != code {
			t.Fatalf("kekctl ended with %d, want %d\n%s%s", got, code, c.Stdout(t), c.Stderr(t))
		}
		if err := json.Unmarshal([]byte(c.Stdout(t)), &v); err != nil {
			t.Fatalf("%v\n%s", err, c.Stdout(t))
		}
		return v
	}
	if v := verify(0, args...); v.Failed != 0 || v.Read < 3 {
		t.Errorf("with nothing damaged: %+v", v)
	}
	c := client(t, etcd)
	for name, damage := range map[string]func([]byte) []byte{
		"flipped": func(b []byte) []byte { b[len(b)/3] ^= 1; return b },
		"cut":     func(b []byte) []byte { return b[:len(b)/2] },
	} {
		key := "/registry/secrets/default/" + name
		got, err := c.Get(t.Context(), key)
		if err != nil || len(got.Kvs) != 1 {
			t.Fatalf("read %s: %v", key, err)
		}
		if _, err := c.Put(t.Context(), key, string(damage(got.Kvs[0].Value))); err != nil {
			t.Fatal(err)
		}
	}
	list := filepath.Join(t.TempDir(), "failures")
	v := verify(1, append(args, "--failures", list)...)
	if v.Failed != 2 || len(v.Failures) != 2 {
		t.Errorf("with two damaged: %+v", v)
	}
	b, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"flipped", "cut"} {
		if !strings.Contains(string(b), `"key":"/registry/secrets/default/`+name+`"`) {
			t.Errorf("the list of failures lacks %s:\n%s", name, b)
		}
	}
	t.Logf("failures:\n%s", b)
}
