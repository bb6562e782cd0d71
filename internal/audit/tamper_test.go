package audit

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// trail is a trail as an attacker has it: the files, and the format, but no key.
type trail struct {
	names []string
	lines [][][]byte // by file, with their newlines
}

func load(t testing.TB, dir string) *trail {
	tr := new(trail)
	for _, name := range files(t, dir) {
		tr.names = append(tr.names, filepath.Base(name))
		tr.lines = append(tr.lines, bytes.SplitAfter([]byte(strings.TrimSuffix(read(t, name), "\n")+"\n"), []byte{'\n'}))
		last := len(tr.lines) - 1
		tr.lines[last] = tr.lines[last][:len(tr.lines[last])-1] // SplitAfter ends in an empty one
	}
	return tr
}

func (tr *trail) clone() *trail {
	c := &trail{names: slices.Clone(tr.names)}
	for _, l := range tr.lines {
		c.lines = append(c.lines, slices.Clone(l))
	}
	return c
}

func (tr *trail) store(t interface{ Fatal(...any) }, dir string) {
	for i, name := range tr.names {
		if err := os.WriteFile(filepath.Join(dir, name), bytes.Join(tr.lines[i], nil), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// rechain computes all hashes and numbers anew from a line on, as who knows the
// format can. Only the signatures can't be made anew.
func (tr *trail) rechain(file, line int) {
	var previous Hash
	seq := uint64(0)
	for f := range tr.lines {
		for l, text := range tr.lines[f] {
			r, content, h, err := parse(text)
			if err != nil {
				return
			}
			seq++
			if f > file || f == file && l >= line {
				if l == 0 && r.File != nil { // the hash of the file before stands in the line
					content = bytes.Replace(content, []byte(r.File.Previous), []byte(previous.String()), 1)
				}
				content = bytes.Replace(content, fmt.Appendf(nil, `"seq":%d,`, r.Seq), fmt.Appendf(nil, `"seq":%d,`, seq), 1)
				tr.lines[f][l], h = seal(bytes.Clone(content), 0, previous)
			}
			previous = h
		}
	}
}

// makeTrail writes a closed trail of several files and checkpoints.
func makeTrail(t testing.TB, signer *softSigner) string {
	dir, watch := t.TempDir(), new(tally)
	l := open(t, settings(dir, signer, func(c *Config) {
		c.MaxFileSize, c.CheckpointRecords, c.Observer = 4096, 7, watch
	}))
	for i := range 60 {
		e := sample()
		e.UID = fmt.Sprintf("uid-%d", i)
		must(t, l.RecordWait(t.Context(), e))
		if (i+1)%7 == 0 { // a signature comes at its place, not when the machine gets to it
			eventually(t, "a checkpoint", func() bool { _, signed := watch.counts(); return signed+5 > uint64(i) })
		}
	}
	must(t, l.Close(t.Context()))
	wantOK(t, verify(t, dir, VerifyOptions{Keys: signer.keys()}))
	return dir
}

// Whatever is done to a signed trail, at whatever place, with the hashes made anew or
// not, is found; and the place that is named is not behind the harm nor further before
// it than the last checkpoint.
func TestTamperingIsFound(t *testing.T) {
	signer := newSigner(t)
	source := makeTrail(t, signer)
	whole := load(t, source)
	report := verify(t, source, VerifyOptions{Keys: signer.keys()})
	hash, err := ParseHash(report.LastHash)
	must(t, err)
	expect := map[string][]Expectation{"kekd": {{report.LastSeq, hash}}}
	if len(whole.names) < 4 || report.Checkpoints < 4 {
		t.Fatalf("%d files and %d checkpoints are too few", len(whole.names), report.Checkpoints)
	}
	first := map[int]uint64{} // the number of a file's first line
	n := uint64(1)
	for f := range whole.lines {
		first[f] = n
		n += uint64(len(whole.lines[f]))
	}
	kinds := map[string]int{}
	rapid.Check(t, func(r *rapid.T) {
		tr := whole.clone()
		f := rapid.IntRange(0, len(tr.lines)-1).Draw(r, "file")
		l := rapid.IntRange(0, len(tr.lines[f])-1).Draw(r, "line")
		kind := rapid.SampledFrom([]string{"edit", "flip", "delete", "swap", "repeat", "insert", "truncate", "truncate-all", "remove-file", "replay", "rename", "forge", "noise"}).Draw(r, "kind")
		anew := rapid.Bool().Draw(r, "rechain")
		file, line := f, l
		switch kind {
		case "edit": // what an insider would want gone
			text := bytes.Replace(tr.lines[f][l], []byte(`"result":"ok"`), []byte(`"result":"no"`), 1)
			if bytes.Equal(text, tr.lines[f][l]) {
				text = bytes.Replace(text, []byte(`T`), []byte(`t`), 1)
			}
			if bytes.Equal(text, tr.lines[f][l]) {
				return
			}
			tr.lines[f][l] = text
		case "flip":
			text := bytes.Clone(tr.lines[f][l])
			i := rapid.IntRange(0, len(text)-2).Draw(r, "byte")
			text[i] ^= byte(1 << rapid.IntRange(0, 7).Draw(r, "bit"))
			tr.lines[f][l] = text
			anew = false
		case "delete":
			tr.lines[f] = slices.Delete(tr.lines[f], l, l+1)
		case "swap":
			if l+1 >= len(tr.lines[f]) {
				return
			}
			tr.lines[f][l], tr.lines[f][l+1] = tr.lines[f][l+1], tr.lines[f][l]
		case "repeat":
			tr.lines[f] = slices.Insert(tr.lines[f], l, tr.lines[f][l])
			line++
		case "insert":
			forged, _ := seal(appendEvent(nil, first[f]+uint64(l), &Event{Time: time.Now(), Operation: Destroy, Result: OK}), 0, Hash{})
			tr.lines[f] = slices.Insert(tr.lines[f], l, forged)
		case "truncate":
			tr.lines[f] = tr.lines[f][:l]
		case "truncate-all": // everything from here on
			tr.lines, tr.names = tr.lines[:f+1], tr.names[:f+1]
			tr.lines[f] = tr.lines[f][:l]
			if l == 0 {
				tr.lines, tr.names = tr.lines[:f], tr.names[:f]
			}
			if f == 0 {
				return // nothing to verify
			}
		case "remove-file":
			tr.lines, tr.names = slices.Delete(tr.lines, f, f+1), slices.Delete(tr.names, f, f+1)
			file, line = f, 0
		case "replay": // an earlier state of one file
			if l == 0 || l == len(tr.lines[f])-1 && f < len(tr.lines)-1 {
				l = 1
			}
			tr.lines[f] = tr.lines[f][:min(l, len(tr.lines[f])-1)]
		case "rename":
			g := (f + 1) % len(tr.names)
			tr.lines[f], tr.lines[g] = tr.lines[g], tr.lines[f]
			file, line, anew = min(f, g), 0, false
		case "forge": // signed by a key of one's own
			other := newSigner(t)
			i := slices.IndexFunc(tr.lines[f], func(b []byte) bool { return bytes.Contains(b, []byte(`"type":"checkpoint"`)) })
			if i < 0 {
				return
			}
			line = i
			p, _, _, err := parse(tr.lines[f][i])
			if err != nil {
				r.Fatal(err)
			}
			s, err := other.Sign(t.Context(), p.Signed.Message(report.ID))
			if err != nil {
				r.Fatal(err)
			}
			p.Signed.Signature = s
			text, err := appendLine(nil, p.Seq, typeCheckpoint, p.Time, Record{Signed: p.Signed})
			if err != nil {
				r.Fatal(err)
			}
			tr.lines[f][i], _ = seal(text, 0, Hash{})
			anew = true
		case "noise":
			tr.lines[f] = slices.Insert(tr.lines[f], l, []byte("not a line at all\n"))
			anew = false
		}
		if anew {
			tr.rechain(file, line)
		}
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			r.Fatal(err)
		}
		tr.store(r, dir)
		reports, err := Verify(t.Context(), []string{dir}, VerifyOptions{Keys: signer.keys(), Expect: expect})
		if err != nil {
			r.Fatal(err)
		}
		got := reports[0]
		if got.OK() {
			r.Fatalf("%s at file %d line %d (hashes anew: %t) was not found: %+v", kind, f, l, anew, got)
		}
		kinds[fmt.Sprintf("%s anew=%t", kind, anew)]++
		p := got.Problems[0]
		harm := first[min(f, len(first)-1)] + uint64(l)
		if kind == "rename" || kind == "remove-file" || kind == "replay" || kind == "forge" {
			harm = first[min(file, len(first)-1)]
		}
		if p.File == "" || p.Text == "" {
			r.Fatalf("%s: no place is named: %+v", kind, p)
		}
		// A signature tells of all since the last one: 7 records and what came meanwhile.
		if p.Seq > 0 && kind != "replay" && kind != "forge" && kind != "rename" && (p.Seq > harm+2 || p.Seq+30 < harm) {
			r.Fatalf("%s at sequence %d (hashes anew: %t): the place named is %s", kind, harm, anew, p)
		}
	})
	t.Logf("found: %v", kinds)
}
