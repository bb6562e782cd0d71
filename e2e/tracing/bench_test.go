package tracing

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

const (
	// rounds are many and short, so that what else the machine does meets all daemons
	// alike.
	rounds = 150
	// pairs is how many Encrypts and Decrypts a daemon serves in a round, each.
	pairs = 200
)

// contender is a daemon that is measured.
type contender struct {
	name, section string
	kekd          *harness.Kekd
	client        *harness.KMS
	sealed        harness.Sealed

	elapsed []float64 // microseconds a request, for each round
	cpu     float64   // seconds, over all rounds
}

// BenchmarkTracing measures warm Encrypts and Decrypts of one caller on the real
// sockets of four daemons, in turns whose order is drawn anew: tracing off, twice,
// which shows what the numbers are worth, one request in a hundred recorded, and all.
// The collector is this process.
func BenchmarkTracing(b *testing.B) {
	r := newReceiver(b)
	r.forget = true
	at := fmt.Sprintf("endpoint: %q", "http://"+r.address)
	contenders := []*contender{
		{name: "off"},
		{name: "off, a second daemon"},
		{name: "one in a hundred", section: "{" + at + ", sampleRatio: 0.01}"},
		{name: "all", section: "{" + at + "}"},
	}
	for _, c := range contenders {
		c.kekd = harness.NewKekd(b, harness.NewToken(b), harness.KekdOptions{Tracing: c.section, LogLevel: "info", ProbeInterval: time.Minute, Refresh: time.Minute})
		c.kekd.StartReady(b)
		c.client = c.kekd.KMS(b)
		c.round(b) // which opens the connection, and is not counted
		c.elapsed, c.cpu = nil, 0
	}
	for b.Loop() {
		for range rounds {
			for _, i := range rand.Perm(len(contenders)) {
				contenders[i].round(b)
			}
		}
	}
	recorded := contenders[3].kekd.Metrics(b)
	b.ReportMetric(0, "ns/op") // says nothing
	table := report(contenders)
	lost := recorded.Sum("kekd_trace_spans_total", map[string]string{"result": "dropped"})
	exported := recorded.Sum("kekd_trace_spans_total", map[string]string{"result": "exported"})
	table += fmt.Sprintf("\n%s/%s, %d CPUs, which client and collector share; %d rounds of %d Encrypts and %d Decrypts in turns, the median of the time and of its ratio in each round, the sum of the processor time. With all recorded %.0f spans were exported and %.0f dropped.\n",
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), len(contenders[0].elapsed), pairs, pairs, exported, lost)
	fmt.Print("\n" + table)
	update(b, "overhead", table)
}

// round serves a round.
func (c *contender) round(b *testing.B) {
	b.Helper()
	cpu := c.kekd.Metrics(b).Sum("process_cpu_seconds_total", nil)
	begun := time.Now()
	for range pairs {
		var err error
		if c.sealed, err = c.client.Encrypt(b.Context(), []byte("a plaintext of thirty-two bytes.")); err != nil {
			b.Fatalf("%s: %v", c.name, err)
		}
		if _, err = c.client.Decrypt(b.Context(), c.sealed); err != nil {
			b.Fatalf("%s: %v", c.name, err)
		}
	}
	took := time.Since(begun)
	c.cpu += c.kekd.Metrics(b).Sum("process_cpu_seconds_total", nil) - cpu
	c.elapsed = append(c.elapsed, float64(took.Microseconds())/(2*pairs))
}

// report writes the medians, and those of the ratios within each round.
func report(contenders []*contender) string {
	var s strings.Builder
	s.WriteString("| Recorded | Time a request | of that off | kekd's processor time | of that off |\n| --- | ---: | ---: | ---: | ---: |\n")
	base := contenders[0]
	for _, c := range contenders {
		fmt.Fprintf(&s, "| %s | %.0f µs | %.2f | %.0f µs | %.2f |\n", c.name,
			median(c.elapsed), median(over(c.elapsed, base.elapsed)), c.cpu*1e6/float64(2*pairs*len(c.elapsed)), c.cpu/base.cpu)
	}
	return s.String()
}

func over(a, b []float64) []float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i] / b[i]
	}
	return ratios
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
