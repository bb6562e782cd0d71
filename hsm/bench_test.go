package hsm_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"

	"kekd/hsm"
	"kekd/hsm/hsmtest"
	"kekd/hsm/hsmtest/naive"
	"kekd/hsm/wire"
	"kekd/internal/kek"
	"kekd/internal/secret"
)

const benchPIN = "123456"

// benchToken makes a SoftHSM token with one proven KEK.
func benchToken(b *testing.B) (hsm.Config, *hsm.Token, kek.ID, kek.Mechanism) {
	b.Helper()
	dir := b.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := os.WriteFile(conf, []byte("directories.tokendir = "+dir+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	b.Setenv("SOFTHSM2_CONF", conf)
	out, err := exec.CommandContext(b.Context(), "softhsm2-util", "--init-token", "--free", "--label", "bench", "--so-pin", "87654321", "--pin", benchPIN).CombinedOutput()
	if err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	pin := &hsmtest.PIN{}
	pin.Set(benchPIN)
	cfg := hsm.Config{
		Module: hsmtest.SoftHSMModule, Env: map[string]string{"SOFTHSM2_CONF": conf}, Token: wire.Selector{Label: "bench"},
		PIN: pin, Latch: &hsmtest.Latch{}, Sessions: 4, CallTimeout: 10 * time.Second, Ring: hsmtest.Ring,
		Logger: zap.NewNop(),
	}
	token := hsm.New(cfg)
	b.Cleanup(token.Close)
	id, err := kek.NewID(time.Unix(1_700_000_000, 0), zeros{})
	if err != nil {
		b.Fatal(err)
	}
	_, m, err := token.Create(b.Context(), id)
	if err != nil {
		b.Fatal(err)
	}
	return cfg, token, id, m
}

// zeros is a source of nothing random.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// BenchmarkRoundTrip is one operation of SoftHSM through the worker process, and
// beside it the same one in the process itself: the difference is what the hop
// costs.
func BenchmarkRoundTrip(b *testing.B) {
	cfg, token, id, m := benchToken(b)
	seed := secret.Bytes("thirty-two bytes of a plain seed")
	blob, err := token.Wrap(b.Context(), id, m, seed, []byte(aad))
	if err != nil {
		b.Fatal(err)
	}
	wrap := func() error {
		_, err := token.Wrap(b.Context(), id, m, seed, []byte(aad))
		return err
	}
	unwrap := func() error {
		back, err := token.Unwrap(b.Context(), id, m, blob, []byte(aad))
		back.Wipe()
		return err
	}
	n, err := naive.Open(cfg.Module, cfg.Token.Label, benchPIN, hsmtest.Ring, cfg.Sessions)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := n.Close(); err != nil {
			b.Error(err)
		}
	})
	encrypt := func() error {
		_, err := n.Encrypt(seed, []byte(aad))
		return err
	}
	for _, c := range []struct {
		name string
		do   func() error
	}{{"wrap", wrap}, {"unwrap", unwrap}, {"in-process", encrypt}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := c.do(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(c.name+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := c.do(); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
