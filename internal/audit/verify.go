package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// window is how many lines a checkpoint may come after the one that it covers.
	// Verify remembers that many hashes: 4 MiB.
	window = 1 << 17
	// maxProblems are kept for each chain; the rest is only counted.
	maxProblems = 50
)

// The kinds of a Problem.
const (
	Malformed  = "malformed"   // what is no line of the format
	Changed    = "changed"     // a line does not follow from the one before
	Missing    = "missing"     // lines or files are not there
	OutOfOrder = "order"       // a line is where it does not belong
	Foreign    = "foreign"     // a file of another chain, or at another's place
	Truncated  = "truncated"   // a file's end is missing
	BadSigned  = "signature"   // a checkpoint does not hold
	Unsigned   = "unsigned"    // too much, or all, stands behind no checkpoint
	RolledBack = "rolled-back" // the trail ends before what is remembered of it
)

// Problem is something that Verify found, and where.
type Problem struct {
	Kind string `json:"kind"`
	// File and Line are where it shows; Line is 0 for a file as a whole.
	File string `json:"file"`
	Line int    `json:"line,omitempty"`
	// Seq is the number of the line there, or of the first one that is in doubt.
	Seq  uint64 `json:"seq,omitempty"`
	Text string `json:"text"`
}

// String is the problem in one line.
func (p Problem) String() string {
	place := p.File
	if p.Line > 0 {
		place = fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	if p.Seq > 0 {
		place += fmt.Sprintf(" (sequence %d)", p.Seq)
	}
	return fmt.Sprintf("%s: %s: %s", place, p.Kind, p.Text)
}

// Report is what Verify says of one chain.
type Report struct {
	Chain string `json:"chain"`
	ID    string `json:"id"`
	Files int    `json:"files"`
	Bytes int64  `json:"bytes"`
	Lines uint64 `json:"lines"`
	// Events are the operations on record, Lost those that could not be written.
	Events uint64 `json:"events"`
	Lost   uint64 `json:"lost"`

	FirstSeq  uint64    `json:"firstSeq"`
	LastSeq   uint64    `json:"lastSeq"`
	LastHash  string    `json:"lastHash"`
	FirstTime time.Time `json:"firstTime,omitzero"`
	LastTime  time.Time `json:"lastTime,omitzero"`

	// Checkpoints are those that hold. All through SignedThrough is proven.
	Checkpoints   int       `json:"checkpoints"`
	SignedThrough uint64    `json:"signedThrough"`
	SignedHash    string    `json:"signedHash,omitempty"`
	SignedAt      time.Time `json:"signedAt,omitzero"`
	// Closed: the last line is the checkpoint of a writer that stopped.
	Closed bool `json:"closed"`
	// UnsignedLines stand behind the last checkpoint: who can write the files can
	// change or cut them off unnoticed.
	UnsignedLines uint64 `json:"unsignedLines"`

	// Problems are the first of them, Total is how many there are.
	Problems []Problem `json:"problems"`
	Total    int       `json:"problemsTotal"`
	// Notes are what the trail cannot prove.
	Notes []string `json:"notes"`
}

// OK reports whether nothing is wrong.
func (r *Report) OK() bool { return r.Total == 0 }

// Expectation is a line that is remembered elsewhere.
type Expectation struct {
	Seq  uint64
	Hash Hash
}

// VerifyOptions are for Verify.
type VerifyOptions struct {
	// Keys checks the checkpoints. Without it nothing is proven against who knows the
	// format: the report says so.
	Keys Keys
	// Expect are lines that the chain of that name must have.
	Expect map[string][]Expectation
	// AllowUnsigned makes a Note of too many unsigned lines.
	AllowUnsigned bool

	// own: a writer looks where its chain ends. What earlier runs found is no news.
	own bool
}

// Verify reads all chains of a directory, or some files, and reports on each chain.
// Files given one by one may be part of a chain; the chains of a directory must be
// whole. An error means that something could not be read.
func Verify(ctx context.Context, paths []string, o VerifyOptions) ([]*Report, error) {
	for tries := 1; ; tries++ {
		reports, err := verifyOnce(ctx, paths, o)
		if tries == 3 || !errors.Is(err, fs.ErrNotExist) {
			return reports, err
		}
		// Retention may have removed a file since the directory was listed.
	}
}

func verifyOnce(ctx context.Context, paths []string, o VerifyOptions) ([]*Report, error) {
	found, whole, err := find(paths)
	if err != nil {
		return nil, err
	}
	for name, lines := range o.Expect {
		if _, ok := found[name]; !ok && whole != "" && len(lines) > 0 {
			found[name] = nil // which is a problem, and no error
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("verify the audit trail: no audit files in %s", strings.Join(paths, ", "))
	}
	var reports []*Report
	for _, name := range slices.Sorted(maps.Keys(found)) {
		w := newWalker(name, o)
		w.whole = whole != ""
		if len(found[name]) == 0 {
			w.problem(RolledBack, whole, 0, 0, "the chain %q is remembered, and no file of it is here", name)
		}
		if err := w.walk(ctx, found[name]); err != nil {
			return nil, err
		}
		reports = append(reports, w.finish())
	}
	return reports, nil
}

// find sorts files by chain. whole is the directory, if one was given.
func find(paths []string) (found map[string][]chainFile, whole string, err error) {
	if len(paths) == 1 {
		if info, err := os.Stat(paths[0]); err == nil && info.IsDir() {
			found, err = chains(paths[0])
			return found, paths[0], err
		}
	}
	found = map[string][]chainFile{}
	for _, p := range paths {
		m := fileName.FindStringSubmatch(filepath.Base(p))
		if m == nil {
			return nil, "", fmt.Errorf("%s: want one directory, or audit files by their names, such as kekd-00000001.jsonl", p)
		}
		var n uint64
		if _, err := fmt.Sscanf(m[2], "%d", &n); err != nil {
			return nil, "", fmt.Errorf("%s: %w", p, err)
		}
		found[m[1]] = append(found[m[1]], chainFile{p, n})
	}
	for _, files := range found {
		slices.SortFunc(files, func(a, b chainFile) int { return strings.Compare(filepath.Base(a.path), filepath.Base(b.path)) })
	}
	return found, "", nil
}

// policy is how much a run leaves unsigned.
type policy struct {
	every   time.Duration
	records uint64
}

// fragment is what follows the last newline of a file.
type fragment struct {
	file  chainFile
	bytes int
	sum   string
}

// walker reads one chain.
type walker struct {
	o     VerifyOptions
	whole bool
	Report

	// last is the line read last, and previous its hash.
	seq      uint64
	previous Hash
	started  bool
	// blind: the line before was none, so the next one can't be checked against it.
	blind bool
	file  chainFile
	// numbers are the hashes of the last lines, by seq modulo window.
	numbers []uint64
	hashes  []Hash

	// signedBy is the line with the last checkpoint that holds.
	signedBy uint64

	// inForce is the policy that is signed, next one that is not yet.
	inForce policy
	next    policy
	nextSeq uint64

	// removed are the files that retention deleted, by number, with the line that says so.
	removed map[uint64]uint64
	first   uint64 // number of the first file
	partial *fragment
	met     map[uint64]bool // expectations that were met
}

func newWalker(chain string, o VerifyOptions) *walker {
	return &walker{
		o: o, Report: Report{Chain: chain, Problems: []Problem{}, Notes: []string{}},
		numbers: make([]uint64, window), hashes: make([]Hash, window),
		inForce: policy{every: time.Minute, records: 1000},
		removed: map[uint64]uint64{}, met: map[uint64]bool{},
	}
}

func (w *walker) problem(kind, file string, line int, seq uint64, format string, args ...any) {
	w.Total++
	if len(w.Problems) < maxProblems {
		w.Problems = append(w.Problems, Problem{Kind: kind, File: file, Line: line, Seq: seq, Text: fmt.Sprintf(format, args...)})
	}
}

func (w *walker) note(format string, args ...any) {
	if len(w.Notes) < maxProblems {
		w.Notes = append(w.Notes, fmt.Sprintf(format, args...))
	}
}

// walk reads the files in order.
func (w *walker) walk(ctx context.Context, files []chainFile) error {
	for i, f := range files {
		if i == 0 {
			w.first = f.number
		} else if before := files[i-1]; f.number == before.number {
			w.problem(Foreign, f.path, 0, 0, "the number %d was there already", f.number)
		} else if f.number != before.number+1 {
			w.problem(Missing, f.path, 0, w.seq+1, "the files %d to %d before this one are missing", before.number+1, f.number-1)
			w.started = false // there is nothing that it could follow from
		}
		w.file = f
		lines := 0
		rest, err := eachLine(f.path, func(n int, line []byte) error {
			lines = n
			w.Bytes += int64(len(line))
			if n%1024 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			w.line(ctx, n, line)
			return nil
		})
		if err != nil {
			return fmt.Errorf("read the audit trail: %w", err)
		}
		w.Files++
		w.Bytes += int64(len(rest))
		if lines == 0 && len(rest) == 0 && i < len(files)-1 {
			w.problem(Truncated, f.path, 0, w.seq+1, "the file is empty")
		}
		if len(rest) > 0 {
			w.unacknowledged()
			sum := sha256.Sum256(rest)
			w.partial = &fragment{f, len(rest), hex.EncodeToString(sum[:])}
		}
	}
	return nil
}

// unacknowledged reports half a line that the next run did not speak of.
func (w *walker) unacknowledged() {
	if w.partial != nil {
		w.problem(Truncated, w.partial.file.path, 0, 0, "it ends in %d bytes that are no line, and the next run did not find it so", w.partial.bytes)
		w.partial = nil
	}
}

// line reads one line.
func (w *walker) line(ctx context.Context, n int, line []byte) {
	w.Lines++
	ended := w.Closed
	w.Closed = false
	r, content, stated, ok := glance(line)
	var err error
	if !ok {
		r, content, stated, err = parse(line)
	}
	if err != nil {
		w.problem(Malformed, w.file.path, n, w.seq+1, "this is no audit line: %v", err)
		w.seq++
		w.previous = stated
		w.blind = stated == Hash{}
		return
	}
	if n == 1 || r.Type == typeFile {
		w.begin(n, r)
	}
	w.follow(n, r, content, stated)
	if ended && r.Type == typeFile {
		w.Closed = true // until the run's own line
	} else if ended && r.Type != typeRun {
		w.problem(OutOfOrder, w.file.path, n, r.Seq, "the run had ended at sequence %d, and no other has begun", w.seq)
	}
	w.started, w.blind = true, false
	w.seq, w.previous = r.Seq, stated
	w.numbers[r.Seq%window], w.hashes[r.Seq%window] = r.Seq, stated
	if w.FirstSeq == 0 {
		w.FirstSeq, w.FirstTime = r.Seq, r.Time
	}
	w.LastTime = r.Time
	switch r.Type {
	case typeEvent:
		w.Events += max(1, r.Count)
	case typeLost:
		w.Lost += r.Lost
		w.note("%s:%d (sequence %d): %d operations could not be written, and are not on record", w.file.path, n, r.Seq, r.Lost)
	case typeRemoved:
		w.removed[r.Removed.Number] = r.Seq
	case typeRun:
		w.run(n, r)
	case typeCheckpoint:
		w.checkpoint(ctx, n, r)
	}
	for _, e := range w.o.Expect[w.Chain] {
		if e.Seq == r.Seq {
			w.met[e.Seq] = true
			if e.Hash != stated {
				w.problem(RolledBack, w.file.path, n, min(r.Seq, w.SignedThrough+1), "sequence %d is another line than the one that is remembered, whose hash is %s", e.Seq, e.Hash)
			}
		}
	}
}

// begin checks a file's first line, or one that claims to be.
func (w *walker) begin(n int, r *Record) {
	name := w.file.path
	if n != 1 {
		w.problem(OutOfOrder, name, n, r.Seq, "a file begins in the middle of this one")
		return
	}
	if r.Type != typeFile {
		w.problem(Missing, name, n, w.seq+1, "the file's first line is missing")
		return
	}
	f := r.File
	if f.Chain != w.Chain || f.Number != w.file.number {
		w.problem(Foreign, name, n, r.Seq, "this is file %d of the chain %q, under another name", f.Number, f.Chain)
	}
	if w.ID != "" && f.ID != w.ID {
		w.problem(Foreign, name, n, r.Seq, "the file is of another chain (id %s, want %s)", f.ID, w.ID)
	}
	if w.ID == "" {
		w.ID = f.ID
	}
	previous, err := ParseHash(f.Previous)
	if err != nil {
		w.problem(Malformed, name, n, r.Seq, "the hash of the file before: %v", err)
	}
	switch {
	case f.Number == 1 && (f.Previous != Hash{}.String() || r.Seq != 1):
		w.problem(Foreign, name, n, r.Seq, "the first file must begin a chain")
	case w.started && !w.blind && previous != w.previous:
		w.problem(Truncated, name, n, w.seq+1,
			"the file before ends at sequence %d, this one follows sequence %d: the other's end is missing, or one of them was replaced", w.seq, r.Seq-1)
	}
	if !w.started || previous != w.previous {
		w.seq = r.Seq - 1
	}
	w.previous, w.blind = previous, false
}

// follow checks that a line follows from the one before.
func (w *walker) follow(n int, r *Record, content []byte, stated Hash) {
	name := w.file.path
	if !w.started && r.Type != typeFile {
		return // nothing is known of what was before
	}
	switch {
	case r.Seq > w.seq+1:
		w.problem(Missing, name, n, w.seq+1, "sequence %d follows %d: the lines between are missing", r.Seq, w.seq)
	case r.Seq <= w.seq:
		w.problem(OutOfOrder, name, n, r.Seq, "sequence %d follows %d: this line was repeated, inserted or moved", r.Seq, w.seq)
	case !w.blind && hashOf(w.previous, content) != stated:
		w.problem(Changed, name, n, r.Seq, "this line was changed, or is not the one that followed")
	}
}

// run checks how a run began.
func (w *walker) run(n int, r *Record) {
	w.next = policy{time.Duration(r.Run.CheckpointSeconds * float64(time.Second)), uint64(max(0, r.Run.CheckpointRecords))}
	w.nextSeq = r.Seq
	f := r.Found
	place := fmt.Sprintf("%s:%d (sequence %d)", w.file.path, n, r.Seq)
	if p := w.partial; p != nil && f.PartialFile == p.file.number && f.Partial == p.bytes && f.PartialHash == p.sum {
		w.note("%s: the run found half a line of %d bytes at the end of %s", place, f.Partial, p.file.path)
		w.partial = nil
	}
	w.unacknowledged()
	if w.o.own {
		return
	}
	switch f.State {
	case FoundOpen:
		w.note("%s: the run before ended without a signature, as in a crash: %d lines before this one were signed only afterwards, and lines that followed them may be missing", place, f.Unsigned)
		for number, seq := range w.removed {
			if seq+f.Unsigned > f.Seq {
				delete(w.removed, number) // whoever wrote that
			}
		}
	case FoundBroken:
		w.problem(Changed, w.file.path, n, f.Seq, "when this run began, the trail was broken behind sequence %d", f.Seq)
	case FoundRolledBack:
		w.problem(RolledBack, w.file.path, n, f.Seq+1, "when this run began, the trail ended at sequence %d; it had been at %d", f.Seq, f.ExpectedSeq)
	}
}

// checkpoint checks a signature.
func (w *walker) checkpoint(ctx context.Context, n int, r *Record) {
	c := r.Signed
	from := w.SignedThrough + 1
	name := w.file.path
	known := c.Through < r.Seq && c.Through > 0 && w.numbers[c.Through%window] == c.Through
	switch {
	case c.Through < w.FirstSeq && w.first > 1:
		return // it covers what was before the first file that is here
	case !known:
		w.problem(BadSigned, name, n, from, "the checkpoint covers sequence %d, which is not among the %d lines before it", c.Through, window)
		return
	case w.hashes[c.Through%window].String() != c.Last:
		w.problem(BadSigned, name, n, from, "of sequence %d to %d, at least one line is not what was signed", from, c.Through)
		return
	}
	if w.o.Keys == nil {
		w.signed(r)
		return
	}
	if err := w.o.Keys.Check(ctx, c.Message(w.ID), c.Signature); err != nil {
		w.problem(BadSigned, name, n, from, "the checkpoint over sequence %d to %d does not hold: %v", from, c.Through, err)
		return
	}
	w.signed(r)
}

// signed notes a checkpoint that holds.
func (w *walker) signed(r *Record) {
	c := r.Signed
	w.Checkpoints++
	if c.Through >= w.SignedThrough {
		w.signedBy = r.Seq
		w.SignedThrough, w.SignedHash, w.SignedAt = c.Through, c.Last, time.Unix(0, c.At).UTC()
	}
	w.Closed = c.Closed && c.Through+1 == r.Seq
	if w.nextSeq > 0 && c.Through >= w.nextSeq {
		w.inForce, w.nextSeq = w.next, 0
	}
}

// finish completes the report.
func (w *walker) finish() *Report {
	r := &w.Report
	r.LastSeq, r.LastHash = w.seq, w.previous.String()
	if r.Lines == 0 {
		return r
	}
	last := w.file.path
	if p := w.partial; p != nil && p.file == w.file {
		w.note("%s ends in %d bytes that are no line: the writer crashed, or is writing", last, p.bytes)
	} else {
		w.unacknowledged()
	}
	r.UnsignedLines = r.LastSeq - min(r.LastSeq, r.SignedThrough)
	if r.UnsignedLines > 0 && w.signedBy == r.LastSeq {
		r.UnsignedLines-- // the checkpoint itself
	}
	for _, e := range w.o.Expect[r.Chain] {
		if !w.met[e.Seq] {
			w.problem(RolledBack, last, 0, w.seq+1, "the trail ends at sequence %d, and had been at %d: its end is missing, or all of it is an old copy", w.seq, e.Seq)
		}
	}
	if w.first > 1 {
		at, said := w.removed[w.first-1]
		switch {
		case !w.whole:
			w.note("the files before number %d were not looked at", w.first)
		case !said || at > r.SignedThrough:
			w.problem(Missing, filepath.Dir(last), 0, 0, "the files 1 to %d are missing, and nothing that is signed says that retention removed them", w.first-1)
		default:
			w.note("the files 1 to %d were removed by retention", w.first-1)
		}
	}
	w.tail(last)
	return r
}

// tail judges what stands behind the last checkpoint.
func (w *walker) tail(last string) {
	r := &w.Report
	unsigned := func(format string, args ...any) {
		if w.o.AllowUnsigned {
			w.note(format, args...)
			return
		}
		w.problem(Unsigned, last, 0, r.SignedThrough+1, format, args...)
	}
	switch {
	case w.o.Keys == nil:
		w.note("no key was given: that the signatures are the token's was not checked, and without that nothing is proven against who knows the format")
	case r.SignedThrough == 0:
		unsigned("nothing is signed: who can write the files can change all of it")
	case r.UnsignedLines > 2*w.inForce.records || r.LastTime.Sub(r.SignedAt) > 3*w.inForce.every && r.UnsignedLines > 0:
		unsigned("the last %d lines, of %s, stand behind no checkpoint: who can write the files can change them or cut them off",
			r.UnsignedLines, r.LastTime.Sub(r.SignedAt).Round(time.Second))
	case r.UnsignedLines > 0:
		w.note("the last %d lines stand behind no checkpoint yet: not proven", r.UnsignedLines)
	}
	if len(w.o.Expect[r.Chain]) == 0 {
		w.note("whether the trail had gone on behind sequence %d, the files alone can't tell; compare with --expect", r.LastSeq)
	}
}
