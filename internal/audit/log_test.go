package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What is recorded is read back, signed and closed; a second run goes on in the file.
func TestRecordAndVerify(t *testing.T) {
	dir, signer := t.TempDir(), newSigner(t)
	for range 2 {
		l := open(t, settings(dir, signer))
		for range 100 {
			l.Record(sample())
		}
		must(t, l.RecordWait(t.Context(), sample()))
		must(t, l.Close(t.Context()))
	}
	r := verify(t, dir, VerifyOptions{Keys: signer.keys()})
	wantOK(t, r)
	// Each run: its first line, a checkpoint at once and one at its end; the first one
	// also begins the file.
	if r.Events != 202 || r.Lines != 209 || r.LastSeq != 209 || r.Checkpoints != 4 || !r.Closed || r.UnsignedLines != 0 || r.Files != 1 {
		t.Errorf("got %+v", r)
	}
	var got []Record
	_, err := Query(t.Context(), []string{dir}, Filter{Operations: []string{Decrypt}, Limit: 1}, func(_ string, r *Record, _ []byte) error {
		got = append(got, *r)
		return nil
	})
	must(t, err)
	e := sample()
	want := []Record{{
		V: 1, Seq: got[0].Seq, Type: typeEvent, Time: got[0].Time, Operation: e.Operation, UID: e.UID, Caller: &e.Caller, KeyID: e.KeyID,
		Result: e.Result, LatencyNS: 31000, Source: e.Source, HashText: got[0].HashText,
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the first event (-want +got):\n%s", diff)
	}
}

// After so many records, and after so much time, a checkpoint is signed.
func TestCheckpointsFallDue(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"records": func(c *Config) { c.CheckpointRecords = 10 },
		"time":    func(c *Config) { c.CheckpointEvery = 20 * time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			dir, signer, watch := t.TempDir(), newSigner(t), new(tally)
			l := open(t, settings(dir, signer, change, func(c *Config) { c.Observer = watch }))
			for range 25 {
				must(t, l.RecordWait(t.Context(), sample()))
			}
			eventually(t, "a checkpoint of these", func() bool { _, signed := watch.counts(); return signed > 10 })
			r := verify(t, dir, VerifyOptions{Keys: signer.keys(), AllowUnsigned: true})
			wantOK(t, r)
			if r.Checkpoints == 0 {
				t.Error("no checkpoint that holds")
			}
			must(t, l.Close(t.Context()))
			wantOK(t, verify(t, dir, VerifyOptions{Keys: signer.keys()}))
		})
	}
}

// While the HSM is away the chain goes on, and is signed when it is back.
func TestHSMAway(t *testing.T) {
	dir, signer, watch := t.TempDir(), newSigner(t), new(tally)
	signer.fail(errAway)
	cfg := settings(dir, signer, func(c *Config) { c.CheckpointRecords, c.Observer = 1, watch })
	l := open(t, cfg)
	must(t, l.RecordWait(t.Context(), sample()))
	eventually(t, "an alarm", func() bool { return watch.fails(PartSign) })
	must(t, l.RecordWait(t.Context(), sample()))
	if r := verify(t, dir, VerifyOptions{Keys: signer.keys()}); r.OK() || r.Problems[0].Kind != Unsigned {
		t.Errorf("a trail without a signature verifies: %+v", r)
	}
	signer.fail(nil)
	must(t, l.Close(t.Context()))
	if watch.fails(PartSign) {
		t.Error("the alarm stands after a signature")
	}
	wantOK(t, verify(t, dir, VerifyOptions{Keys: signer.keys()}))

	signer.fail(errAway)
	l = open(t, cfg)
	if err := l.Close(t.Context()); !errors.Is(err, errAway) {
		t.Errorf("closed without a signature: %v", err)
	}
}

// Files end at their size; the old ones are removed, which the trail tells.
func TestRotationAndRetention(t *testing.T) {
	dir, signer := t.TempDir(), newSigner(t)
	l := open(t, settings(dir, signer, func(c *Config) { c.MaxFileSize, c.MaxFiles = 4096, 3 }))
	for range 200 {
		must(t, l.RecordWait(t.Context(), sample()))
	}
	must(t, l.Close(t.Context()))
	if n := len(files(t, dir)); n != 3 {
		t.Errorf("%d files, want 3", n)
	}
	r := verify(t, dir, VerifyOptions{Keys: signer.keys()})
	wantOK(t, r)
	if !strings.Contains(strings.Join(r.Notes, "\n"), "removed by retention") {
		t.Errorf("no note of the files that retention removed: %q", r.Notes)
	}
	// What retention did not remove is missed.
	must(t, os.Remove(files(t, dir)[0]))
	if r := verify(t, dir, VerifyOptions{Keys: signer.keys()}); r.OK() || r.Problems[0].Kind != Missing {
		t.Errorf("a removed file is not missed: %+v", r)
	}
}

// Old files go by their age, too.
func TestRetentionByAge(t *testing.T) {
	dir, signer := t.TempDir(), newSigner(t)
	l := open(t, settings(dir, signer, func(c *Config) { c.MaxFileSize, c.MaxAge = 4096, time.Hour }))
	for range 50 {
		must(t, l.RecordWait(t.Context(), sample()))
	}
	before := len(files(t, dir))
	old := time.Now().Add(-2 * time.Hour)
	must(t, os.Chtimes(files(t, dir)[0], old, old))
	for len(files(t, dir)) > 0 && files(t, dir)[0] == path(dir, "kekd", 1) {
		must(t, l.RecordWait(t.Context(), sample()))
	}
	must(t, l.Close(t.Context()))
	if before < 2 || len(files(t, dir)) < 2 {
		t.Errorf("%d files before, %d after", before, len(files(t, dir)))
	}
	wantOK(t, verify(t, dir, VerifyOptions{Keys: signer.keys()}))
}

// Warm decrypts are added up where that is configured, and nothing else is.
func TestAggregate(t *testing.T) {
	dir, signer, watch := t.TempDir(), newSigner(t), new(tally)
	l := open(t, settings(dir, signer, func(c *Config) { c.Aggregate, c.Observer = true, watch }))
	// The sums are written with a checkpoint, and the first one is due at once.
	eventually(t, "the first checkpoint", func() bool { _, signed := watch.counts(); return signed > 0 })
	for i := range 1000 {
		e := sample()
		e.UID, e.Latency = fmt.Sprint(i), time.Duration(i)
		l.Record(e)
	}
	failed := sample()
	failed.Result = "corrupt"
	l.Record(failed)
	must(t, l.Close(t.Context()))
	var got []string
	_, err := Query(t.Context(), []string{dir}, Filter{}, func(_ string, r *Record, _ []byte) error {
		got = append(got, fmt.Sprintf("%s %s %d %d", r.Operation, r.Result, r.Count, r.LatencyNS))
		return nil
	})
	must(t, err)
	if diff := cmp.Diff([]string{"decrypt corrupt 0 31000", "decrypt ok 1000 999"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	r := verify(t, dir, VerifyOptions{Keys: signer.keys()})
	wantOK(t, r)
	if r.Events != 1001 {
		t.Errorf("%d operations on record, want 1001", r.Events)
	}
}

// disk is a file system with room for so many bytes.
type disk struct {
	mu    sync.Mutex
	room  int
	stuck bool // a file can't be cut back either
}

func (d *disk) set(room int, stuck bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room, d.stuck = room, stuck
}

func (d *disk) create(name string) (file, error) {
	f, err := create(name)
	return &diskFile{f, d}, err
}

type diskFile struct {
	file
	disk *disk
}

func (f *diskFile) Write(b []byte) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if len(b) > f.disk.room {
		n, _ := f.file.Write(b[:f.disk.room])
		f.disk.room = 0
		return n, syscall.ENOSPC
	}
	f.disk.room -= len(b)
	return f.file.Write(b)
}

func (f *diskFile) Truncate(size int64) error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.disk.stuck {
		return io.ErrClosedPipe
	}
	return f.file.Truncate(size)
}

// A full disk: who waits is told, who does not is counted, and the trail says how
// many are missing and verifies, whether half a line stayed behind or not.
func TestFullDisk(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		for _, room := range []int{0, 150, 700, 3000} { // at the start, in its lines, behind them
			t.Run(fmt.Sprintf("stuck=%t room=%d", stuck, room), func(t *testing.T) {
				dir, signer, watch, d := t.TempDir(), newSigner(t), new(tally), new(disk)
				d.set(room, stuck)
				l := open(t, settings(dir, signer, func(c *Config) { c.Observer, c.create = watch, d.create }))
				ok, refused := 0, 0
				for range 20 {
					switch err := l.RecordWait(t.Context(), sample()); {
					case err == nil:
						ok++
					case errors.Is(err, ErrNotWritten):
						refused++
					default:
						t.Fatal(err)
					}
				}
				if refused == 0 || !watch.fails(PartWrite) {
					t.Fatalf("%d records were refused, failing %t", refused, watch.fails(PartWrite))
				}
				l.Record(sample()) // which is lost
				eventually(t, "the loss", func() bool { lost, _ := watch.counts(); return lost == uint64(refused)+1 })
				d.set(1<<20, false)
				must(t, l.RecordWait(t.Context(), sample()))
				must(t, l.Close(t.Context()))
				r := verify(t, dir, VerifyOptions{Keys: signer.keys()})
				wantOK(t, r)
				// A record whose caller was told that it is not there may be there all the same.
				if r.Lost != uint64(refused)+1 || r.Events < uint64(ok)+1 || !stuck && r.Events > uint64(ok)+1 || watch.fails(PartWrite) {
					t.Errorf("%d lost and %d on record, want %d and %d; failing %t", r.Lost, r.Events, refused+1, ok+1, watch.fails(PartWrite))
				}
			})
		}
	}
}

// A crash in the middle of a line: the next run finds it so and says it; nothing is
// dropped in silence. Whatever was cut off, the next run can go on.
func TestCrash(t *testing.T) {
	dir, signer := t.TempDir(), newSigner(t)
	l := open(t, settings(dir, signer))
	for range 3 {
		must(t, l.RecordWait(t.Context(), sample()))
	}
	whole := read(t, files(t, dir)[0]) // as SIGKILL leaves it
	must(t, l.Close(t.Context()))
	for cut := range whole {
		if cut%7 != 0 && whole[max(0, cut-1)] != '\n' && whole[cut] != '\n' {
			continue
		}
		dir := t.TempDir()
		must(t, os.WriteFile(path(dir, "kekd", 1), []byte(whole[:cut]), 0o600))
		l := open(t, settings(dir, signer))
		must(t, l.RecordWait(t.Context(), sample()))
		must(t, l.Close(t.Context()))
		r := verify(t, dir, VerifyOptions{Keys: signer.keys()})
		if !r.OK() {
			t.Fatalf("cut at byte %d of %d: %v", cut, len(whole), r.Problems)
		}
		if halfLine := cut > 0 && whole[cut-1] != '\n'; halfLine != strings.Contains(strings.Join(r.Notes, "\n"), "half a line") {
			t.Fatalf("cut at byte %d of %d: notes %q", cut, len(whole), r.Notes)
		}
		if got := read(t, path(dir, "kekd", 1)); !strings.HasPrefix(got, whole[:cut]) {
			t.Fatalf("cut at byte %d of %d: the next run changed what it found", cut, len(whole))
		}
	}
}

// An old copy of the whole trail is noticed by the next run, and by --expect.
func TestRollback(t *testing.T) {
	dir, signer, mem, watch := t.TempDir(), newSigner(t), new(memory), new(tally)
	cfg := settings(dir, signer, func(c *Config) { c.Memory, c.Observer = mem, watch })
	run := func() {
		l := open(t, cfg)
		must(t, l.RecordWait(t.Context(), sample()))
		must(t, l.Close(t.Context()))
	}
	run()
	old := read(t, files(t, dir)[0])
	run()
	now := verify(t, dir, VerifyOptions{Keys: signer.keys()})
	hash, err := ParseHash(now.LastHash)
	must(t, err)
	expect := map[string][]Expectation{"kekd": {{now.LastSeq, hash}}}
	wantOK(t, verify(t, dir, VerifyOptions{Keys: signer.keys(), Expect: expect}))

	must(t, os.WriteFile(files(t, dir)[0], []byte(old), 0o600))
	wantOK(t, verify(t, dir, VerifyOptions{Keys: signer.keys()})) // the files alone can't tell
	if r := verify(t, dir, VerifyOptions{Keys: signer.keys(), Expect: expect}); r.OK() || r.Problems[0].Kind != RolledBack {
		t.Errorf("an old copy meets the expectation: %+v", r.Problems)
	}
	run()
	if !watch.fails(PartTrail) {
		t.Error("no alarm when a run finds an old copy")
	}
	for range 2 { // it stays on record, and is told once
		if r := verify(t, dir, VerifyOptions{Keys: signer.keys()}); r.Total != 1 || r.Problems[0].Kind != RolledBack {
			t.Errorf("the rollback is not on record: %v", r.Problems)
		}
		run()
	}
	for _, name := range files(t, dir) {
		must(t, os.Remove(name))
	}
	run()
	if r := verify(t, dir, VerifyOptions{Keys: signer.keys()}); r.OK() || r.Problems[0].Kind != RolledBack {
		t.Errorf("all files were removed, which is not on record: %v", r.Problems)
	}
}

// Lines that were tampered with while nobody wrote: the next run says so, goes on
// behind them in a file of its own, and the place is still named.
func TestBrokenTrailIsFound(t *testing.T) {
	dir, signer, watch := t.TempDir(), newSigner(t), new(tally)
	cfg := settings(dir, signer, func(c *Config) { c.Observer = watch })
	for range 3 {
		l := open(t, cfg)
		must(t, l.RecordWait(t.Context(), sample()))
		must(t, l.Close(t.Context()))
	}
	name := files(t, dir)[0]
	must(t, os.WriteFile(name, []byte(strings.Replace(read(t, name), `"result":"ok"`, `"result":"no"`, 1)), 0o600))
	l := open(t, cfg)
	must(t, l.RecordWait(t.Context(), sample()))
	must(t, l.Close(t.Context()))
	if !watch.fails(PartTrail) || len(files(t, dir)) != 2 {
		t.Errorf("told %t, %d files", watch.fails(PartTrail), len(files(t, dir)))
	}
	r := verify(t, dir, VerifyOptions{Keys: signer.keys()})
	if r.Total != 2 || r.Problems[0].Kind != Changed || r.Problems[0].Line != 3 || !strings.Contains(r.Problems[1].Text, "when this run began, the trail was broken") {
		t.Errorf("found %v", r.Problems)
	}
}

// forgetful is a Memory on a full disk.
type forgetful struct{ memory }

func (*forgetful) Save(string, any) error { return syscall.ENOSPC }

// A state directory that takes nothing is told, and keeps nobody from signing.
func TestForgetful(t *testing.T) {
	dir, signer, watch := t.TempDir(), newSigner(t), new(tally)
	l := open(t, settings(dir, signer, func(c *Config) { c.Memory, c.Observer = new(forgetful), watch }))
	must(t, l.RecordWait(t.Context(), sample()))
	must(t, l.Close(t.Context()))
	r := verify(t, dir, VerifyOptions{Keys: signer.keys()})
	wantOK(t, r)
	if !r.Closed || !watch.fails(PartMemory) {
		t.Errorf("closed %t, told %t", r.Closed, watch.fails(PartMemory))
	}
}

// Two writers of one chain would tear it.
func TestLocked(t *testing.T) {
	dir, signer := t.TempDir(), newSigner(t)
	l := open(t, settings(dir, signer))
	if _, err := Open(settings(dir, signer)); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second writer: %v", err)
	}
	must(t, l.Close(t.Context()))
	must(t, l.Close(t.Context()))
	if err := l.RecordWait(t.Context(), sample()); !errors.Is(err, ErrNotWritten) {
		t.Errorf("a record after the end: %v", err)
	}
	must(t, os.Chmod(dir, 0o777))
	if _, err := Open(settings(dir, signer)); err == nil {
		t.Error("a directory that anybody can write to was taken")
	}
}

// Many at once: each record is there once, the numbers have no gap.
func TestConcurrent(t *testing.T) {
	dir, signer := t.TempDir(), newSigner(t)
	l := open(t, settings(dir, signer, func(c *Config) { c.MaxFileSize, c.CheckpointRecords = 64<<10, 100 }))
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range 250 {
				if i%2 == 0 {
					l.Record(sample())
				} else if err := l.RecordWait(context.Background(), sample()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	must(t, l.Close(t.Context()))
	r := verify(t, dir, VerifyOptions{Keys: signer.keys()})
	wantOK(t, r)
	if r.Events != 2000 || r.Lost != 0 || r.Checkpoints < 2 {
		t.Errorf("%d on record, %d lost, %d checkpoints", r.Events, r.Lost, r.Checkpoints)
	}
}
