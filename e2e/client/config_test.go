package client

import (
	"context"
	"strings"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"

	"kekd/e2e/internal/harness"
)

// TestConfiguredTransformer goes through LoadEncryptionConfig, all that an
// apiserver does with its EncryptionConfiguration.
func TestConfiguredTransformer(t *testing.T) {
	t.Parallel()
	const provider = "configured"
	k := startKekd(t, harness.KekdOptions{})
	a := loadConfig(t, k, provider)

	t.Run("is healthy", func(t *testing.T) {
		if err := a.health(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("round trip", func(t *testing.T) {
		stored := seal(t, a.secrets, "the plaintext")
		if want := "k8s:enc:kms:v2:" + provider + ":"; !strings.HasPrefix(string(stored), want) {
			t.Errorf("the stored value starts %.40q, want %q", stored, want)
		}
		if strings.Contains(string(stored), "plaintext") {
			t.Error("the stored value holds the plaintext")
		}
		requireOpens(t, a.secrets, stored, "the plaintext", false)
	})
	t.Run("a value of another object is refused", func(t *testing.T) {
		stored := seal(t, a.secrets, "the plaintext")
		if _, _, err := a.secrets.TransformFromStorage(t.Context(), stored,
			value.DefaultContext("/registry/secrets/default/two")); err == nil {
			t.Error("the value opens under another key of etcd")
		}
	})
	t.Run("a value from before encryption is stale", func(t *testing.T) {
		requireOpens(t, a.secrets, []byte(`{"kind":"Secret"}`), `{"kind":"Secret"}`, true)
	})
	t.Run("a second apiserver reads it", func(t *testing.T) {
		stored := seal(t, a.secrets, "shared")
		requireOpens(t, loadConfig(t, k, provider).secrets, stored, "shared", false)
	})
	t.Run("a new apiserver reads it after kekd was killed", func(t *testing.T) {
		stored := seal(t, a.secrets, "survives")
		k.Kill(t)
		k.StartReady(t)
		b := loadConfig(t, k, provider)
		if err := b.health(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := unwraps(t, k)
		requireOpens(t, b.secrets, stored, "survives", false)
		if got := unwraps(t, k) - before; got != 1 {
			t.Errorf("a cold seed cost %v unwraps, want 1", got)
		}
		// The apiserver that was there all the time still writes what others read.
		requireOpens(t, b.secrets, seal(t, a.secrets, "old seed"), "old seed", false)
	})
}

// TestConfiguredBeforeKekd: an apiserver that starts first reads nothing, and
// recovers by itself.
func TestConfiguredBeforeKekd(t *testing.T) {
	t.Parallel()
	k := startKekd(t, harness.KekdOptions{})
	const provider = "first"
	stored := seal(t, loadConfig(t, k, provider).secrets, "the plaintext")
	k.Stop(t)

	a := loadConfig(t, k, provider)
	if err := a.health(t.Context()); err == nil {
		t.Fatal("the health check is good without kekd")
	}
	if _, _, err := a.secrets.TransformFromStorage(t.Context(), stored, objectKey); err == nil {
		t.Fatal("the value opens without kekd")
	}
	k.Start(t)
	took := harness.Eventually(t, reconnectWithin, "the health check is good", a.health)
	t.Logf("good %v after the start of kekd", took.Round(time.Millisecond))
	requireOpens(t, a.secrets, stored, "the plaintext", false)
}

// TestConfiguredOutage: without kekd an apiserver writes for three minutes and
// reads what it has read before; afterwards the same seed is good again.
func TestConfiguredOutage(t *testing.T) {
	t.Parallel()
	const provider = "outage"
	k := startKekd(t, harness.KekdOptions{})
	a := loadConfig(t, k, provider)
	before := seal(t, a.secrets, "before")

	k.Kill(t)
	during := seal(t, a.secrets, "during")
	requireOpens(t, a.secrets, before, "before", false)
	requireOpens(t, a.secrets, during, "during", false)

	later := 4 * time.Minute
	t.Cleanup(kmsv2.SetNowFuncForTests(provider, func() time.Time { return time.Now().Add(later) }))
	if _, err := a.secrets.TransformToStorage(t.Context(), []byte("x"), objectKey); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("transform to storage after %v without kekd: %v, want expired", later, err)
	}
	requireOpens(t, a.secrets, during, "during", false)

	k.StartReady(t)
	// A good answer of the check counts for 20 seconds, so writing is the test.
	took := harness.Eventually(t, time.Minute, "writes work again", func(ctx context.Context) error {
		_ = a.health(ctx)
		_, err := a.secrets.TransformToStorage(ctx, []byte("x"), objectKey)
		return err
	})
	t.Logf("writes work %v after kekd was ready", took.Round(time.Millisecond))
	requireOpens(t, a.secrets, seal(t, a.secrets, "after"), "after", false)
	requireOpens(t, a.secrets, before, "before", false)
}
