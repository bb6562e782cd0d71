package audit

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Events of several chains come in the order of time, and what has begun counts as
// failed only where it has not ended.
func TestQuery(t *testing.T) {
	dir := t.TempDir()
	start := time.Date(2026, 11, 2, 3, 0, 0, 0, time.UTC)
	write := func(chain string, events ...Event) {
		t.Helper()
		cfg := settings(dir, nil)
		cfg.Chain = chain
		l := open(t, cfg)
		for _, e := range events {
			must(t, l.RecordWait(t.Context(), e))
		}
		_ = l.Close(t.Context()) //nolint:errcheck // nothing signs
	}
	at := func(minute int, operation, result string) Event {
		return Event{Time: start.Add(time.Duration(minute) * time.Minute), Operation: operation, Result: result, Called: true, Caller: Caller{PID: int32(minute / 10)}}
	}
	write("kekctl",
		at(11, Destroy, Begun), at(12, Destroy, OK), // made
		at(21, Purge, Begun), at(22, Purge, "changed"), // failed
		at(31, Disable, Begun),                      // killed
		at(41, Disable, Begun), at(42, Disable, OK), // of another process
		at(51, Create, Begun), // killed, the last
	)
	write("kekd", at(5, Publish, OK), at(13, State, OK), at(25, Decrypt, "unavailable"), at(60, Withdraw, OK))
	for name, tt := range map[string]struct {
		filter Filter
		want   []string
	}{
		"all": {Filter{}, []string{
			"5 publish ok", "11 destroy begun", "12 destroy ok", "13 key-state ok", "21 purge begun", "22 purge changed", "25 decrypt unavailable",
			"31 disable begun", "41 disable begun", "42 disable ok", "51 create begun", "60 withdraw ok",
		}},
		"failed":        {Filter{Result: "!ok"}, []string{"22 purge changed", "25 decrypt unavailable", "31 disable begun", "51 create begun"}},
		"begun":         {Filter{Result: Begun, Operations: []string{Destroy}}, []string{"11 destroy begun"}},
		"limited":       {Filter{Limit: 2}, []string{"5 publish ok", "11 destroy begun"}},
		"of operations": {Filter{Operations: []string{Publish, Withdraw, Create}, Result: "!ok"}, []string{"51 create begun"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			skipped, err := Query(t.Context(), []string{dir}, tt.filter, func(_ string, r *Record, line []byte) error {
				if again, _, _, err := parse(line); err != nil || again.Seq != r.Seq {
					t.Errorf("the line %q is not that of sequence %d", line, r.Seq)
				}
				got = append(got, fmt.Sprintf("%.0f %s %s", r.Time.Sub(start).Minutes(), r.Operation, r.Result))
				return nil
			})
			if err != nil || skipped != 0 {
				t.Errorf("%d skipped, %v", skipped, err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// Every operation has one name, and no two have the same.
func TestOperations(t *testing.T) {
	seen := map[string]bool{}
	for _, o := range Operations() {
		if o == "" || seen[o] {
			t.Errorf("the operation %q is listed twice", o)
		}
		seen[o] = true
	}
}
