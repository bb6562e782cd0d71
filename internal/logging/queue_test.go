package logging

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// reader is standard error's other end: it can be stuck, or gone.
type reader struct {
	mu   sync.Mutex
	got  bytes.Buffer
	gone bool
	// stuck, if not nil, holds up every write until it is closed.
	stuck chan struct{}
}

func (r *reader) Write(b []byte) (int, error) {
	if r.stuck != nil {
		<-r.stuck
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		return 0, errors.New("broken pipe")
	}
	return r.got.Write(b)
}

func (r *reader) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got.String()
}

func write(t *testing.T, w io.Writer, line string) {
	t.Helper()
	if n, err := w.Write([]byte(line)); n != len(line) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
}

func TestQueueWritesInOrder(t *testing.T) {
	var r reader
	q := NewQueue(&r)
	var want strings.Builder
	for i := range 20_000 {
		line := strings.Repeat("x", i%50) + "\n"
		want.WriteString(line)
		write(t, q, line)
	}
	q.Close(time.Minute)
	if r.text() != want.String() || q.Lost() != 0 {
		t.Errorf("%d bytes came through and %d lines were lost, want %d and 0", len(r.text()), q.Lost(), want.Len())
	}
	write(t, q, "late\n") // and no panic
	if q.Lost() != 1 {
		t.Errorf("%d lines lost after Close, want 1", q.Lost())
	}
}

// A reader that is stuck holds nobody up. What waits is bounded, audit events find
// room longest, and the loss is told where the gap is.
func TestQueueBeforeStuckReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := reader{stuck: make(chan struct{})}
		q := NewQueue(&r)
		l, err := New("info", "json", q)
		if err != nil {
			t.Fatal(err)
		}
		q.OnLoss(func(lines uint64) { l.Log.Warn("lines lost", zap.Uint64("lines", lines)) })
		write(t, q, "first\n")
		synctest.Wait() // in the hands of the reader
		line := strings.Repeat("x", 1023) + "\n"
		for range queueSize/len(line) + 100 {
			write(t, q, line)
		}
		if q.Lost() != 100 {
			t.Errorf("%d lines lost, want 100", q.Lost())
		}
		l.Audit.Info("key withdrawn")
		if q.Lost() != 100 {
			t.Error("the audit event was lost")
		}
		close(r.stuck)
		synctest.Wait()
		write(t, q, "after\n")
		q.Close(time.Minute)
		text := r.text()
		audit, loss, after := strings.Index(text, "key withdrawn"), strings.Index(text, `"lines":100`), strings.Index(text, "after\n")
		if audit < 0 || loss < audit || after < loss {
			t.Errorf("audit event, loss and the line after at %d, %d, %d; want them in this order", audit, loss, after)
		}
		if n := strings.Count(text, line); n != queueSize/len(line) {
			t.Errorf("%d lines came through, want %d", n, queueSize/len(line))
		}
	})
}

// With the reader gone lines are lost one by one, without a loop of complaints.
func TestQueueBeforeBrokenPipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := reader{gone: true}
		q := NewQueue(&r)
		q.OnLoss(func(uint64) { write(t, q, "lines lost\n") })
		for range 3 {
			write(t, q, "line\n")
			synctest.Wait()
		}
		if q.Lost() != 3 {
			t.Errorf("%d lines lost, want 3", q.Lost())
		}
		r.mu.Lock()
		r.gone = false
		r.mu.Unlock()
		write(t, q, "line\n")
		synctest.Wait()
		q.Close(time.Minute)
		if want := "line\nlines lost\n"; r.text() != want {
			t.Errorf("got %q, want %q", r.text(), want)
		}
	})
}

// Close does not wait for ever either.
func TestQueueClosesBeforeStuckReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := reader{stuck: make(chan struct{})}
		q := NewQueue(&r)
		write(t, q, "line\n")
		start := time.Now()
		q.Close(2 * time.Second)
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("Close took %v, want 2s", took)
		}
		close(r.stuck) // so that the goroutine ends
	})
}
