package audit

import (
	"os"
	"testing"
	"time"
)

// BenchmarkRecord is what a request pays for its record: handing it over, or waiting
// until it is in the file.
func BenchmarkRecord(b *testing.B) {
	b.Run("continue", func(b *testing.B) {
		l := open(b, settings(b.TempDir(), newSigner(b)))
		defer func() { _ = l.Close(b.Context()) }()
		b.ReportAllocs()
		for i := 1; b.Loop(); i++ {
			if i%(queueSize/2) == 0 { // no faster than it can be written
				if err := l.RecordWait(b.Context(), sample()); err != nil {
					b.Fatal(err)
				}
			}
			l.Record(sample())
		}
	})
	b.Run("block", func(b *testing.B) {
		l := open(b, settings(b.TempDir(), newSigner(b)))
		defer func() { _ = l.Close(b.Context()) }()
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := l.RecordWait(b.Context(), sample()); err != nil {
					b.Error(err)
				}
			}
		})
	})
}

// BenchmarkMillion writes a million records with a checkpoint each thousand, by a key
// in memory, and verifies them. Run it with -benchtime 1x.
func BenchmarkMillion(b *testing.B) {
	const records = 1_000_000
	for b.Loop() {
		dir, signer := b.TempDir(), newSigner(b)
		l := open(b, settings(dir, signer, func(c *Config) { c.MaxFileSize, c.CheckpointRecords = 64<<20, 1000 }))
		start := time.Now()
		for i := range records {
			l.Record(sample())
			if i%1000 == 999 { // no faster than it can be written
				if err := l.RecordWait(b.Context(), sample()); err != nil {
					b.Fatal(err)
				}
			}
		}
		if err := l.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "s-write")
		var size int64
		for _, name := range files(b, dir) {
			info, err := os.Stat(name)
			if err != nil {
				b.Fatal(err)
			}
			size += info.Size()
		}
		b.ReportMetric(float64(size)/records, "B/record")
		start = time.Now()
		r := verify(b, dir, VerifyOptions{Keys: signer.keys()})
		b.ReportMetric(time.Since(start).Seconds(), "s-verify")
		b.ReportMetric(float64(r.Checkpoints), "checkpoints")
		if !r.OK() || r.Events != records+records/1000 || r.Lost > 0 {
			b.Fatalf("%d records, %d lost, %v", r.Events, r.Lost, r.Problems)
		}
	}
}
