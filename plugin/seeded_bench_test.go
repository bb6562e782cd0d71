package plugin

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/kek"
	"kekd/internal/metrics"
	"kekd/internal/secret"
	"kekd/internal/version"
	"kekd/keycache"
)

// copyingHSM wraps by copying, so that a profile shows none of it.
type copyingHSM struct{}

const copiedOverhead = 28 // as AES-GCM has it

func (copyingHSM) Wrap(_ context.Context, _ kek.ID, _ kek.Mechanism, plaintext secret.Bytes, _ []byte) ([]byte, error) {
	return append(make([]byte, copiedOverhead), plaintext...), nil
}

func (copyingHSM) Unwrap(_ context.Context, _ kek.ID, _ kek.Mechanism, blob, _ []byte) (secret.Bytes, error) {
	return bytes.Clone(blob[copiedOverhead:]), nil
}

// BenchmarkRequest is a whole warm request as kekd serves it, with its seeds and
// its metrics. Client and server share the process, so a profile of it (go test
// -bench Request -cpuprofile cpu.prof) holds both: look below guard.unary for
// kekd's own work and below Server.serveStreams for gRPC's.
func BenchmarkRequest(b *testing.B) { benchRequests(b, nil) }

// BenchmarkRequestAudited is BenchmarkRequest with every request on record.
func BenchmarkRequestAudited(b *testing.B) {
	for _, block := range []bool{false, true} {
		name := map[bool]string{false: "continue", true: "block"}[block]
		b.Run(name, func(b *testing.B) {
			trail := openTrail(b)
			benchRequests(b, &trailAuditor{log: trail, block: block})
		})
	}
}

func benchRequests(b *testing.B, auditor Auditor) {
	key := kek.Info{Ring: "k8s-kek", ID: kek.ID(make([]byte, 17)), State: kek.Primary}
	observer := metrics.New(version.Read(), time.Now)
	sealer, err := keycache.New(keycache.Config{
		Ring: key.Ring, Mode: keycache.Seeded, MaxAge: time.Hour, MaxUses: 1 << 62, CacheSize: 16, Observer: observer,
	}, copyingHSM{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := sealer.Close(); err != nil {
			b.Error(err)
		}
	})
	sealer.SetRing(&kek.Ring{Label: key.Ring, Keys: []kek.Info{key}})
	if err := sealer.Use(b.Context(), key, kek.GCMCallerIV); err != nil {
		b.Fatal(err)
	}
	server, err := New(Config{
		Sealer: sealer, Health: &fakeHealth{keyID: key.KeyID()}, AllowedUIDs: []uint32{uint32(os.Getuid())}, Observer: observer, Auditor: auditor,
	})
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(tempDir(b), "kekd.sock")
	socket, err := Listen(path)
	if err != nil {
		b.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- server.Run(socket) }()
	b.Cleanup(func() { _, _ = server.Shutdown(context.Background()), <-ran })
	client := kmsapi.NewKeyManagementServiceClient(dial(b, path))

	sealed, err := client.Encrypt(b.Context(), &kmsapi.EncryptRequest{Plaintext: bytes.Clone(seed), Uid: testUID})
	if err != nil {
		b.Fatal(err)
	}
	for _, callers := range []int{1, 8} {
		for _, c := range []struct {
			method string
			do     func(ctx context.Context) error
		}{
			{"Encrypt", func(ctx context.Context) error {
				_, err := client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: seed, Uid: testUID})
				return err
			}},
			{"Decrypt", func(ctx context.Context) error {
				_, err := client.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: sealed.GetCiphertext(), KeyId: sealed.GetKeyId(), Uid: testUID})
				return err
			}},
		} {
			b.Run(fmt.Sprintf("%s/callers=%d", c.method, callers), func(b *testing.B) {
				b.ReportAllocs()
				b.SetParallelism(max(1, callers/runtime.GOMAXPROCS(0)))
				before := cpuTime(b)
				defer func() { b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op") }()
				one := func() {
					ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
					defer cancel()
					if err := c.do(ctx); err != nil {
						b.Error(err)
					}
				}
				if callers == 1 {
					for b.Loop() {
						one()
					}
					return
				}
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						one()
					}
				})
			})
		}
	}
}

// cpuTime is what the process has used of processors so far, which other processes
// on the machine disturb less than the time on the clock.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
