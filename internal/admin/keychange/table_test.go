package keychange

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kekd/internal/kek"
)

var update = flag.Bool("update", false, "write the table anew")

// The table is between two marks, since the page has another one.
const (
	tablePath  = "../../../docs/reports/witnesses.md"
	tableBegin = "<!-- decided:begin -->\n"
	tableEnd   = "<!-- decided:end -->\n"
)

// condition is what is the matter with a witness.
type condition struct {
	witness, name string
	// set makes it so.
	set func(w *world, k kek.Info)
	// want is the outcome for cancel, and for the other verbs; of a refusal, a part of
	// its text.
	cancel, other string
}

const made = "made"

var conditions = []condition{
	{"all", "agree", func(*world, kek.Info) {}, made, made},
	{"token", "cannot be asked", func(w *world, _ kek.Info) { w.away = kek.ErrUnavailable }, "the HSM is unavailable", "the HSM is unavailable"},
	{"token", "the key has activated meanwhile", func(*world, kek.Info) { time.Sleep(6 * time.Minute) }, "is primary; only a pending key can be cancelled", made},
	{"node", "encrypts under it", func(w *world, k kek.Info) { w.nodes[1].publishes = k.ID }, "encrypts under it", "encrypts under it"},
	{"node", "cannot be asked", func(w *world, _ kek.Info) { w.nodes[1].down = true }, "could not be asked: connection refused", "could not be asked: connection refused"},
	{"node", "lags: used it 20 s ago", func(w *world, _ kek.Info) { w.nodes[1].switched = time.Now().Add(-20 * time.Second) }, made, "last used it 20s ago"},
	{"node", "has not read the ring for 2 min", func(w *world, _ kek.Info) { w.nodes[1].stale = 2 * time.Minute }, made, "last read the key ring 2m0s ago"},
	{"node", "clock 3 min ahead", func(w *world, _ kek.Info) { w.nodes[1].ahead = 3 * time.Minute }, made, made},
	{"node", "clock 6 min ahead", func(w *world, _ kek.Info) { w.nodes[1].ahead = 6 * time.Minute }, "encrypts under it", made},
	{"node", "clock 290 s ahead", func(w *world, _ kek.Info) { w.nodes[1].ahead = 290 * time.Second }, "may encrypt under it in 10s by its clock, which is 4m50s ahead of this one", made},
	{"node", "clock 3 min behind", func(w *world, _ kek.Info) { w.nodes[1].ahead = -3 * time.Minute }, made, made},
	{"node", "clock 3 min ahead, used it 2 min ago", func(w *world, _ kek.Info) {
		w.nodes[1].ahead, w.nodes[1].switched = 3*time.Minute, time.Now().Add(-2*time.Minute)
	}, made, "it must be out of use for 4m20s"},
	{"node", "clock 15 min behind", func(w *world, k kek.Info) { w.nodes[1].ahead = -15 * time.Minute }, made, "it must be out of use for 16m20s"},
	{"node", "old version", func(w *world, _ kek.Info) { w.nodes[1].old = true }, "runs kekd v1.2.3, which does not record the keys that it uses; upgrade kekd on that node", "upgrade kekd on that node"},
	{"node", "is the other one by another address", func(w *world, _ kek.Info) { w.nodes[1].id = w.nodes[0].id }, "2 API servers and only 1 kekds are known", "2 API servers and only 1 kekds are known"},
	{"apiserver", "encrypts under it", func(w *world, k kek.Info) {
		w.servers[1].behind, w.servers[1].until = k.ID, time.Now().Add(time.Hour)
	}, "encrypts under it (KMS provider \"kekd\")", "encrypts under it (KMS provider \"kekd\")"},
	{"apiserver", "cannot be asked", func(w *world, _ kek.Info) { w.servers[1].err = errors.New("no route to host") }, "could not be asked: no route to host", "could not be asked: no route to host"},
	{"apiserver", "is not healthy", func(w *world, _ kek.Info) { w.servers[1].problem = "kms-provider-0 failed" }, "is not healthy: kms-provider-0 failed", "is not healthy: kms-provider-0 failed"},
	{"apiserver", "lags by a minute", func(w *world, k kek.Info) {
		w.servers[1].behind, w.servers[1].until = k.ID, time.Now().Add(time.Minute)
	}, "encrypts under it", "encrypts under it"},
	{"apiserver", "uses another plugin", func(w *world, _ kek.Info) { w.servers[1].plain = true }, made, made},
	{"apiserver", "is not listed while it is down", func(w *world, _ kek.Info) { w.servers = w.servers[:1] }, "2 kekds run, and the cluster lists only 1 API servers", "2 kekds run, and the cluster lists only 1 API servers"},
	{"etcd", "holds 7 secrets under it", func(w *world, k kek.Info) { w.etcd.secrets[k.KeyID()] = 7 }, "7 objects are encrypted under it: 7 of secrets", "7 objects are encrypted under it: 7 of secrets"},
	{"etcd", "holds 7 under it with no check value", func(w *world, k kek.Info) {
		w.etcd.secrets[kek.KeyID(k.Ring, k.ID, kek.CheckValue{})] = 7
	}, "7 of secrets", "7 of secrets"},
	{"etcd", "holds 3 kms:v2 secrets that cannot be parsed", func(w *world, _ kek.Info) { w.etcd.secrets[""] = 3 }, "0 objects are encrypted under it, and 3 may be", "0 objects are encrypted under it, and 3 may be"},
	{"etcd", "cannot be asked", func(w *world, _ kek.Info) { w.etcd.err = errors.New("deadline exceeded") }, "could not be asked: deadline exceeded", "could not be asked: deadline exceeded"},
}

var hexID = regexp.MustCompile(`\b01[0-9a-f]{32}\b`)

// TestTable runs every command against every witness, and writes down what became of it.
func TestTable(t *testing.T) {
	rows := []string{"| witness | condition | command | outcome | with --wait 5m |", "| --- | --- | --- | --- | --- |"}
	for _, c := range conditions {
		var row []string // the last one, for verbs of the same outcome
		for _, v := range []Verb{Cancel, Disable, Destroy, Purge} {
			t.Run(fmt.Sprintf("%s/%s/%s", c.witness, c.name, v), func(t *testing.T) {
				want := c.other
				if v == Cancel {
					want = c.cancel
				}
				now := outcome(t, c, v, 0)
				if got := now; want == made && got != made || want != made && !strings.Contains(got, want) {
					t.Errorf("%s: %s, want %s", v, got, want)
				}
				later := ""
				if now != made {
					later = outcome(t, c, v, 5*time.Minute)
					if strings.HasPrefix(later, "refused") {
						later = "refused"
					}
				}
				if len(row) > 0 && row[1] == now && row[2] == later {
					row[0] += ", " + string(v)
					rows[len(rows)-1] = fmt.Sprintf("| %s | %s | %s |", c.witness, c.name, strings.Join(row, " | "))
					return
				}
				row = []string{string(v), now, later}
				rows = append(rows, fmt.Sprintf("| %s | %s | %s |", c.witness, c.name, strings.Join(row, " | ")))
			})
		}
	}
	b, err := os.ReadFile(tablePath)
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	before, rest, begun := strings.Cut(page, tableBegin)
	_, after, ended := strings.Cut(rest, tableEnd)
	if !begun || !ended {
		t.Fatalf("%s lacks the marks of its table", tablePath)
	}
	text := before + tableBegin + strings.Join(rows, "\n") + "\n" + tableEnd + after
	switch {
	case text == page:
	case !*update:
		t.Errorf("%s is not what the code decides; run the test with -update", tablePath)
	default:
		if err := os.WriteFile(tablePath, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// outcome is what becomes of a change: made, made after a while, or refused because.
func outcome(t *testing.T, c condition, v Verb, wait time.Duration) (text string) {
	synctest.Test(t, func(t *testing.T) {
		w, k := newWorld(t, v)
		c.set(w, k)
		how := change(v, k.ID)
		how.Wait = wait
		begun := time.Now()
		result, err := Run(t.Context(), w.deps(), how)
		took := time.Since(begun).Round(time.Second)
		if done := w.done(v, k.ID); done != (err == nil) {
			t.Errorf("%s: error %v, and it is done: %t", v, err, done)
		}
		var refused *Refused
		switch {
		case err == nil:
			if result.Evidence == nil || len(result.Evidence.Against()) > 0 {
				t.Errorf("it was made on the evidence %+v", result.Evidence)
			}
			text = made
			if took > 0 {
				text += " after " + took.String()
			}
		case errors.As(err, &refused):
			var reasons []string
			for _, f := range refused.Against {
				reasons = append(reasons, fmt.Sprintf("%s: %s", f.Witness, f.Detail))
			}
			if len(reasons) == 0 {
				reasons = []string{refused.Text}
			}
			text = hexID.ReplaceAllString("refused: "+strings.Join(reasons, "; "), "ID")
		default:
			text = "refused: " + err.Error()
		}
	})
	return text
}
