package cluster

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kmstypes "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"

	"kekd/e2e/internal/harness"
)

// damages are ways to spoil a stored object. Each gets a copy that it may write to.
var damages = []struct {
	name  string
	spoil func(t *testing.T, stored []byte) []byte
}{
	{"data flipped", edit(func(o *kmstypes.EncryptedObject) { flip(o.EncryptedData, 0.5) })},
	{"wrapped seed flipped at 0", edit(func(o *kmstypes.EncryptedObject) { flip(o.EncryptedDEKSource, 0) })},
	{"wrapped seed flipped at 25%", edit(func(o *kmstypes.EncryptedObject) { flip(o.EncryptedDEKSource, 0.25) })},
	{"wrapped seed flipped at 50%", edit(func(o *kmstypes.EncryptedObject) { flip(o.EncryptedDEKSource, 0.5) })},
	{"wrapped seed flipped at 75%", edit(func(o *kmstypes.EncryptedObject) { flip(o.EncryptedDEKSource, 0.75) })},
	{"wrapped seed flipped at the end", edit(func(o *kmstypes.EncryptedObject) { flip(o.EncryptedDEKSource, 1) })},
	{"wrapped seed cut", edit(func(o *kmstypes.EncryptedObject) {
		o.EncryptedDEKSource = o.EncryptedDEKSource[:len(o.EncryptedDEKSource)/2]
	})},
	{"wrapped seed foreign", edit(func(o *kmstypes.EncryptedObject) {
		o.EncryptedDEKSource = bytes.Repeat([]byte{0x2a}, 60)
	})},
	{"key_id foreign", edit(func(o *kmstypes.EncryptedObject) { o.KeyID = "another-plugin/1" })},
	{"value cut", func(_ *testing.T, stored []byte) []byte { return stored[:len(stored)*3/4] }},
}

// edit changes the parts of a stored value that the apiserver made of it.
func edit(change func(*kmstypes.EncryptedObject)) func(*testing.T, []byte) []byte {
	return func(t *testing.T, stored []byte) []byte {
		t.Helper()
		var o kmstypes.EncryptedObject
		if err := proto.Unmarshal(stored[len(storedPrefix):], &o); err != nil {
			t.Fatalf("read the stored value: %v", err)
		}
		change(&o)
		b, err := proto.Marshal(&o)
		if err != nil {
			t.Fatalf("write the stored value: %v", err)
		}
		return append([]byte(storedPrefix), b...)
	}
}

// flip changes one bit of the byte at a part of the length.
func flip(b []byte, part float64) { b[int(part*float64(len(b)-1))] ^= 0x10 }

// testDamagedObjects: each damaged object fails by itself, however often it is
// read; its neighbours and kekd's health do not suffer.
func testDamagedObjects(t *testing.T, c *cluster) {
	const neighbour = "undamaged"
	c.mustCreateSecret(t, neighbour)
	names := make([]string, len(damages))
	good := make([][]byte, len(damages))
	for i := range damages {
		names[i] = fmt.Sprintf("damaged-%02d", i)
		c.mustCreateSecret(t, names[i])
		good[i] = c.stored(t, "secrets", names[i])
	}

	before := c.hsmOperations(t)
	start := time.Now()
	for i, d := range damages {
		c.put(t, names[i], d.spoil(t, bytes.Clone(good[i])))
	}
	const rounds = 5
	for round := range rounds {
		for i, d := range damages {
			err := c.checkSecret(t.Context(), names[i])
			if err == nil {
				t.Errorf("%s: the secret reads back", d.name)
			} else if round == 0 {
				t.Logf("%s: %s: %v", d.name, apierrors.ReasonForError(err), err)
			}
			c.mustReadSecret(t, neighbour)
			if err := c.kekd.Ready(t.Context()); err != nil {
				t.Fatalf("%s: %v", d.name, err)
			}
		}
	}
	c.mustCreateSecret(t, "written-beside-damage")
	c.mustReadSecret(t, "written-beside-damage")
	c.apiserver.WaitStatus(t, kmsReady, http.StatusOK, 10*time.Second)
	t.Logf("%d reads of damaged objects in %v, calls of Decrypt since the start of the apiserver: %v",
		rounds*len(damages), time.Since(start).Round(time.Millisecond), c.decryptCalls(t))

	for i := range damages {
		c.put(t, names[i], good[i])
	}
	took := c.awaitWatchCache(t)
	t.Logf("the watch cache is up to date %v after the repair, calls of Decrypt since the start of the apiserver: %v",
		took.Round(time.Millisecond), c.decryptCalls(t))
	// The damaged bytes are still in etcd's history: the watch cache asked for
	// them ten times a second until now. Only damage to what the HSM itself
	// wrapped, which is one or two of the flips, may reach it, and that once in
	// ten seconds; a flip elsewhere is found without it.
	periods := 1 + int(time.Since(start)/(10*time.Second))
	c.requireHSMOperations(t, before, float64(2*periods))
	for _, name := range names {
		c.mustReadSecret(t, name)
	}
}

// awaitWatchCache waits until the apiserver's watch cache of Secrets holds what
// was written last, and returns how long that took.
func (c *cluster) awaitWatchCache(t *testing.T) time.Duration {
	t.Helper()
	newest, err := c.kube.CoreV1().Secrets(metav1.NamespaceDefault).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "newest-"},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create secret: %v", err)
	}
	// A list that is not older than a version comes from the cache alone; it
	// fails after three seconds when the cache is not there yet.
	path := "/api/v1/namespaces/default/secrets?limit=1&resourceVersionMatch=NotOlderThan&resourceVersion=" + newest.ResourceVersion
	return harness.Eventually(t, 2*time.Minute, "the watch cache catches up", func(ctx context.Context) error {
		status, body, err := c.apiserver.Get(ctx, path)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %.200s", status, body)
		}
		return err
	})
}

// put overwrites a Secret's bytes in etcd.
func (c *cluster) put(t *testing.T, name string, value []byte) {
	t.Helper()
	if _, err := c.etcd.Put(t.Context(), storedKey("secrets", name), string(value)); err != nil {
		t.Fatalf("write secret %s into etcd: %v", name, err)
	}
}
