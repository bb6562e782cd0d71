package faults

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"kekd/e2e/internal/harness"
)

// TestMatrix plays every fault at every moment. With KEKD_UPDATE_DOCS=1 the table
// in docs/reliability.md is made from the run.
func TestMatrix(t *testing.T) {
	var mu sync.Mutex
	cells := map[string]string{} // by fault and moment; guarded by mu
	t.Run("all", func(t *testing.T) {
		for _, f := range faults() {
			for _, m := range moments() {
				if f.unnoticed && m.name == "in an Encrypt" {
					cells[f.name+m.name] = "not noticed"
					continue
				}
				t.Run(f.name+" "+m.name, func(t *testing.T) {
					t.Parallel()
					o := runCase(t, f, m)
					mu.Lock()
					defer mu.Unlock()
					cells[f.name+m.name] = o.String()
				})
			}
		}
	})
	if t.Failed() {
		return
	}
	table := markdown(cells)
	t.Log("\n" + table)
	if os.Getenv("KEKD_UPDATE_DOCS") != "" {
		if err := harness.UpdatePage("../../docs/reliability.md", "faults", table); err != nil {
			t.Fatal(err)
		}
	}
}

func markdown(cells map[string]string) string {
	var b strings.Builder
	b.WriteString("| The module's call |")
	for _, m := range moments() {
		fmt.Fprintf(&b, " %s |", m.name)
	}
	b.WriteString("\n|" + strings.Repeat(" --- |", len(moments())+1) + "\n")
	for _, f := range faults() {
		fmt.Fprintf(&b, "| %s |", f.name)
		for _, m := range moments() {
			fmt.Fprintf(&b, " %s |", cells[f.name+m.name])
		}
		b.WriteString("\n")
	}
	return b.String()
}
