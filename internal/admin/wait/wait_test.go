package wait_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"kekd/internal/admin/wait"
)

// log collects what is said.
type log struct{ lines []string }

func (l *log) wait(what string, limit time.Duration) wait.Wait {
	return wait.Wait{
		What: what, Pause: time.Second, Limit: limit,
		Found: func(s wait.Sighting) { l.lines = append(l.lines, s.Name+" "+s.Seen) },
		Note:  func(line string) { l.lines = append(l.lines, line) },
	}
}

// after is there once d has passed.
func after(name string, d time.Duration) wait.Party {
	begun := time.Now()
	return wait.Party{Name: name, Look: func(context.Context) (string, string) {
		if time.Since(begun) >= d {
			return "is there", ""
		}
		return "", "it is late"
	}}
}

// hangs answers only when it is cut off.
func hangs(name string) wait.Party {
	return wait.Party{Name: name, Look: func(ctx context.Context) (string, string) {
		<-ctx.Done()
		return "", "cut off"
	}}
}

func TestAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := new(log)
		_, err := l.wait("to come", time.Minute).All(t.Context(), []wait.Party{after("a", 0), after("b", 25*time.Second)})
		want := []string{
			"a is there",
			"waiting for b to come: it is late, 10s of at most 1m0s",
			"waiting for b to come: it is late, 20s of at most 1m0s",
			"b is there",
		}
		if diff := cmp.Diff(want, l.lines); diff != "" || err != nil {
			t.Errorf("%v\n%s", err, diff)
		}
	})
}

// TestHanging: a party that hangs neither stops the others nor the words about it, and
// what it says when it is cut off does not count.
func TestHanging(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := new(log)
		begun := time.Now()
		got, err := l.wait("to come", 15*time.Second).All(t.Context(), []wait.Party{hangs("a"), after("b", 5*time.Second)})
		if took := time.Since(begun); !errors.Is(err, context.DeadlineExceeded) || took != 15*time.Second {
			t.Errorf("ended after %s with %v", took, err)
		}
		want := []wait.Sighting{{Name: "a", Missing: "it has not answered yet"}, {Name: "b", Seen: "is there"}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if len(l.lines) != 2 || !strings.HasPrefix(l.lines[1], "waiting for a to come: it has not answered yet, 10s") {
			t.Errorf("said %q", l.lines)
		}
	})
}

// TestSticky: what a party showed once counts, or must last, as was asked for.
func TestSticky(t *testing.T) {
	t.Parallel()
	for _, sticky := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			looks := 0
			flickers := wait.Party{Name: "a", Look: func(context.Context) (string, string) {
				if looks++; looks == 1 {
					return "is there", ""
				}
				return "", "is away again"
			}}
			w := new(log).wait("to come", 20*time.Second)
			w.Sticky = sticky
			_, err := w.All(t.Context(), []wait.Party{flickers, after("b", 10*time.Second)})
			if (err == nil) != sticky {
				t.Errorf("sticky %t: %v", sticky, err)
			}
		})
	}
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cause := errors.New("Ctrl-C")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(cause) })
		if _, err := new(log).wait("to come", 0).All(ctx, []wait.Party{hangs("a")}); !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
		if err := wait.Until(ctx, time.Now().Add(time.Hour), func(time.Duration) {}); !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
	})
}

func TestUntil(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var left []time.Duration
		begun := time.Now()
		err := wait.Until(t.Context(), begun.Add(25*time.Second), func(d time.Duration) { left = append(left, d) })
		if diff := cmp.Diff([]time.Duration{15 * time.Second, 5 * time.Second}, left); diff != "" || err != nil || time.Since(begun) != 25*time.Second {
			t.Errorf("%v after %s\n%s", err, time.Since(begun), diff)
		}
	})
}
