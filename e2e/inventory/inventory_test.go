package inventory

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"
	kmstypes "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"

	"kekd/e2e/internal/harness"
)

// TestAtSize: the counts are right, and ten times the objects need no more memory.
func TestAtSize(t *testing.T) {
	etcd := harness.StartEtcd(t)
	c, counts := newStore(t, etcd)
	var small, large usage
	for _, size := range []struct {
		from, to int
		used     *usage
	}{
		{1, 10_000, &small},
		{10_000, 100_000, &large},
	} {
		fill(t, c, size.from, size.to, counts)
		var r report
		r, *size.used = mustInventory(t, "--etcd-endpoints", etcd.Endpoint)
		if r.Objects != size.to {
			t.Errorf("%d objects, want %d", r.Objects, size.to)
		}
		if diff := cmp.Diff(counts, r.counts()); diff != "" {
			t.Errorf("counts at %d (-want +got):\n%s", size.to, diff)
		}
		if len(r.Unparsable) != 20 {
			t.Errorf("%d samples of unparsable objects, want 20", len(r.Unparsable))
		}
		if r.Compacted != 0 {
			t.Errorf("compacted %d times, want 0", r.Compacted)
		}
		t.Logf("%d objects: %.2f s of reading, %v in all, %v of CPU, peak %d MiB",
			r.Objects, r.Seconds, size.used.wall.Round(time.Millisecond), size.used.cpu.Round(time.Millisecond), size.used.peakKiB>>10)
	}
	const slack = 8 << 10 // KiB: the garbage collector's mood
	if large.peakKiB > small.peakKiB*3/2+slack {
		t.Errorf("the peak grew from %d to %d KiB with ten times the objects", small.peakKiB, large.peakKiB)
	}
}

// TestCompacted: etcd drops the revision again and again, as the apiserver has it
// do, and no object is missed or read twice.
func TestCompacted(t *testing.T) {
	etcd := harness.StartEtcd(t)
	c, counts := newStore(t, etcd)
	fill(t, c, 1, 20_000, counts)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- compactOften(ctx, c) }()
	r, _ := mustInventory(t, "--etcd-endpoints", etcd.Endpoint)
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("compact etcd: %v", err)
	}
	if r.Compacted == 0 {
		t.Error("no compaction was met")
	}
	if diff := cmp.Diff(counts, r.counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	t.Logf("met %d compactions", r.Compacted)
}

func compactOften(ctx context.Context, c *clientv3.Client) error {
	for {
		put, err := c.Put(ctx, "compact_rev_key", "x")
		if err != nil {
			return err
		}
		if _, err := c.Compact(ctx, put.Header.Revision); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
			return err
		}
	}
}

// TestAgreesWithKubeAPIServer: what kekctl finds parsable is what kube-apiserver's
// own check takes.
func TestAgreesWithKubeAPIServer(t *testing.T) {
	etcd := harness.StartEtcd(t)
	c, _ := newStore(t, etcd)
	want := map[string]string{"namespaces": "unencrypted"}
	for name, value := range edges() {
		want[name] = "kms-v2"
		if !readable(value) {
			want[name] = "unparsable"
		}
		if _, err := c.Put(t.Context(), "/registry/"+name+"/x", value); err != nil {
			t.Fatal(err)
		}
	}
	r, _ := mustInventory(t, "--etcd-endpoints", etcd.Endpoint)
	got := map[string]string{}
	for resource, counts := range r.counts() {
		for s := range counts {
			got[resource] += s.Class
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-kube-apiserver +kekctl:\n%s", diff)
	}
}

// edges are values at the borders of what is valid.
func edges() map[string]string {
	const whole = 1 << 10
	annotated := func(name string, size int) func(*kmstypes.EncryptedObject) {
		return func(o *kmstypes.EncryptedObject) { o.Annotations = map[string][]byte{name: make([]byte, size)} }
	}
	edges := map[string]string{"garbage": "k8s:enc:kms:v2:kekd:garbage", "nothing": "k8s:enc:kms:v2:kekd:"}
	for name, change := range map[string]func(*kmstypes.EncryptedObject){
		"unchanged":          func(*kmstypes.EncryptedObject) {},
		"data-key":           func(o *kmstypes.EncryptedObject) { o.EncryptedDEKSourceType = 0 },
		"type-2":             func(o *kmstypes.EncryptedObject) { o.EncryptedDEKSourceType = 2 },
		"type-negative":      func(o *kmstypes.EncryptedObject) { o.EncryptedDEKSourceType = -1 },
		"no-data":            func(o *kmstypes.EncryptedObject) { o.EncryptedData = nil },
		"no-key-id":          func(o *kmstypes.EncryptedObject) { o.KeyID = "" },
		"key-id-at-limit":    func(o *kmstypes.EncryptedObject) { o.KeyID = strings.Repeat("k", whole) },
		"key-id-over-limit":  func(o *kmstypes.EncryptedObject) { o.KeyID = strings.Repeat("k", whole+1) },
		"no-source":          func(o *kmstypes.EncryptedObject) { o.EncryptedDEKSource = nil },
		"source-at-limit":    func(o *kmstypes.EncryptedObject) { o.EncryptedDEKSource = make([]byte, whole) },
		"source-over-limit":  func(o *kmstypes.EncryptedObject) { o.EncryptedDEKSource = make([]byte, whole+1) },
		"annotation":         annotated("a.example.com", 10),
		"annotation-empty":   annotated("a.example.com", 0),
		"annotation-no-name": annotated("", 1),
		"annotation-label":   annotated("example", 1),
		"annotation-dot":     annotated("example.com.", 1),
		"annotation-upper":   annotated("Example.com", 1),
		"annotation-limit":   annotated("a.b", 32*whole-3),
		"annotation-over":    annotated("a.b", 32*whole-2),
	} {
		o := &kmstypes.EncryptedObject{
			EncryptedData:          []byte("data"),
			KeyID:                  newKey,
			EncryptedDEKSource:     []byte("source"),
			EncryptedDEKSourceType: kmstypes.EncryptedDEKSourceType_HKDF_SHA256_XNONCE_AES_GCM_SEED,
		}
		change(o)
		edges[name] = stored(o)
	}
	return edges
}

// readable is what kube-apiserver does before it asks its plugin.
func readable(value string) bool {
	o := new(kmstypes.EncryptedObject)
	data, ok := bytes.CutPrefix([]byte(value), []byte("k8s:enc:kms:v2:kekd:"))
	return ok && proto.Unmarshal(data, o) == nil && kmsv2.ValidateEncryptedObject(o) == nil
}

// TestOverTLS: with client certificates as kubeadm has them, and what is said when
// something is wrong with them.
func TestOverTLS(t *testing.T) {
	etcd, other := harness.StartSecureEtcd(t), harness.StartSecureEtcd(t)
	args := func(endpoint, ca, cert, key string) []string {
		return []string{"--etcd-endpoints", endpoint, "--etcd-cacert", ca, "--etcd-cert", cert, "--etcd-key", key}
	}
	missing := filepath.Join(t.TempDir(), "missing.crt")
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"an empty store":      {args(other.Endpoint, other.CAFile, other.CertFile, other.KeyFile), "has no namespaces below /registry/"},
		"another authority":   {args(etcd.Endpoint, other.CAFile, etcd.CertFile, etcd.KeyFile), "certificate signed by unknown authority"},
		"another certificate": {args(etcd.Endpoint, etcd.CAFile, other.CertFile, other.KeyFile), "takes the client certificate"},
		"no certificate":      {args(etcd.Endpoint, etcd.CAFile, "", ""), "takes the client certificate"},
		"no TLS":              {args(strings.Replace(etcd.Endpoint, "https", "http", 1), "", "", ""), "read etcd at http://"},
		"no CA file":          {args(etcd.Endpoint, missing, etcd.CertFile, etcd.KeyFile), "--etcd-cacert: open " + missing},
		"no certificate file": {args(etcd.Endpoint, etcd.CAFile, missing, etcd.KeyFile), "--etcd-cert, --etcd-key: open " + missing},
		"no key":              {args(etcd.Endpoint, etcd.CAFile, etcd.CertFile, ""), "--etcd-cert, --etcd-key: open : no such file"},
		"nobody there":        {args("https://127.0.0.1:1", etcd.CAFile, etcd.CertFile, etcd.KeyFile), "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stderr, used := mustFail(t, c.args...)
			if !strings.Contains(stderr, c.want) {
				t.Errorf("got %q, want %q in it", stderr, c.want)
			}
			t.Logf("after %v: %s", used.wall.Round(time.Millisecond), strings.TrimSpace(stderr))
		})
	}
	t.Run("all well", func(t *testing.T) {
		c, counts := newStore(t, etcd)
		fill(t, c, 1, 500, counts)
		r, _ := mustInventory(t, args(etcd.Endpoint, etcd.CAFile, etcd.CertFile, etcd.KeyFile)...)
		if diff := cmp.Diff(counts, r.counts()); diff != "" {
			t.Errorf("counts (-want +got):\n%s", diff)
		}
	})
}
