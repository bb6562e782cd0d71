package inventory

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	kmstypes "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"

	"kekd/e2e/internal/harness"
)

const (
	oldKey = "k8s-kek/010000000069000000a0a1a2a3a4a5a6a7/a1b2c3"
	newKey = "k8s-kek/010000000069ffffffb0b1b2b3b4b5b6b7/d4e5f6"
)

// client connects to a store.
func client(t testing.TB, etcd *harness.Etcd) *clientv3.Client {
	t.Helper()
	cfg := clientv3.Config{Endpoints: []string{etcd.Endpoint}}
	if etcd.CAFile != "" {
		var err error
		files := transport.TLSInfo{TrustedCAFile: etcd.CAFile, CertFile: etcd.CertFile, KeyFile: etcd.KeyFile}
		if cfg.TLS, err = files.ClientConfig(); err != nil {
			t.Fatal(err)
		}
	}
	c, err := clientv3.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// object is what object number i is: every store of n objects holds the same.
func object(i int, random *rand.Rand) (key, value, resource string, s standing) {
	at := func(resource string) string { return fmt.Sprintf("/registry/%s/ns-%d/object-%07d", resource, i%97, i) }
	body := make([]byte, 1000+random.IntN(2000))
	for j := range body {
		body[j] = byte(random.Uint32())
	}
	if i%500 == 7 { // sealed, and then damaged
		return at("secrets"), sealed(newKey, body)[:200], "secrets", standing{"unparsable", "kekd", ""}
	}
	switch d := i % 20; {
	case d < 10:
		return at("secrets"), sealed(newKey, body), "secrets", standing{"kms-v2", "kekd", newKey}
	case d < 13:
		return at("secrets"), sealed(oldKey, body), "secrets", standing{"kms-v2", "kekd", oldKey}
	case d < 15:
		return at("example.com/widgets"), sealed(oldKey, body), "widgets.example.com", standing{"kms-v2", "kekd", oldKey}
	case d < 17:
		return at("configmaps"), "k8s\x00" + string(body), "configmaps", standing{Class: "unencrypted"}
	case d < 18:
		return at("configmaps"), "k8s:enc:aescbc:v1:key1:" + string(body), "configmaps", standing{Class: "other-provider", Provider: "aescbc:v1:key1"}
	}
	return at("events"), "k8s\x00" + string(body[:500]), "events", standing{Class: "unencrypted"}
}

// sealed is a value as kube-apiserver stores it.
func sealed(keyID string, body []byte) string {
	return stored(&kmstypes.EncryptedObject{
		EncryptedData:          body,
		KeyID:                  keyID,
		EncryptedDEKSource:     bytes.Repeat([]byte{7}, 178),
		EncryptedDEKSourceType: kmstypes.EncryptedDEKSourceType_HKDF_SHA256_XNONCE_AES_GCM_SEED,
	})
}

func stored(o *kmstypes.EncryptedObject) string {
	b, err := proto.Marshal(o)
	if err != nil {
		panic(err)
	}
	return "k8s:enc:kms:v2:kekd:" + string(b)
}

// fill writes the objects from one number up to another, and adds them to the
// counts.
func fill(t testing.TB, c *clientv3.Client, from, to int, counts map[string]map[standing]int) {
	t.Helper()
	const batch = 100 // etcd takes 128 operations and 1.5 MiB
	random := rand.New(rand.NewPCG(uint64(from), uint64(to)))
	writers, ctx := errgroup.WithContext(t.Context())
	writers.SetLimit(4)
	for from < to {
		var puts []clientv3.Op
		for ; from < to && len(puts) < batch; from++ {
			key, value, resource, s := object(from, random)
			puts = append(puts, clientv3.OpPut(key, value))
			count(counts, resource, s)
		}
		writers.Go(func() error { return commit(ctx, c, puts...) })
	}
	if err := writers.Wait(); err != nil {
		t.Fatalf("fill etcd: %v", err)
	}
}

func commit(ctx context.Context, c *clientv3.Client, puts ...clientv3.Op) error {
	_, err := c.Txn(ctx).Then(puts...).Commit()
	return err
}

func count(counts map[string]map[standing]int, resource string, s standing) {
	if counts[resource] == nil {
		counts[resource] = map[standing]int{}
	}
	counts[resource][s]++
}

// newStore fills a store with a cluster's namespace.
func newStore(t testing.TB, etcd *harness.Etcd) (*clientv3.Client, map[string]map[standing]int) {
	t.Helper()
	c := client(t, etcd)
	if _, err := c.Put(t.Context(), "/registry/namespaces/default", "k8s\x00"); err != nil {
		t.Fatal(err)
	}
	counts := map[string]map[standing]int{}
	count(counts, "namespaces", standing{Class: "unencrypted"})
	return c, counts
}
