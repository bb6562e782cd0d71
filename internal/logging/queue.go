package logging

import (
	"bytes"
	"io"
	"sync"
	"time"
)

const (
	// queueSize bounds what waits to be written, in bytes.
	queueSize = 1 << 20
	// auditSize is how much more may wait for the sake of audit events.
	auditSize = 256 << 10
)

// Queue stands between the loggers and a file that may block, such as a pipe whose
// reader is stuck: a write takes the lines and returns, and a goroutine of the
// Queue's own writes them. What does not fit any more is lost and counted. So a
// request never waits for whoever reads the log.
//
// It is safe for concurrent use. Each Write must be whole lines. Close ends it.
type Queue struct {
	out io.Writer

	mu sync.Mutex
	// waiting are lines that nobody has begun to write. Guarded by mu.
	waiting []byte
	// lost counts all lines that were lost, told those of them that were made known.
	// Guarded by mu.
	lost, told uint64
	onLoss     func(lines uint64) // guarded by mu; may be nil
	closed     bool               // guarded by mu
	// wake holds one token: there is something to write, or it is closed.
	wake chan struct{}
	// done is closed when all is written and the Queue is closed.
	done chan struct{}
}

// NewQueue returns a Queue before out.
func NewQueue(out io.Writer) *Queue {
	q := &Queue{out: out, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go q.run()
	return q
}

// Write implements zapcore.WriteSyncer. It never waits and never fails.
func (q *Queue) Write(lines []byte) (int, error) { return q.take(lines, queueSize), nil }

// Sync implements zapcore.WriteSyncer. It does nothing: waiting is what a Queue
// must not do.
func (q *Queue) Sync() error { return nil }

// OnLoss has f told how many lines were lost, after those before them were written.
// f may log.
func (q *Queue) OnLoss(f func(lines uint64)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.onLoss = f
}

// Lost returns how many lines were lost so far.
func (q *Queue) Lost() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.lost
}

// Close takes no more and waits until all is written, but no longer than within.
func (q *Queue) Close(within time.Duration) {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-q.done:
	case <-timer.C:
	}
}

// take keeps lines if no more than limit bytes wait then. It returns their length.
func (q *Queue) take(lines []byte, limit int) int {
	q.mu.Lock()
	if q.closed || len(q.waiting)+len(lines) > limit {
		q.lost += countLines(lines)
	} else {
		q.waiting = append(q.waiting, lines...)
	}
	q.mu.Unlock()
	q.signal()
	return len(lines)
}

func (q *Queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// run writes until the Queue is closed and empty.
func (q *Queue) run() {
	defer close(q.done)
	var spare []byte // what was written last, to be filled again
	for range q.wake {
		for {
			q.mu.Lock()
			lines, closed, lost := q.waiting, q.closed, q.lost
			if len(lines) > 0 {
				// Only now: an array must not be filled and written at once.
				q.waiting = spare[:0]
			}
			q.mu.Unlock()
			if len(lines) == 0 {
				if closed {
					return
				}
				break
			}
			n, err := q.out.Write(lines)
			spare = lines
			if err != nil {
				// Not told before a write works: what is logged of it would be lost too.
				q.mu.Lock()
				q.lost += countLines(lines[min(n, len(lines)):])
				q.mu.Unlock()
				continue
			}
			q.tell(lost)
		}
	}
}

// tell makes known that so many lines were lost in all.
func (q *Queue) tell(lost uint64) {
	q.mu.Lock()
	news, f := lost-q.told, q.onLoss
	q.told = lost
	q.mu.Unlock()
	if news > 0 && f != nil {
		f(news)
	}
}

func countLines(b []byte) uint64 { return uint64(bytes.Count(b, []byte{'\n'})) } //nolint:gosec // G115: not negative

// auditQueue is a Queue for audit events: there is room for them when ordinary
// lines have filled theirs.
type auditQueue struct{ *Queue }

// Write implements zapcore.WriteSyncer.
func (q auditQueue) Write(lines []byte) (int, error) { return q.take(lines, queueSize+auditSize), nil }
