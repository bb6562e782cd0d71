// Package watch holds what is said of kekd's metrics and alerts against the running
// daemon, a real Prometheus and a real Alertmanager.
//
// The catalogue: docs/metrics.md has every metric that the daemon has, and no other,
// and a thousand key ids make no more of them.
//
// The alerts: a kekd is broken in one way each, under the rules of manifests/prometheus,
// and the alert that is meant for it fires, and pages once for one cause. To see in
// minutes what takes hours and days, the rules are made quicker (harness.QuickRules), and
// nothing else about them is changed: a day is two minutes, an hour five seconds.
package watch

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// soon bounds what takes no more than seconds on a busy machine.
const soon = 60 * time.Second

// family is a row of docs/metrics.md.
type family struct{ kind, labels, help, example string }

var rowPattern = regexp.MustCompile("^\\| `(kekd_[a-z0-9_]+)` \\| ([a-z]+) \\| [^|]+ \\| ([^|]*) \\| (.*) \\| `(.*)` \\|$")

// catalogue reads docs/metrics.md.
func catalogue(t *testing.T) map[string]family {
	t.Helper()
	rows := map[string]family{}
	for line := range strings.Lines(readFile(t, "../../docs/metrics.md")) {
		m := rowPattern.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		rows[m[1]] = family{m[2], strings.ReplaceAll(strings.ReplaceAll(m[3], "`", ""), " ", ""), m[4], strings.ReplaceAll(m[5], `\|`, "|")}
	}
	if len(rows) < 30 {
		t.Fatalf("docs/metrics.md has %d metrics: is its table read right?", len(rows))
	}
	return rows
}

// coasting returns a daemon that has all there is to have: a pending key, and an HSM
// that has just gone away.
func coasting(t *testing.T) (*harness.Kekd, *harness.Token) {
	t.Helper()
	token := harness.NewToken(t)
	k := harness.NewKekd(t, token, harness.KekdOptions{})
	k.CreateKey(t, time.Hour)
	k.StartReady(t)
	return k, token
}
