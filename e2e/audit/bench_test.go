// Package audit measures what the audit trail costs a real daemon.
package audit

import (
	"fmt"
	"os"
	"testing"

	"kekd/e2e/internal/harness"
)

// updateVariable, when set, has the benchmark write its table into docs/audit.md.
const updateVariable = "KEKD_UPDATE_DOCS"

// BenchmarkAudit measures four daemons side by side: without a trail, twice, and with
// one that is signed each second, by both policies.
func BenchmarkAudit(b *testing.B) {
	signed := func(k *harness.Kekd) { k.Command(b, "audit", "key", "create", "--yes") }
	block := &harness.Contender{Name: "`onFailure: block`", Options: harness.KekdOptions{Audit: "block"}, Prepare: signed}
	table := harness.SideBySide(b, "Audit trail", []*harness.Contender{
		{Name: "none"},
		{Name: "none, a second daemon"},
		{Name: "`onFailure: continue`", Options: harness.KekdOptions{Audit: "continue"}, Prepare: signed},
		block,
	})
	m := block.Kekd().Metrics(b)
	written, lost := m.Sum("kekd_audit_records_total", nil), m.Sum("kekd_audit_records_lost_total", nil)
	if written == 0 || lost != 0 {
		b.Errorf("%v records were written and %v lost", written, lost)
	}
	table += fmt.Sprintf(" Each trail has %.0f records, and a signature each second.\n", written)
	fmt.Print("\n" + table)
	if os.Getenv(updateVariable) != "" {
		if err := harness.UpdatePage("../../docs/audit.md", "overhead", table); err != nil {
			b.Fatal(err)
		}
	}
}
