// Package outages breaks what kekd depends on, one thing for each test, and says what
// kube-apiserver sees meanwhile, what an administrator is told, and how long it takes
// until kekd is ready again once the outage is over. Nothing that was sealed may be
// lost, and nothing may be left behind.
//
// The real daemon runs on a real SoftHSM token; where a module must misbehave it is
// behind the fault-injecting one. Some tests mount a file system, so root is needed.
// Nothing is skipped for the lack of it.
//
// With KEKD_UPDATE_DOCS=1 the results are written to docs/reliability.md.
package outages

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// They wait most of the time, on any number of processors.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	code := m.Run()
	if code == 0 && os.Getenv("KEKD_UPDATE_DOCS") == "1" {
		if err := harness.UpdatePage("../../docs/reliability.md", "outages", results.table()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	fmt.Print(results.table())
	os.Exit(code)
}

// results collects a row of each outage.
var results table

type table struct {
	mu   sync.Mutex
	rows []row
}

type row struct {
	order             int
	outage, seen, end string
}

// throughout is the end of an outage in which kekd was ready all the time.
const throughout = "was ready throughout"

// after spells how long kekd took to be ready after the end of an outage.
func after(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// result notes what an outage did: a row of the table, in this order.
func result(order int, outage, seen, end string) {
	results.mu.Lock()
	defer results.mu.Unlock()
	results.rows = append(results.rows, row{order, outage, seen, end})
}

func (r *table) table() string {
	slices.SortFunc(r.rows, func(a, b row) int { return cmp.Compare(a.order, b.order) })
	var b strings.Builder
	b.WriteString("| Outage | What callers saw | Ready again after its end |\n| --- | --- | --- |\n")
	for _, row := range r.rows {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", row.outage, row.seen, row.end)
	}
	return b.String()
}
