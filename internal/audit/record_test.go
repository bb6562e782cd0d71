package audit

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden trail anew; never for a version that was released")

// The bytes of version 1, as they were released: what was written then must verify
// for ever, and what is written now must be the same.
func TestGoldenTrail(t *testing.T) {
	at := time.Date(2026, 11, 2, 3, 4, 5, 678900000, time.UTC)
	p := new(pen)
	p.line(typeFile, at, Record{File: &FileStart{
		Chain: "kekd", ID: "000102030405060708090a0b0c0d0e0f", Number: 1, Previous: Hash{}.String(),
	}})
	p.line(typeRun, at, Record{
		Run: &RunStart{Program: "kekd v1", Node: "cp-1", Boot: "2d1a5b0e-8f7f-4c53-9a4e-4a3b1c0d9e8f", Run: "f0e0d0c0b0a090807060504030201000", PID: 7,
			CheckpointSeconds: 60, CheckpointRecords: 1000},
		Found: &Found{State: FoundOpen, Seq: 9, Hash: strings.Repeat("ab", 32), Unsigned: 3, Partial: 5, PartialFile: 1, PartialHash: strings.Repeat("cd", 32)},
	})
	e := sample()
	e.Time = at.Add(time.Second)
	p.event(&e)
	p.event(&Event{Time: at, Operation: Decrypt, UID: "\"\\\x00\x7fé\u2028😀\xff", Result: "corrupt", Count: 3, Detail: "<&>", Source: FromHSM})
	p.line(typeLost, at, Record{Lost: 4})
	p.line(typeRemoved, at, Record{Removed: &Removed{Number: 1, Through: 99}})
	p.line(typeCheckpoint, at, Record{Signed: &Checkpoint{
		Through: 6, Last: p.previous.String(), At: at.UnixNano(), Closed: true,
		Signature: Signature{Key: strings.Repeat("ef", 32), Algorithm: ECDSA, Value: []byte("signature")},
	}})
	must(t, p.err)
	golden := filepath.Join("testdata", "v1.jsonl")
	if *update {
		must(t, os.WriteFile(golden, p.buf, 0o600))
	}
	if diff := cmp.Diff(read(t, golden), string(p.buf)); diff != "" {
		t.Errorf("version 1 is written otherwise (-golden +now):\n%s", diff)
	}
	message := (&Checkpoint{Through: 6, Last: strings.Repeat("0", 64), At: 1, Closed: true}).Message("id")
	if want := "kekd audit checkpoint v1\nchain id\nthrough 6\nlast " + strings.Repeat("0", 64) + "\nat 1\nclosed true\n"; string(message) != want {
		t.Errorf("the signed message is %q", message)
	}
	dir := t.TempDir()
	must(t, os.WriteFile(path(dir, "kekd", 1), []byte(read(t, golden)), 0o600))
	r := verify(t, dir, VerifyOptions{})
	wantOK(t, r)
	if r.Events != 4 || r.Lost != 4 || !r.Closed {
		t.Errorf("the golden trail reads as %+v", r)
	}
}

// An Event's line is the JSON of the Record that is read from it.
func TestEventsAreJSON(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 80), func(b []byte) string { return string(b) }))
		e := Event{
			Time: time.Unix(rapid.Int64Range(0, 1<<35).Draw(r, "s"), rapid.Int64Range(0, 1e9-1).Draw(r, "ns")).UTC(), Operation: text.Draw(r, "operation"),
			UID: text.Draw(r, "uid"), KeyID: text.Draw(r, "key"), Result: text.Draw(r, "result"), Detail: text.Draw(r, "detail"),
			Source: text.Draw(r, "source"), Latency: time.Duration(rapid.Int64().Draw(r, "latency")), Count: rapid.Uint64().Draw(r, "count"),
			Called: rapid.Bool().Draw(r, "called"), Caller: Caller{UID: rapid.Uint32().Draw(r, "uid"), PID: rapid.Int32().Draw(r, "pid")},
		}
		line, _ := seal(appendEvent(nil, 7, &e), 0, Hash{})
		got, _, h, err := parse(line)
		if err != nil {
			r.Fatalf("%s: %v", line, err)
		}
		if quick, _, _, ok := glance(line); e.Operation != "" && (!ok || quick.Seq != 7 || quick.Count != e.Count || !quick.Time.Equal(e.Time)) {
			r.Fatalf("a glance at %s sees %+v", line, quick)
		}
		valid := func(s string) string { return strings.ToValidUTF8(cut(s), "") }
		same := func(want, got string) bool { return valid(want) == strings.ReplaceAll(got, "\ufffd", "") }
		if strings.Contains(e.UID+e.KeyID+e.Detail, "\ufffd") {
			return // which could be either
		}
		if !same(e.UID, got.UID) || !same(e.KeyID, got.KeyID) || !same(e.Detail, got.Detail) || got.LatencyNS != int64(e.Latency) ||
			got.Count != e.Count || !got.Time.Equal(e.Time) || (got.Caller != nil) != e.Called || got.HashText != h.String() {
			r.Fatalf("%+v was written as %s", e, line)
		}
		if got.Caller != nil && *got.Caller != e.Caller {
			r.Fatalf("%+v was written as %s", e, line)
		}
	})
}

// cut is what is kept of a text.
func cut(s string) string { return s[:min(len(s), maxText)] }

// FuzzParse feeds the parser with anything: it never panics, and what it accepts has
// the hash at its end and is of the format.
func FuzzParse(f *testing.F) {
	golden, err := os.ReadFile(filepath.Join("testdata", "v1.jsonl"))
	if err != nil {
		f.Fatal(err)
	}
	for line := range bytes.Lines(golden) {
		f.Add(line)
	}
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, content, h, err := parse(line)
		if err != nil {
			return
		}
		again, _ := json.Marshal(r)
		if r.V != Version || r.Seq == 0 || !bytes.HasPrefix(line, content) || !bytes.HasSuffix(line, []byte(h.String()+"\"}\n")) || len(again) == 0 {
			t.Errorf("accepted %q as %+v", line, r)
		}
	})
}

// FuzzVerify reads any bytes as a file: no panic, and nothing that is not a trail holds.
func FuzzVerify(f *testing.F) {
	golden, err := os.ReadFile(filepath.Join("testdata", "v1.jsonl"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Add(golden[:len(golden)/2])
	f.Add(bytes.Repeat([]byte("x"), 3*MaxLine))
	key := newSigner(f).keys()
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content []byte) {
		must(t, os.WriteFile(path(dir, "kekd", 1), content, 0o600))
		if r := verify(t, dir, VerifyOptions{Keys: key}); r.OK() && r.Lines > 0 {
			t.Errorf("a trail that nobody signed holds: %q", content)
		}
	})
}
