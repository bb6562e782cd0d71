// Package hardening looks at a running kekd and its HSM worker from the outside, as
// root can: limits, capabilities, descriptors, environment, system calls, and what
// is in their memory. kekd runs as in a pod: as uid 65529, without any capability,
// with a small RLIMIT_MEMLOCK.
//
// It needs root, and for TestProfile strace. Nothing is skipped for the lack of them.
package hardening

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"
	kmsservice "k8s.io/kms/pkg/service"

	"kekd/e2e/internal/harness"
)

const (
	// uid is kekd's user and group in the image and on a node.
	uid = 65529
	// memlock is RLIMIT_MEMLOCK in bytes: kekd locks 132 KiB by default.
	memlock = 256 << 10
	// readyWithin bounds the time to a proven key, under strace as well.
	readyWithin = time.Minute
)

func TestMain(m *testing.M) {
	harness.Confined()
	try()
	os.Exit(m.Run())
}

func asInAPod() harness.Confinement { return harness.Confinement{UID: uid, Memlock: memlock} }

// newKekd is a daemon on a token of its own, confined and not started.
func newKekd(t *testing.T, c harness.Confinement) *harness.Kekd {
	t.Helper()
	k := harness.NewKekd(t, harness.NewToken(t), harness.KekdOptions{Audit: "continue"})
	k.Command(t, "audit", "key", "create", "--yes")
	k.Confine(t, c)
	return k
}

func started(t *testing.T) *harness.Kekd {
	t.Helper()
	k := newKekd(t, asInAPod())
	k.StartReady(t)
	return k
}

// client is kube-apiserver's own.
type client struct{ kms kmsservice.Service }

func connect(t *testing.T, k *harness.Kekd) client {
	t.Helper()
	s, err := kmsv2.NewGRPCService(t.Context(), "unix://"+k.Socket, "kekd", 10*time.Second)
	if err != nil {
		t.Fatalf("connect to kekd: %v", err)
	}
	return client{s}
}

// value is what stands in for the seed of a kube-apiserver.
type value struct {
	plaintext string
	sealed    *kmsservice.EncryptResponse
}

func (c client) encrypt(t *testing.T) value {
	t.Helper()
	v := value{plaintext: "0123456789abcdef0123456789abcdef"}
	var err error
	if v.sealed, err = c.kms.Encrypt(t.Context(), string(uuid.NewUUID()), []byte(v.plaintext)); err != nil {
		t.Fatalf("encrypt: %v", err)
	}
	return v
}

func (c client) decrypt(ctx context.Context, v value) error {
	out, err := c.kms.Decrypt(ctx, string(uuid.NewUUID()), &kmsservice.DecryptRequest{
		Ciphertext: v.sealed.Ciphertext, KeyID: v.sealed.KeyID, Annotations: v.sealed.Annotations,
	})
	if err == nil && string(out) != v.plaintext {
		err = fmt.Errorf("decrypted to %d other bytes", len(out))
	}
	return err
}

func (c client) mustDecrypt(t *testing.T, values ...value) {
	t.Helper()
	for _, v := range values {
		if err := c.decrypt(t.Context(), v); err != nil {
			t.Fatalf("decrypt: %v", err)
		}
	}
}

func (c client) keyID(t *testing.T) string {
	t.Helper()
	s, err := c.kms.Status(t.Context())
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	return s.KeyID
}

// rotate makes a key and waits until kekd encrypts under it.
func rotate(t *testing.T, k *harness.Kekd, c client) {
	t.Helper()
	before := c.keyID(t)
	k.CreateKey(t, 2*time.Second)
	harness.Eventually(t, readyWithin, "kekd switches to the next key", func(ctx context.Context) error {
		s, err := c.kms.Status(ctx)
		if err == nil && s.KeyID == before {
			err = fmt.Errorf("the key_id is still %s", s.KeyID)
		}
		return err
	})
}

// journey takes kekd from its start to its end, through all that it does in a
// cluster.
func journey(t *testing.T, k *harness.Kekd) {
	t.Helper()
	k.Start(t)
	k.WaitReady(t, readyWithin)
	c := connect(t, k)
	first := c.encrypt(t)
	c.mustDecrypt(t, first)
	for _, path := range []string{"/livez", "/status", "/metrics"} {
		if status, _, err := k.Get(t.Context(), path); err != nil || status != 200 {
			t.Errorf("%s answers %d, %v", path, status, err)
		}
	}
	rotate(t, k, c)
	second := c.encrypt(t)
	c.mustDecrypt(t, first, second)

	worker := k.WorkerPID(t)
	k.KillWorker(t)
	k.WorkerPID(t, worker)
	c.mustDecrypt(t, first, second)

	// A cold cache: seeds are unwrapped by the HSM.
	k.Stop(t)
	k.Start(t)
	k.WaitReady(t, readyWithin)
	c = connect(t, k)
	c.mustDecrypt(t, first, second)
	k.Stop(t)
}
