package keycache

import (
	"context"
	"testing"

	"kekd/internal/kek"
)

func benchSealer(b *testing.B) *Sealer {
	cfg := seededConfig()
	cfg.MaxUses = 1 << 62
	cfg.CacheSize = 4096
	s := readySealer(b, cfg, &fakeHSM{})
	b.ReportAllocs()
	return s
}

func BenchmarkSeal(b *testing.B) {
	s, plaintext := benchSealer(b), make([]byte, 32)
	for b.Loop() {
		if _, err := s.Seal(context.Background(), plaintext); err != nil {
			b.Fatal(err)
		}
	}
}

// The seed in use, one from the cache, and the cache from all cores.
func BenchmarkOpen(b *testing.B) {
	b.Run("current", func(b *testing.B) {
		s := benchSealer(b)
		benchOpen(b, s, seal(b, s, goldenPlaintext))
	})
	b.Run("cached", func(b *testing.B) {
		s := benchSealer(b)
		sealed := seal(b, s, goldenPlaintext)
		use(b, s, keyA)
		benchOpen(b, s, sealed)
	})
	b.Run("parallel", func(b *testing.B) {
		s := benchSealer(b)
		sealed := seal(b, s, goldenPlaintext)
		use(b, s, keyA)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := s.Open(context.Background(), sealed); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

func benchOpen(b *testing.B, s *Sealer, sealed kek.Sealed) {
	b.Helper()
	for b.Loop() {
		if _, err := s.Open(context.Background(), sealed); err != nil {
			b.Fatal(err)
		}
	}
}

// What damaged data costs that never reaches the HSM.
func BenchmarkOpenRefused(b *testing.B) {
	s := benchSealer(b)
	sealed := seal(b, s, goldenPlaintext)
	sealed.Ciphertext[4+17+3+2] ^= 1
	for b.Loop() {
		if _, err := s.Open(context.Background(), sealed); err == nil {
			b.Fatal("opened")
		}
	}
}
