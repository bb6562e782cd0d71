package harness

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	// rounds are many and short, so that what else the machine does meets all daemons
	// alike.
	rounds = 150
	// pairs is how many Encrypts and Decrypts a daemon serves in a round, each.
	pairs = 200
)

// Contender is a daemon that is measured beside others.
type Contender struct {
	// Name is its row in the table.
	Name    string
	Options KekdOptions
	// Prepare is called before the daemon starts; nil for nothing.
	Prepare func(*Kekd)

	kekd    *Kekd
	client  *KMS
	sealed  Sealed
	elapsed []float64 // microseconds a request, for each round
	cpu     float64   // seconds, over all rounds
}

// Kekd is the daemon, once SideBySide has started it.
func (c *Contender) Kekd() *Kekd { return c.kekd }

// SideBySide measures warm Encrypts and Decrypts of one caller on the real sockets of
// daemons, in rounds of turns whose order is drawn anew, and returns a table in Markdown
// whose first column has this heading. Ratios are those to the first; a second one like
// it shows what the numbers are worth.
func SideBySide(b *testing.B, heading string, contenders []*Contender) string {
	b.Helper()
	for _, c := range contenders {
		c.Options.LogLevel, c.Options.ProbeInterval, c.Options.Refresh = "info", time.Minute, time.Minute
		c.kekd = NewKekd(b, NewToken(b), c.Options)
		if c.Prepare != nil {
			c.Prepare(c.kekd)
		}
		c.kekd.StartReady(b)
		c.client = c.kekd.KMS(b)
		c.round(b) // which opens the connection, and is not counted
		c.elapsed, c.cpu = nil, 0
	}
	for b.Loop() {
		for range rounds {
			for _, i := range rand.Perm(len(contenders)) { //nolint:gosec // G404: any order will do
				contenders[i].round(b)
			}
		}
	}
	b.ReportMetric(0, "ns/op") // says nothing
	base := contenders[0]
	var s strings.Builder
	fmt.Fprintf(&s, "| %s | Time a request | of the first | kekd's processor time | of the first |\n| --- | ---: | ---: | ---: | ---: |\n", heading)
	for _, c := range contenders {
		fmt.Fprintf(&s, "| %s | %.0f µs | %.2f | %.0f µs | %.2f |\n", c.Name,
			median(c.elapsed), median(over(c.elapsed, base.elapsed)), c.cpu*1e6/float64(2*pairs*len(c.elapsed)), c.cpu/base.cpu)
	}
	fmt.Fprintf(&s, "\n%s/%s, %d CPUs, which client and daemons share; %d rounds of %d Encrypts and %d Decrypts in turns, the median of the time and of its ratio in each round, the sum of the processor time.",
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), len(base.elapsed), pairs, pairs)
	return s.String()
}

// round serves a round.
func (c *Contender) round(b *testing.B) {
	b.Helper()
	cpu := c.kekd.Metrics(b).Sum("process_cpu_seconds_total", nil)
	begun := time.Now()
	for range pairs {
		var err error
		if c.sealed, err = c.client.Encrypt(b.Context(), []byte("a plaintext of thirty-two bytes.")); err != nil {
			b.Fatalf("%s: %v", c.Name, err)
		}
		if _, err = c.client.Decrypt(b.Context(), c.sealed); err != nil {
			b.Fatalf("%s: %v", c.Name, err)
		}
	}
	took := time.Since(begun)
	c.cpu += c.kekd.Metrics(b).Sum("process_cpu_seconds_total", nil) - cpu
	c.elapsed = append(c.elapsed, float64(took.Microseconds())/(2*pairs))
}

func over(a, b []float64) []float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i] / b[i]
	}
	return ratios
}

func median(values []float64) float64 {
	return Quantile(slices.Sorted(slices.Values(values)), 0.5)
}
