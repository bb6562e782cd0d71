package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
)

const (
	// queueSize is how many Events may wait for the writer.
	queueSize = 8192
	// chunkSize is how many bytes are written at once, more or less.
	chunkSize = 128 << 10
	// maxTallies is how many different warm Decrypts are added up at once.
	maxTallies = 1024
	// linger is how long an Event that nobody waits for may wait for company: one
	// write for many costs a tenth.
	linger = 5 * time.Millisecond
	// signTimeout ends one try to sign, and signPause is the wait for the next.
	signTimeout = 15 * time.Second
	signPause   = 5 * time.Second
)

// Memory keeps the position of the last checkpoint apart from the files.
type Memory interface {
	Load(name string, v any) (bool, error)
	Save(name string, v any) error
}

// Position is a line, as Memory keeps it.
type Position struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
	File uint64 `json:"file"`
}

// MemoryName is under which name the position of a chain is kept.
func MemoryName(chain string) string { return "audit-" + chain }

// The parts of the trail that can fail, for Observer.
const (
	PartWrite   = "write"   // the files
	PartSign    = "sign"    // the key on the token
	PartForward = "forward" // syslog or journald
	PartMemory  = "memory"  // the position in the state directory
	PartTrail   = "trail"   // what was found at the start was broken or rolled back
)

// Observer learns how the trail is doing. Its methods must not block.
type Observer interface {
	// AuditRecords: so many Events were written, or lost.
	AuditRecords(written, lost uint64)
	// AuditCheckpoint: the chain is signed through this line.
	AuditCheckpoint(at time.Time, seq uint64)
	// AuditFailing: a part fails, or works again.
	AuditFailing(part string, failing bool)
}

// Forwarder ships lines elsewhere, besides the file. Forward must not block; the
// line, without its newline, is the Log's again when it returns.
type Forwarder interface {
	Forward(line []byte) error
	Close() error
}

// Config is what a Log needs. Fields without a remark are required.
type Config struct {
	Dir string
	// Chain is the writer's name: kekd, kekctl.
	Chain string
	// Program is the writer and its version.
	Program string
	// MaxFileSize ends a file, in bytes.
	MaxFileSize int64
	// MaxFiles and MaxAge end the life of a file; 0 for none. The one that is written
	// stays.
	MaxFiles int
	MaxAge   time.Duration
	// CheckpointEvery and CheckpointRecords: whichever comes first.
	CheckpointEvery   time.Duration
	CheckpointRecords int
	// SignAtClose has nothing signed before Close, whatever these two say.
	SignAtClose bool
	// Aggregate adds up warm Decrypts until the next checkpoint.
	Aggregate bool
	// Signer may be nil: nothing is signed then.
	Signer Signer
	// Memory may be nil.
	Memory Memory
	// Forward may be nil. The Log closes it.
	Forward Forwarder
	// Observer may be nil.
	Observer Observer
	Logger   *zap.Logger
	Clock    func() time.Time

	// create opens a file for appending; tests plant faults here.
	create func(name string) (file, error)
}

// file is what a Log needs of an *os.File.
type file interface {
	io.WriteCloser
	Sync() error
	Truncate(size int64) error
}

func create(name string) (file, error) {
	return os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, 0o640) //nolint:gosec // G302, G304: no secrets; its group may ship it
}

// ErrNotWritten is an Event that is not in the file.
var ErrNotWritten = errors.New("the audit trail cannot be written")

// batch is what waits to be written together.
type batch struct {
	done chan struct{}
	err  error // read after done is closed
}

// Log writes one chain. It is safe for concurrent use. Close it.
type Log struct {
	cfg Config

	mu sync.Mutex
	// Guarded by mu.
	queue           []Event
	spare           []Event
	batch           *batch
	lost            uint64 // Events that found no room
	started, closed bool
	// wake holds one token: there is something to write. hurry holds one: somebody
	// waits for it, or room becomes scarce.
	wake, hurry chan struct{}
	// stop asks run to end, with the context of Close.
	stop chan context.Context
	done chan struct{}
	err  error // of Close; read after done is closed

	w writer // run's alone
}

// Open finds the end of a chain, or that there is none yet. It fails when that can't
// be read, or another process writes it; a disk that is full, read-only or broken is no
// such failure, but one to write, and passes by itself. Nothing is written before Start.
func Open(cfg Config) (*Log, error) {
	if cfg.create == nil {
		cfg.create = create
	}
	if cfg.Observer == nil {
		cfg.Observer = nobody{}
	}
	l := &Log{
		cfg: cfg, wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1),
		stop: make(chan context.Context, 1), done: make(chan struct{}),
		batch: &batch{done: make(chan struct{})},
		w:     writer{cfg: cfg, failing: map[string]bool{}, tallies: map[tallyKey]*Event{}},
	}
	if err := l.w.begin(); err != nil {
		if !ofDisk(err) {
			return nil, err
		}
		l.w.tell(PartWrite, err)
	}
	return l, nil
}

// Start begins to write, first what Open found, and to sign. What can't be written is
// tried again with each Event. Call it once.
func (l *Log) Start() {
	l.mu.Lock()
	l.started = true
	l.mu.Unlock()
	go l.run()
}

// Record takes an Event and returns. It will be written soon; where that is not
// possible, the trail will say that one was lost.
func (l *Log) Record(e Event) { l.put(&e, false) }

// RecordWait takes an Event and returns when it is in the file, or ErrNotWritten, or
// ctx's error; it may be in the file in any case. Nothing is forced to the disk before
// the next checkpoint.
func (l *Log) RecordWait(ctx context.Context, e Event) error {
	b := l.put(&e, true)
	if b == nil {
		return ErrNotWritten
	}
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the audit trail: %w", ctx.Err())
	}
}

// put queues an Event; nil when there is no room.
func (l *Log) put(e *Event, urgent bool) *batch {
	if e.Time.IsZero() {
		e.Time = l.cfg.Clock()
	}
	l.mu.Lock()
	if l.closed || len(l.queue) >= queueSize {
		l.lost++
		l.mu.Unlock()
		return nil
	}
	l.queue = append(l.queue, *e)
	b, n := l.batch, len(l.queue)
	l.mu.Unlock()
	if n == 1 {
		signal(l.wake)
	}
	if urgent || n == queueSize/4 {
		signal(l.hurry)
	}
	return b
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Close writes what waits, signs the end and closes the chain; without Start it does
// neither. When ctx ends first,
// or nothing can sign, the chain ends without a signature, which is its error.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	again, started := l.closed, l.started
	l.closed = true
	l.mu.Unlock()
	switch {
	case again:
	case started:
		l.stop <- ctx
	default:
		l.err = l.w.unlock()
		if l.cfg.Forward != nil {
			l.err = errors.Join(l.err, l.cfg.Forward.Close())
		}
		close(l.done)
	}
	<-l.done
	return l.err
}

// run writes until Close.
func (l *Log) run() {
	defer close(l.done)
	_ = l.w.ready() // it tells, and is tried again
	tick := time.NewTicker(min(l.cfg.CheckpointEvery, time.Second))
	defer tick.Stop()
	pause := time.NewTimer(time.Hour)
	defer pause.Stop()
	for {
		select {
		case <-l.wake:
			pause.Reset(linger)
			select {
			case <-pause.C:
			case <-l.hurry:
			case ctx := <-l.stop:
				l.stop <- ctx
			}
			l.drain()
		case <-l.hurry: // for what was written meanwhile
			l.drain()
		case s := <-l.w.signing:
			l.w.signed(s)
		case <-tick.C:
			l.drain()
		case ctx := <-l.stop:
			l.drain()
			l.err = errors.Join(l.w.end(ctx), l.w.unlock())
			return
		}
		l.w.checkpoint()
	}
}

// drain writes all that waits.
func (l *Log) drain() {
	l.mu.Lock()
	queue, b, lost := l.queue, l.batch, l.lost
	if len(queue) == 0 && lost == 0 {
		l.mu.Unlock()
		_ = l.w.write(nil) // what was missed before may find room now
		return
	}
	l.queue, l.spare, l.batch, l.lost = l.spare[:0], nil, &batch{done: make(chan struct{})}, 0
	l.mu.Unlock()
	b.err = l.w.write(queue)
	close(b.done)
	if lost > 0 {
		l.w.drop(lost)
		_ = l.w.write(nil)
	}
	clear(queue)
	l.mu.Lock()
	l.spare = queue[:0]
	l.mu.Unlock()
}

// nobody is the Observer of who wants none.
type nobody struct{}

func (nobody) AuditRecords(uint64, uint64)       {}
func (nobody) AuditCheckpoint(time.Time, uint64) {}
func (nobody) AuditFailing(string, bool)         {}
