package speed

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// The names of the clusters that others are compared with.
const (
	identityName  = "identity"
	secretboxName = "secretbox"
	controlName   = "secretbox, control"
	noopName      = "KMS v2, no-op"
)

// performancePage is where the report stands in the documentation.
const performancePage = "../../docs/performance.md"

// newReport writes the report as Markdown.
func newReport(b *testing.B, o options, clusters []*cluster) string {
	b.Helper()
	server, etcd := clusters[0].versions(b)
	return fmt.Sprintf("%s/%s, %d CPUs, kube-apiserver %s, etcd %s, SoftHSM; %d Secrets of %d random bytes on each cluster, created in %d rounds of %d by %d clients, the first round unmeasured.\n",
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), server, etcd,
		o.secrets, valueSize, o.secrets/o.batch, o.batch, o.workers) + tables(o, clusters)
}

// column is a column of a table: its title and what it says of a cluster.
type column struct {
	title string
	cell  func(c *cluster) string
}

// table writes a row for each cluster. The name comes first.
func table(s *strings.Builder, clusters []*cluster, columns ...column) {
	s.WriteString("| provider |")
	for _, col := range columns {
		fmt.Fprintf(s, " %s |", col.title)
	}
	s.WriteString("\n| --- |" + strings.Repeat(" ---: |", len(columns)) + "\n")
	for _, c := range clusters {
		fmt.Fprintf(s, "| %s |", c.name)
		for _, col := range columns {
			fmt.Fprintf(s, " %s |", col.cell(c))
		}
		s.WriteString("\n")
	}
	s.WriteString("\n")
}

// ratios are columns that compare a value of each round with those that others
// have in the same round.
func ratios(clusters []*cluster, value func(c *cluster) []float64) []column {
	var columns []column
	for _, name := range []string{identityName, secretboxName, noopName} {
		base := clusters[slices.IndexFunc(clusters, func(c *cluster) bool { return c.name == name })]
		columns = append(columns, column{"over " + name, func(c *cluster) string {
			return ratio(value(c), value(base)).String()
		}})
	}
	return columns
}

// tables are the figures alone.
func tables(o options, clusters []*cluster) string {
	var s strings.Builder
	ofKekd := func(f func(c *cluster) string) func(c *cluster) string {
		return func(c *cluster) string {
			if c.kekd == nil {
				return "-"
			}
			return f(c)
		}
	}

	s.WriteString("\n### Create\n\nRatios are of creates/s: more is faster. CPU is the processor time of kube-apiserver for one create, and of kekd during all of them. KMS calls (Encrypt and Decrypt) and HSM operations are those during all creates; in brackets what kekd does in the background.\n\n")
	rates := func(c *cluster) []float64 {
		return each(c.creates, func(m measurement) float64 { return float64(len(m.latencies)) / m.took.Seconds() })
	}
	latency := func(q float64) func(c *cluster) string {
		return func(c *cluster) string { return seconds(harness.Quantile(c.latencies(), q)) }
	}
	table(&s, clusters, slices.Concat(
		[]column{
			{"creates/s", func(c *cluster) string { return fmt.Sprintf("%.0f", summarize(rates(c)).median) }},
			{"p50", latency(0.5)},
			{"p99", latency(0.99)},
		},
		ratios(clusters, rates),
		[]column{
			{"apiserver CPU", func(c *cluster) string { return seconds(cpu(c.creates).Seconds() / float64(len(c.latencies()))) }},
			{"kekd CPU", ofKekd(func(c *cluster) string { return seconds(c.creating.kekdCPU) })},
			{"KMS calls", func(c *cluster) string { return c.creating.calls() }},
			{"HSM operations", ofKekd(func(c *cluster) string { return c.creating.operations() })},
		})...)

	fmt.Fprintf(&s, "### List of all %d\n\nRatios are of time: less is faster. %d lists from each source; KMS calls and HSM operations are those during all of them.\n\n", o.secrets, o.lists)
	for _, from := range sources {
		fmt.Fprintf(&s, "From %s:\n\n", from)
		times := func(c *cluster) []float64 {
			return each(c.lists[from], func(m measurement) float64 { return m.took.Seconds() })
		}
		table(&s, clusters, slices.Concat(
			[]column{{"time", func(c *cluster) string { return seconds(summarize(times(c)).median) }}},
			ratios(clusters, times),
			[]column{
				{"apiserver CPU", func(c *cluster) string { return seconds(cpu(c.lists[from]).Seconds() / float64(len(c.lists[from]))) }},
				{"KMS calls", func(c *cluster) string { return c.listing.calls() }},
				{"HSM operations", ofKekd(func(c *cluster) string { return c.listing.operations() })},
			})...)
	}

	fmt.Fprintf(&s, "### Cold start: kekd, then kube-apiserver\n\nThe middle of %d starts; ratios are of the time from the start of kube-apiserver until the first list is there: less is faster. KMS calls and HSM operations are those of one start, the most that were seen.\n\n", o.restarts)
	of := func(f func(r restart) time.Duration) func(c *cluster) string {
		return func(c *cluster) string {
			return seconds(summarize(each(c.restarts, func(r restart) float64 { return f(r).Seconds() })).median)
		}
	}
	most := func(f func(r readings) float64) func(c *cluster) string {
		return func(c *cluster) string {
			return fmt.Sprint(slices.Max(each(c.restarts, func(r restart) float64 { return f(r.since) })))
		}
	}
	table(&s, clusters, slices.Concat(
		[]column{{"until the first list", of(func(r restart) time.Duration { return r.untilListed })}},
		ratios(clusters, func(c *cluster) []float64 {
			return each(c.restarts, func(r restart) float64 { return r.untilListed.Seconds() })
		}),
		[]column{
			{"of it: watch cache filled", of(func(r restart) time.Duration { return r.cacheFilled })},
			{"of it: first list", of(func(r restart) time.Duration { return r.firstList })},
			{"apiserver CPU", of(func(r restart) time.Duration { return r.cpu })},
			{"Encrypt", most(func(r readings) float64 { return r.encrypts })},
			{"Decrypt", most(func(r readings) float64 { return r.decrypts })},
			{"HSM operations", ofKekd(most(func(r readings) float64 { return r.uses }))},
		})...)
	return s.String()
}

func each[T any](all []T, f func(T) float64) []float64 {
	values := make([]float64, len(all))
	for i, v := range all {
		values[i] = f(v)
	}
	return values
}

// cpu adds up the processor time.
func cpu(all []measurement) (sum time.Duration) {
	for _, m := range all {
		sum += m.cpu
	}
	return sum
}

func (r readings) calls() string { return fmt.Sprint(r.encrypts + r.decrypts) }

func (r readings) operations() string { return fmt.Sprintf("%v (%v)", r.uses, r.background) }

// latencies are those of all creates, sorted, in seconds.
func (c *cluster) latencies() []float64 {
	var all []float64
	for _, m := range c.creates {
		all = append(all, each(m.latencies, time.Duration.Seconds)...)
	}
	slices.Sort(all)
	return all
}

// seconds prints a time with three digits.
func seconds(s float64) string {
	switch {
	case s >= 9.995:
		return fmt.Sprintf("%.1f s", s)
	case s >= 0.9995:
		return fmt.Sprintf("%.2f s", s)
	case s >= 0.09995:
		return fmt.Sprintf("%.0f ms", s*1e3)
	case s >= 0.009995:
		return fmt.Sprintf("%.1f ms", s*1e3)
	}
	return fmt.Sprintf("%.2f ms", s*1e3)
}

// version reads one field of a server's answer about its version.
func version(b *testing.B, body, field string) string {
	b.Helper()
	fields := map[string]any{}
	if err := json.Unmarshal([]byte(body), &fields); err != nil {
		b.Fatalf("read the version in %q: %v", body, err)
	}
	return fmt.Sprint(fields[field])
}

// versions are those of kube-apiserver and etcd.
func (c *cluster) versions(b *testing.B) (server, etcd string) {
	b.Helper()
	_, body, err := c.server.Get(b.Context(), "/version")
	if err != nil {
		b.Fatalf("ask kube-apiserver for its version: %v", err)
	}
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, c.etcd.Endpoint+"/version", http.NoBody)
	if err != nil {
		b.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.Fatalf("ask etcd for its version: %v", err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		b.Fatalf("ask etcd for its version: %v", err)
	}
	return version(b, body, "gitVersion"), version(b, string(answer), "etcdserver")
}

func TestTables(t *testing.T) {
	made := func(name string, factor time.Duration) *cluster {
		m := measurement{took: 2 * factor * time.Millisecond, cpu: 10 * time.Millisecond, latencies: []time.Duration{time.Millisecond, 3 * time.Millisecond}}
		return &cluster{
			name:     name,
			creates:  []measurement{m},
			lists:    map[source][]measurement{fromCache: {m}, fromEtcd: {m, m}},
			restarts: []restart{{untilListed: factor * time.Second, cacheFilled: 200 * time.Millisecond, firstList: 100 * time.Millisecond, cpu: time.Second}},
		}
	}
	o := options{secrets: 2, lists: 1, restarts: 1}
	got := tables(o, []*cluster{made(identityName, 1), made(secretboxName, 2), made(noopName, 4), made("other", 8)})
	for _, want := range []string{
		"| other | 125 | 2.00 ms | 2.98 ms | 0.12 (0.12-0.12) | 0.25 (0.25-0.25) | 0.50 (0.50-0.50) | 5.00 ms | - | 0 | - |",
		"| other | 16.0 ms | 8.00 (8.00-8.00) | 4.00 (4.00-4.00) | 2.00 (2.00-2.00) | 10.0 ms | 0 | - |",
		"| other | 8.00 s | 8.00 (8.00-8.00) | 4.00 (4.00-4.00) | 2.00 (2.00-2.00) | 200 ms | 100 ms | 1.00 s | 0 | 0 | - |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the report lacks %q:\n%s", want, got)
		}
	}
}
