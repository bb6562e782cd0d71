package audit

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"
)

// writer is the state of the chain's end. One goroutine uses it.
type writer struct {
	cfg Config

	// lock is the chain's, nil until the writer has begun; nothing else is known then.
	lock     *os.File
	f        file // nil while there is none to write to
	number   uint64
	size     int64
	seq      uint64
	previous Hash
	id       string
	buf      []byte
	// found is what goes on record when the next file is opened, and fresh whether
	// that must be a new one. Set while f is nil.
	found *Found
	fresh bool
	// cut: what follows size in the file of this number is half a line of ours.
	cut bool

	// missing are Events that were lost since the last line that says so.
	missing uint64
	failing map[string]bool
	tallies map[tallyKey]*Event

	signing   chan signed // nil when no signature is being made
	since     int         // Events since the last checkpoint was asked for
	due       time.Time   // of the next one
	notBefore time.Time   // after a failure to sign
}

// tallyKey is what warm Decrypts that are added up have in common.
type tallyKey struct {
	key    string
	caller Caller
	source string
}

// signed is how a checkpoint that was asked for went.
type signed struct {
	checkpoint Checkpoint
	err        error
	// forgot is why the position could not be remembered; the signature stands.
	forgot error
}

// begin takes the chain for this process and finds out where it ends.
func (w *writer) begin() (err error) {
	if err := prepareDir(w.cfg.Dir); err != nil {
		return err
	}
	if w.lock, err = lock(w.cfg.Dir, w.cfg.Chain); err != nil {
		return err
	}
	if err := w.look(); err != nil {
		return errors.Join(err, w.unlock())
	}
	return nil
}

// unlock gives the chain to other processes.
func (w *writer) unlock() error {
	if w.lock == nil {
		return nil
	}
	err := w.lock.Close()
	w.lock = nil
	return err
}

// look finds out where the chain ends.
func (w *writer) look() error {
	all, err := chains(w.cfg.Dir)
	if err != nil {
		return err
	}
	var kept Position
	remembered := false
	if w.cfg.Memory != nil {
		if remembered, err = w.cfg.Memory.Load(MemoryName(w.cfg.Chain), &kept); err != nil {
			return err
		}
	}
	w.found, w.fresh = &Found{State: FoundNew, Hash: Hash{}.String()}, true
	// At once: what the run before left unsigned, and a trail that is new must not look
	// like one that somebody wrote without the key.
	w.due = w.cfg.Clock()
	files := all[w.cfg.Chain]
	switch {
	case len(files) > 0:
		if err := w.lookAt(files, kept, remembered); err != nil {
			return err
		}
	case remembered:
		w.found.State = FoundRolledBack
	}
	if w.found.State == FoundRolledBack {
		w.found.ExpectedSeq, w.found.ExpectedHash = kept.Seq, kept.Hash
	}
	if w.found.State == FoundRolledBack || w.found.State == FoundBroken {
		w.tell(PartTrail, fmt.Errorf("it was found %s; kekctl audit verify says where", w.found.State))
	}
	return nil
}

// lookAt reads the chain's last files, from that of the remembered line on.
func (w *writer) lookAt(files []chainFile, kept Position, remembered bool) error {
	from := len(files) - 1
	for from > 0 && (remembered && files[from].number > kept.File || barren(files[from])) {
		from--
	}
	o := VerifyOptions{own: true}
	if hash, err := ParseHash(kept.Hash); remembered && err == nil {
		o.Expect = map[string][]Expectation{w.cfg.Chain: {{kept.Seq, hash}}}
	}
	walk := newWalker(w.cfg.Chain, o)
	if err := walk.walk(context.Background(), files[from:]); err != nil {
		return err
	}
	partial := walk.partial
	r := walk.finish()
	last := files[len(files)-1]
	info, err := os.Stat(last.path)
	if err != nil {
		return fmt.Errorf("look for the end of the audit trail: %w", err)
	}
	w.number, w.size, w.seq, w.previous, w.id = last.number, info.Size(), r.LastSeq, walk.previous, r.ID
	w.found = &Found{State: FoundOpen, Seq: r.LastSeq, Hash: r.LastHash, Unsigned: r.UnsignedLines}
	if r.Closed {
		w.found.State = FoundClosed
	}
	for _, p := range r.Problems {
		if p.Kind == RolledBack {
			w.found.State = FoundRolledBack
		} else if w.found.State != FoundRolledBack {
			w.found.State = FoundBroken
		}
	}
	if partial != nil {
		w.found.Partial, w.found.PartialFile, w.found.PartialHash = partial.bytes, partial.file.number, partial.sum
	}
	if w.size == 0 {
		w.number-- // it is the next file, not begun yet
	}
	appendable := (w.found.State == FoundOpen || w.found.State == FoundClosed) && partial == nil && r.Lines > 0
	w.fresh = !appendable || w.size == 0 || w.size >= w.cfg.MaxFileSize
	return nil
}

// barren reports whether a file has no whole line.
func barren(f chainFile) bool {
	_, err := eachLine(f.path, func(int, []byte) error { return errStop })
	return !errors.Is(err, errStop)
}

// tell makes it known that a part fails, or works again, when that is news.
func (w *writer) tell(part string, err error) {
	if w.failing[part] == (err != nil) {
		return
	}
	w.failing[part] = err != nil
	w.cfg.Observer.AuditFailing(part, err != nil)
	if err != nil {
		w.cfg.Logger.Error("audit trail failing", zap.String("part", part), zap.Error(err))
	} else {
		w.cfg.Logger.Info("audit trail works again", zap.String("part", part))
	}
}

// pen collects lines that go to the file together.
type pen struct {
	buf      []byte
	seq      uint64
	previous Hash
	err      error
}

func (w *writer) pen() *pen { return &pen{buf: w.buf[:0], seq: w.seq, previous: w.previous} }

func (p *pen) event(e *Event) {
	start := len(p.buf)
	p.seq++
	p.buf, p.previous = seal(appendEvent(p.buf, p.seq, e), start, p.previous)
}

func (p *pen) line(typ string, at time.Time, fields Record) {
	start := len(p.buf)
	p.seq++
	buf, err := appendLine(p.buf, p.seq, typ, at, fields)
	p.err = errors.Join(p.err, err)
	p.buf, p.previous = seal(buf, start, p.previous)
}

// ready makes sure that there is a file to write to.
func (w *writer) ready() error {
	if w.f != nil && w.size < w.cfg.MaxFileSize {
		return nil
	}
	rotating := w.f != nil
	if rotating {
		if err := errors.Join(w.f.Sync(), w.f.Close()); err != nil {
			w.tell(PartWrite, err)
		}
		w.f, w.fresh = nil, true
		w.found = &Found{State: FoundResumed, Seq: w.seq, Hash: w.previous.String()}
	}
	err := w.open(!rotating)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrNotWritten, err)
	}
	w.tell(PartWrite, err)
	if err == nil && rotating {
		w.retain()
	}
	return err
}

// open opens the file that is next and writes its first lines. run: a run begins.
func (w *writer) open(run bool) error {
	check := func() error { return prepareDir(w.cfg.Dir) }
	if w.lock == nil {
		check = w.begin
	}
	if err := check(); err != nil {
		return err
	}
	number := w.number
	if w.fresh {
		number++
		if err := w.halfLine(&number); err != nil {
			return err
		}
	}
	f, err := w.cfg.create(path(w.cfg.Dir, w.cfg.Chain, number))
	if err != nil {
		return err
	}
	now := w.cfg.Clock()
	p := w.pen()
	if w.fresh {
		if w.id == "" {
			w.id = randomID()
		}
		p.line(typeFile, now, Record{File: &FileStart{
			Chain: w.cfg.Chain, ID: w.id, Number: number, Previous: w.previous.String(),
		}})
	}
	if run {
		p.line(typeRun, now, Record{Found: w.found, Run: &RunStart{
			Program: w.cfg.Program, Node: node(), Boot: bootID(), Run: randomID(), PID: os.Getpid(),
			CheckpointSeconds: w.cfg.CheckpointEvery.Seconds(), CheckpointRecords: w.cfg.CheckpointRecords,
		}})
	}
	last := w.number
	if w.fresh {
		w.number, w.size = number, 0
	}
	w.f = f
	if err := w.commit(p); err != nil {
		if w.f != nil { // it is as it was, and empty if it is new
			_ = f.Close()
			w.f = nil
		}
		if w.fresh && w.size == 0 && !w.cut {
			w.number = last
		}
		return err
	}
	w.found, w.fresh = nil, false
	return syncDir(w.cfg.Dir)
}

// halfLine puts on record what of a line of ours was written and could not be taken
// back, and counts number past files that are not empty.
func (w *writer) halfLine(number *uint64) error {
	look := func(n uint64, from int64) error {
		f, err := os.Open(path(w.cfg.Dir, w.cfg.Chain, n))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Seek(from, io.SeekStart); err != nil {
			return err
		}
		rest, err := io.ReadAll(io.LimitReader(f, 16*chunkSize))
		if err != nil || len(rest) == 0 {
			return err
		}
		sum := sha256.Sum256(rest)
		w.found.Partial, w.found.PartialFile, w.found.PartialHash = len(rest), n, hex.EncodeToString(sum[:])
		return nil
	}
	if w.cut {
		if err := look(w.number, w.size); err != nil {
			return err
		}
		w.cut = false
	}
	for {
		info, err := os.Stat(path(w.cfg.Dir, w.cfg.Chain, *number))
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		*number++
	}
}

// commit writes what a pen has collected, or nothing of it.
func (w *writer) commit(p *pen) error {
	w.buf = p.buf
	if cap(w.buf) > 4*chunkSize {
		w.buf = nil
	}
	if p.err != nil {
		return p.err
	}
	n, err := w.f.Write(p.buf)
	if err == nil && n < len(p.buf) {
		err = io.ErrShortWrite
	}
	if err != nil {
		if n > 0 && w.f.Truncate(w.size) != nil {
			w.leave(p.buf[:n])
		}
		return err
	}
	w.size += int64(len(p.buf))
	w.seq, w.previous = p.seq, p.previous
	w.forward(p.buf)
	return nil
}

// leave gives up a file that holds a part of what was to be written and can't be cut
// back. Its whole lines are part of the chain now, and the next file speaks of the
// half one.
func (w *writer) leave(written []byte) {
	if end := bytes.LastIndexByte(written, '\n') + 1; end > 0 {
		start := bytes.LastIndexByte(written[:end-1], '\n') + 1
		if _, h, err := unseal(written[start:end]); err == nil {
			w.seq += uint64(bytes.Count(written[:end], []byte{'\n'})) //nolint:gosec // G115: not negative
			w.previous = h
			w.size += int64(end)
		}
	}
	_ = w.f.Close()
	w.f, w.fresh, w.cut = nil, true, true
	if w.found == nil {
		w.found = &Found{State: FoundResumed}
	}
	w.found.Seq, w.found.Hash = w.seq, w.previous.String()
}

// forward ships lines.
func (w *writer) forward(lines []byte) {
	if w.cfg.Forward == nil {
		return
	}
	var err error
	for len(lines) > 0 {
		i := bytes.IndexByte(lines, '\n')
		if i < 0 {
			break
		}
		err = errors.Join(err, w.cfg.Forward.Forward(lines[:i]))
		lines = lines[i+1:]
	}
	w.tell(PartForward, err)
}

// drop counts Events that were lost.
func (w *writer) drop(n uint64) {
	w.missing += n
	w.cfg.Observer.AuditRecords(0, n)
}

// write writes Events, and how many were lost before them.
func (w *writer) write(events []Event) error {
	for i := 0; i < len(events) || w.missing > 0; {
		err := w.ready()
		p, written, lost := w.pen(), 0, w.missing
		if err == nil {
			if lost > 0 {
				p.line(typeLost, w.cfg.Clock(), Record{Lost: lost})
			}
			for ; i < len(events) && len(p.buf) < chunkSize; i++ {
				if w.cfg.Aggregate && events[i].warm() && w.tally(&events[i]) {
					continue
				}
				p.event(&events[i])
				written++
			}
			if p.seq == w.seq {
				continue // all of it was added up
			}
			if err = w.commit(p); err != nil {
				err = fmt.Errorf("%w: %w", ErrNotWritten, err)
			}
			w.tell(PartWrite, err)
		}
		if err != nil {
			if rest := uint64(written + len(events) - i); rest > 0 {
				w.drop(rest)
			}
			return err
		}
		w.missing -= lost
		w.since += written
		w.cfg.Observer.AuditRecords(uint64(written), 0)
	}
	return nil
}

// tally adds a warm Decrypt to its like; false when there are too many of them.
func (w *writer) tally(e *Event) bool {
	k := tallyKey{e.KeyID, e.Caller, e.Source}
	sum, ok := w.tallies[k]
	if !ok {
		if len(w.tallies) >= maxTallies {
			return false
		}
		first := *e
		first.UID, first.Count = "", 1
		w.tallies[k] = &first
		return true
	}
	sum.Count++
	sum.Time = e.Time
	sum.Latency = max(sum.Latency, e.Latency)
	return true
}

// flush writes the tallies.
func (w *writer) flush() {
	if len(w.tallies) == 0 {
		return
	}
	sums := make([]Event, 0, len(w.tallies))
	for _, e := range w.tallies {
		sums = append(sums, *e)
	}
	clear(w.tallies)
	aggregate := w.cfg.Aggregate
	w.cfg.Aggregate = false
	_ = w.write(sums) // what is lost is counted
	w.cfg.Aggregate = aggregate
}

// checkpoint asks for a signature when one is due.
func (w *writer) checkpoint() {
	now := w.cfg.Clock()
	if w.cfg.SignAtClose || w.signing != nil || now.Before(w.notBefore) || now.Before(w.due) && w.since < w.cfg.CheckpointRecords {
		return
	}
	w.flush()
	if w.f == nil || w.seq == 0 {
		return // nothing is on record
	}
	w.since, w.due = 0, now.Add(w.cfg.CheckpointEvery)
	done := make(chan signed, 1)
	w.signing = done
	c, f := w.next(false), w.f
	position, id := Position{Seq: c.Through, Hash: c.Last, File: w.number}, w.id
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), signTimeout)
		defer cancel()
		done <- w.cfg.sign(ctx, f, position, id, c)
	}()
}

// next is the checkpoint of what is written now.
func (w *writer) next(closed bool) Checkpoint {
	return Checkpoint{Through: w.seq, Last: w.previous.String(), At: w.cfg.Clock().UnixNano(), Closed: closed}
}

// sign makes what a checkpoint covers durable, remembers it, and signs it.
func (cfg *Config) sign(ctx context.Context, f file, p Position, id string, c Checkpoint) (s signed) {
	s.checkpoint = c
	if err := f.Sync(); err != nil && !errors.Is(err, os.ErrClosed) { // which synced it
		s.err = fmt.Errorf("make the audit trail durable: %w", err)
		return s
	}
	if cfg.Memory != nil {
		s.forgot = cfg.Memory.Save(MemoryName(cfg.Chain), p)
	}
	if s.err = ctx.Err(); s.err == nil {
		if cfg.Signer == nil {
			s.err = ErrNoKey
		} else {
			s.checkpoint.Signature, s.err = cfg.Signer.Sign(ctx, c.Message(id))
		}
	}
	if s.err != nil {
		s.err = fmt.Errorf("sign the audit trail: %w", s.err)
	}
	return s
}

// signed writes a checkpoint that was signed.
func (w *writer) signed(s signed) {
	w.signing = nil
	w.tell(PartMemory, s.forgot)
	err := s.err
	if err == nil && w.seq-s.checkpoint.Through >= window-1 {
		err = errors.New("sign the audit trail: too many records were written meanwhile")
	}
	w.tell(PartSign, err)
	if err == nil {
		err = w.put(s.checkpoint)
	}
	if err != nil {
		w.notBefore = w.cfg.Clock().Add(signPause)
		w.due = w.notBefore
	}
}

// put writes a checkpoint.
func (w *writer) put(c Checkpoint) error {
	if err := w.ready(); err != nil {
		return err
	}
	p := w.pen()
	p.line(typeCheckpoint, w.cfg.Clock(), Record{Signed: &c})
	err := w.commit(p)
	w.tell(PartWrite, err)
	if err == nil {
		w.cfg.Observer.AuditCheckpoint(time.Unix(0, c.At), c.Through)
	}
	return err
}

// end signs the chain's end and closes its file.
func (w *writer) end(ctx context.Context) error {
	if w.signing != nil {
		select {
		case s := <-w.signing:
			w.signed(s)
		case <-ctx.Done():
		}
	}
	w.flush()
	err := w.write(nil)
	if err == nil {
		err = w.ready()
	}
	if err == nil {
		c := w.next(true)
		// By the signature's own time limit: Close waits for it.
		ctx, cancel := context.WithTimeout(ctx, signTimeout)
		defer cancel()
		s := w.cfg.sign(ctx, w.f, Position{Seq: c.Through, Hash: c.Last, File: w.number}, w.id, c)
		w.tell(PartMemory, s.forgot)
		if err = s.err; err == nil {
			w.tell(PartSign, nil)
			err = w.put(s.checkpoint)
		}
	}
	if w.f != nil {
		err = errors.Join(err, w.f.Sync(), w.f.Close())
	}
	if w.cfg.Forward != nil {
		err = errors.Join(err, w.cfg.Forward.Close())
	}
	if err != nil {
		return fmt.Errorf("close the audit trail: %w", err)
	}
	return nil
}

// retain deletes the files that retention no longer wants, the oldest first, each
// after a line that says so is on disk.
func (w *writer) retain() {
	all, err := chains(w.cfg.Dir)
	files := all[w.cfg.Chain]
	for err == nil && len(files) > 1 && files[0].number < w.number {
		var info fs.FileInfo
		if info, err = os.Stat(files[0].path); err != nil {
			break
		}
		tooMany := w.cfg.MaxFiles > 0 && len(files) > w.cfg.MaxFiles
		tooOld := w.cfg.MaxAge > 0 && w.cfg.Clock().Sub(info.ModTime()) > w.cfg.MaxAge
		if !tooMany && !tooOld {
			return
		}
		var through uint64
		if through, err = before(files[1]); err != nil {
			break
		}
		p := w.pen()
		p.line(typeRemoved, w.cfg.Clock(), Record{Removed: &Removed{Number: files[0].number, Through: through}})
		if err = w.commit(p); err == nil {
			err = errors.Join(w.f.Sync(), os.Remove(files[0].path))
		}
		files = files[1:]
	}
	if err != nil {
		w.cfg.Logger.Error("old audit files not removed", zap.Error(err))
	}
}

// before is the number of the last line before a file.
func before(f chainFile) (seq uint64, err error) {
	_, err = eachLine(f.path, func(_ int, line []byte) error {
		r, _, _, err := parse(line)
		if err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
		seq = r.Seq - 1
		return errStop
	})
	if errors.Is(err, errStop) {
		err = nil
	}
	return seq, err
}

// randomID is 16 random bytes in hexadecimal.
func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, see its documentation
	return hex.EncodeToString(b[:])
}

func node() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}

// bootID is the kernel's id of this boot, empty where it can't be read.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
