package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/util/uuid"
	kmstypes "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"

	"kekd/e2e/internal/harness"
)

func TestEnvelope(t *testing.T) {
	t.Parallel()
	k := startKekd(t, harness.KekdOptions{})
	s := service(t, k, callTimeout)

	t.Run("status and encrypt agree on the key_id", func(t *testing.T) {
		for range 3 {
			if got, want := newEnvelope(t, s).object.KeyID, statusKeyID(t, s); got != want {
				t.Fatalf("encrypt says %q, status %q", got, want)
			}
		}
	})
	t.Run("what is stored stays small", func(t *testing.T) {
		o := newEnvelope(t, s).object
		if len(o.Annotations) != 0 {
			t.Errorf("encrypt made annotations %q", o.Annotations)
		}
		// The apiserver allows 1024 bytes each; both lie beside every object.
		if len(o.EncryptedDEKSource) > 256 || len(o.KeyID) > 128 {
			t.Errorf("a seed takes %d bytes and its key_id %d", len(o.EncryptedDEKSource), len(o.KeyID))
		}
		t.Logf("encrypted seed %d bytes, key_id %q", len(o.EncryptedDEKSource), o.KeyID)
	})
	t.Run("round trip", func(t *testing.T) {
		e := newEnvelope(t, s)
		requireOpens(t, e.transformer, seal(t, e.transformer, "the plaintext"), "the plaintext", false)
	})
	t.Run("a new seed of the same key is not stale", func(t *testing.T) {
		stored := seal(t, newEnvelope(t, s).transformer, "old seed")
		requireOpens(t, newEnvelope(t, s).transformer, stored, "old seed", false)
	})
	t.Run("equal seeds have different ciphertexts", func(t *testing.T) {
		seen := map[string]bool{}
		for range 20 {
			resp, err := s.Encrypt(t.Context(), string(uuid.NewUUID()), bytes.Repeat([]byte{7}, 32))
			if err != nil {
				t.Fatalf("encrypt: %v", err)
			}
			seen[string(resp.Ciphertext)] = true
		}
		if len(seen) != 20 {
			t.Errorf("20 encryptions of one seed gave %d ciphertexts", len(seen))
		}
	})
	t.Run("warm requests cost no HSM operation", func(t *testing.T) {
		e := newEnvelope(t, s)
		before := unwraps(t, k)
		for range 200 {
			if err := decrypt(t.Context(), s, newEnvelope(t, s).object); err != nil {
				t.Fatalf("decrypt: %v", err)
			}
		}
		if err := decrypt(t.Context(), s, e.object); err != nil {
			t.Fatalf("decrypt: %v", err)
		}
		if got := unwraps(t, k) - before; got > 0 {
			t.Errorf("201 warm decryptions cost %v unwraps", got)
		}
	})
}

// TestRotation: a newer KEK on the ring takes over without a restart. What the
// older one encrypted reads back and is stale, so that a migration rewrites it.
func TestRotation(t *testing.T) {
	t.Parallel()
	k := startKekd(t, harness.KekdOptions{})
	s := service(t, k, callTimeout)
	old := newEnvelope(t, s)
	stored := seal(t, old.transformer, "old KEK")

	k.CreateKey(t, 2*time.Second)
	if got := statusKeyID(t, s); got != old.object.KeyID {
		t.Errorf("before the activation status says %q, want %q", got, old.object.KeyID)
	}
	took := harness.Eventually(t, 15*time.Second, "status names the new KEK", func(ctx context.Context) error {
		resp, err := s.Status(ctx)
		if err == nil && resp.KeyID == old.object.KeyID {
			err = fmt.Errorf("status still says %q", resp.KeyID)
		}
		return err
	})
	t.Logf("the new KEK is served %v after its creation", took.Round(time.Millisecond))

	e := newEnvelope(t, s)
	if got, want := e.object.KeyID, statusKeyID(t, s); got != want {
		t.Fatalf("encrypt says %q, status %q", got, want)
	}
	requireOpens(t, e.transformer, stored, "old KEK", true)
	requireOpens(t, e.transformer, seal(t, e.transformer, "new KEK"), "new KEK", false)

	k.Kill(t)
	k.StartReady(t)
	harness.Eventually(t, reconnectWithin, "the client is back", func(ctx context.Context) error {
		_, err := s.Status(ctx)
		return err
	})
	if got, want := statusKeyID(t, s), e.object.KeyID; got != want {
		t.Errorf("after a restart status says %q, want %q", got, want)
	}
	requireOpens(t, newEnvelope(t, s).transformer, stored, "old KEK", true)
}

// TestDamage: whatever is wrong with a stored seed, the request is refused, the
// HSM is not blamed, and kekd stays ready.
func TestDamage(t *testing.T) {
	t.Parallel()
	k := startKekd(t, harness.KekdOptions{})
	s := service(t, k, callTimeout)
	good := newEnvelope(t, s).object
	foreign := newEnvelope(t, service(t, startKekd(t, harness.KekdOptions{}), callTimeout)).object

	tests := []struct {
		name  string
		spoil func(o *kmstypes.EncryptedObject)
	}{
		{"empty", func(o *kmstypes.EncryptedObject) { o.EncryptedDEKSource = nil }},
		{"one byte", func(o *kmstypes.EncryptedObject) { o.EncryptedDEKSource = o.EncryptedDEKSource[:1] }},
		{"last byte missing", func(o *kmstypes.EncryptedObject) {
			o.EncryptedDEKSource = o.EncryptedDEKSource[:len(o.EncryptedDEKSource)-1]
		}},
		{"a byte more", func(o *kmstypes.EncryptedObject) { o.EncryptedDEKSource = append(o.EncryptedDEKSource, 0) }},
		{"too large", func(o *kmstypes.EncryptedObject) { o.EncryptedDEKSource = make([]byte, 1025) }},
		{"zeros", func(o *kmstypes.EncryptedObject) { clear(o.EncryptedDEKSource) }},
		{"text", func(o *kmstypes.EncryptedObject) { o.EncryptedDEKSource = []byte(strings.Repeat("vault:v1:", 20)) }},
		{"of another cluster", func(o *kmstypes.EncryptedObject) {
			o.EncryptedDEKSource, o.KeyID = foreign.EncryptedDEKSource, foreign.KeyID
		}},
		{"of another cluster with our key_id", func(o *kmstypes.EncryptedObject) {
			o.EncryptedDEKSource = foreign.EncryptedDEKSource
		}},
		{"key_id of another cluster", func(o *kmstypes.EncryptedObject) { o.KeyID = foreign.KeyID }},
		{"key_id cut", func(o *kmstypes.EncryptedObject) { o.KeyID = o.KeyID[:len(o.KeyID)-1] }},
		{"key_id longer", func(o *kmstypes.EncryptedObject) { o.KeyID += "0" }},
		{"key_id empty", func(o *kmstypes.EncryptedObject) { o.KeyID = "" }},
		{"annotation added", func(o *kmstypes.EncryptedObject) {
			o.Annotations = map[string][]byte{"a.example.com": []byte("b")}
		}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			o := proto.CloneOf(good)
			tc.spoil(o)
			requireRefused(t, decrypt(t.Context(), s, o))
		})
	}
	t.Run("any bit", func(t *testing.T) {
		before := unwraps(t, k)
		start := time.Now()
		// Many at once, as from a LIST of a damaged store.
		var group errgroup.Group
		group.SetLimit(16)
		for i := range good.EncryptedDEKSource {
			group.Go(func() error {
				o := proto.CloneOf(good)
				o.EncryptedDEKSource[i] ^= 1 << (i % 8)
				err := decrypt(t.Context(), s, o)
				if code := status.Code(err); code != codes.InvalidArgument && code != codes.NotFound {
					t.Errorf("byte %d flipped: %v (%v), want a refusal of the request", i, code, err)
				}
				return nil
			})
		}
		_ = group.Wait() // each has reported for itself
		t.Logf("%d flips took %v and %v unwraps", len(good.EncryptedDEKSource),
			time.Since(start).Round(time.Millisecond), unwraps(t, k)-before)
	})
	t.Run("through the transformer", func(t *testing.T) {
		e := newEnvelope(t, s)
		var o kmstypes.EncryptedObject
		if err := proto.Unmarshal(seal(t, e.transformer, "the plaintext"), &o); err != nil {
			t.Fatalf("read the stored value: %v", err)
		}
		o.EncryptedDEKSource[len(o.EncryptedDEKSource)-1] ^= 1
		spoiled, err := proto.Marshal(&o)
		if err != nil {
			t.Fatalf("write the stored value: %v", err)
		}
		if _, _, err := e.transformer.TransformFromStorage(t.Context(), spoiled, objectKey); status.Code(errors.Unwrap(err)) != codes.InvalidArgument {
			t.Errorf("transform from storage: %v, want InvalidArgument", err)
		}
	})
	t.Run("empty plaintext", func(t *testing.T) {
		_, err := s.Encrypt(t.Context(), "uid", nil)
		requireRefused(t, err)
	})
	t.Run("oversize plaintext", func(t *testing.T) {
		_, err := s.Encrypt(t.Context(), "uid", make([]byte, 2048))
		requireRefused(t, err)
	})
	t.Run("kekd is as good as before", func(t *testing.T) {
		if err := k.Ready(t.Context()); err != nil {
			t.Error(err)
		}
		if err := decrypt(t.Context(), s, good); err != nil {
			t.Errorf("decrypt: %v", err)
		}
		statusKeyID(t, s)
	})
}

// TestColdStampede: many readers of one seed that kekd does not know yet cost
// the HSM one operation.
func TestColdStampede(t *testing.T) {
	t.Parallel()
	const readers = 64
	k := startKekd(t, harness.KekdOptions{})
	o := newEnvelope(t, service(t, k, callTimeout)).object
	k.Kill(t)
	k.StartReady(t)
	s := service(t, k, callTimeout)
	before := unwraps(t, k)
	var wg sync.WaitGroup
	errs := make(chan error, readers)
	for range readers {
		wg.Go(func() { errs <- decrypt(t.Context(), s, o) })
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Fatalf("decrypt: %v", err)
		}
	}
	if got := unwraps(t, k) - before; got != 1 {
		t.Errorf("%d readers of one cold seed cost %v unwraps, want 1", readers, got)
	}
}

// TestModes: what one mode wrote, the other reads.
func TestModes(t *testing.T) {
	t.Parallel()
	k := startKekd(t, harness.KekdOptions{Mode: "seeded"})
	seeded := newEnvelope(t, service(t, k, callTimeout))
	bySeeded := seal(t, seeded.transformer, "seeded")

	k.Configure(t, harness.KekdOptions{Mode: "direct"})
	k.Stop(t)
	k.StartReady(t)
	direct := newEnvelope(t, service(t, k, callTimeout))
	byDirect := seal(t, direct.transformer, "direct")
	requireOpens(t, direct.transformer, bySeeded, "seeded", false)
	requireOpens(t, direct.transformer, byDirect, "direct", false)
	if seeded.object.KeyID != direct.object.KeyID {
		t.Errorf("the modes name the key %q and %q", seeded.object.KeyID, direct.object.KeyID)
	}

	k.Configure(t, harness.KekdOptions{Mode: "seeded"})
	k.Stop(t)
	k.StartReady(t)
	requireOpens(t, newEnvelope(t, service(t, k, callTimeout)).transformer, byDirect, "direct", false)
}

// TestHungKekd: a daemon that does not answer costs the apiserver its timeout
// and not more; the connection is good again at once.
func TestHungKekd(t *testing.T) {
	t.Parallel()
	const timeout = 500 * time.Millisecond
	k := startKekd(t, harness.KekdOptions{})
	s := service(t, k, timeout)
	statusKeyID(t, s)
	k.Halt(t)
	start := time.Now()
	_, err := s.Status(t.Context())
	if code := status.Code(err); code != codes.DeadlineExceeded {
		t.Errorf("status of a stopped kekd: %v (%v), want DeadlineExceeded", code, err)
	}
	if took := time.Since(start); took > 4*timeout {
		t.Errorf("status of a stopped kekd took %v, its timeout is %v", took, timeout)
	}
	k.Resume(t)
	harness.Eventually(t, 5*time.Second, "status is good again", func(ctx context.Context) error {
		_, err := s.Status(ctx)
		return err
	})
}

// TestWorkerCrash: the death of the HSM worker is not seen by the apiserver.
func TestWorkerCrash(t *testing.T) {
	t.Parallel()
	k := startKekd(t, harness.KekdOptions{})
	s := service(t, k, callTimeout)
	old := newEnvelope(t, s)
	k.Kill(t)
	k.StartReady(t)
	s = service(t, k, callTimeout)
	k.KillWorker(t)
	statusKeyID(t, s)
	// Cold in this kekd: it needs the HSM, and so a new worker.
	if err := decrypt(t.Context(), s, old.object); err != nil {
		t.Errorf("decrypt after the worker was killed: %v", err)
	}
	if err := k.Ready(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestStarting: kekd listens before it is ready and says what it waits for, so
// that no client falls into a long backoff.
func TestStarting(t *testing.T) {
	t.Parallel()
	k := startKekd(t, harness.KekdOptions{})
	k.Stop(t)
	k.Token.TakeAway(t)
	k.Start(t)
	s := service(t, k, callTimeout)
	harness.Eventually(t, 10*time.Second, "kekd answers that it is not ready", func(ctx context.Context) error {
		_, err := s.Status(ctx)
		if code := status.Code(err); code != codes.Unavailable {
			return fmt.Errorf("status: %v (%w)", code, err)
		}
		return nil
	})
	if _, err := s.Encrypt(t.Context(), "uid", make([]byte, 32)); status.Code(err) != codes.Unavailable {
		t.Errorf("encrypt: %v, want Unavailable", err)
	}
	reason := k.WaitUnready(t, 10*time.Second)
	t.Logf("not ready: %s", reason)

	k.Token.PutBack(t)
	start := time.Now()
	k.WaitReady(t, 30*time.Second)
	harness.Eventually(t, 5*time.Second, "status is good", func(ctx context.Context) error {
		_, err := s.Status(ctx)
		return err
	})
	t.Logf("good %v after the token came", time.Since(start).Round(time.Millisecond))
}
