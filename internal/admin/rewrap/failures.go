package rewrap

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// Failure is an object that is not under the primary at the end.
type Failure struct {
	// Key is the object's key in etcd.
	Key    string `json:"key"`
	Kind   Kind   `json:"kind"`
	Reason string `json:"reason"`
}

const (
	// maxObjects bounds Result.Objects.
	maxObjects = 1000
	// maxShown bounds Result.Shown for each kind.
	maxShown = 20
)

// failures are the objects that could not be rewritten. A cluster may have very many,
// so only a digest of each key stays in memory, and the rest goes to a file.
type failures struct {
	spill *spill
	seen  map[digest]place
}

type digest [16]byte

func digestOf(key string) digest {
	sum := sha256.Sum256([]byte(key))
	return digest(sum[:16])
}

// place is where a failure is in the file.
type place struct {
	offset int64
	kind   Kind
	// tries is how often the object was tried, in goes.
	tries int
}

func newFailures() *failures { return &failures{spill: new(spill), seen: map[digest]place{}} }

// add notes one more go that ended in a failure.
func (f *failures) add(failure Failure) error {
	d := digestOf(failure.Key)
	offset, err := f.spill.add(failure)
	if err != nil {
		return err
	}
	f.seen[d] = place{offset, failure.Kind, f.seen[d].tries + 1}
	return nil
}

// find returns where an object's last failure is noted.
func (f *failures) find(key string) (place, bool) {
	p, ok := f.seen[digestOf(key)]
	return p, ok
}

// forget takes an object that could be rewritten after all off the list.
func (f *failures) forget(key string) { delete(f.seen, digestOf(key)) }

// load reads a failure back.
func (f *failures) load(p place) (Failure, error) { return f.spill.load(p.offset) }

// each calls visit for the last failure of each object.
func (f *failures) each(visit func(Failure) error) error {
	return f.spill.each(func(offset int64, failure Failure) error {
		if p, ok := f.find(failure.Key); !ok || p.offset != offset {
			return nil
		}
		return visit(failure)
	})
}

// spill is a file of JSON lines. The file is made when it is needed.
type spill struct {
	file *os.File
	size int64
}

func (s *spill) add(f Failure) (offset int64, err error) {
	if s.file == nil {
		if s.file, err = unnamedFile(); err != nil {
			return 0, fmt.Errorf("note what could not be rewritten: %w", err)
		}
	}
	line, err := json.Marshal(f)
	if err != nil {
		return 0, err
	}
	offset = s.size
	n, err := s.file.Write(append(line, '\n'))
	s.size += int64(n)
	if err != nil {
		return 0, fmt.Errorf("note what could not be rewritten: %w", err)
	}
	return offset, nil
}

// unnamedFile makes a file that is gone when it is closed.
func unnamedFile() (*os.File, error) {
	file, err := os.CreateTemp("", "kekctl-rewrap-")
	if err != nil {
		return nil, err
	}
	return file, os.Remove(file.Name())
}

func (s *spill) load(offset int64) (Failure, error) {
	var f Failure
	err := json.NewDecoder(io.NewSectionReader(s.file, offset, s.size-offset)).Decode(&f)
	return f, err
}

func (s *spill) each(visit func(offset int64, f Failure) error) error {
	if s.file == nil {
		return nil
	}
	lines := json.NewDecoder(io.NewSectionReader(s.file, 0, s.size))
	offset := int64(0)
	for {
		var f Failure
		if err := lines.Decode(&f); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := visit(offset, f); err != nil {
			return err
		}
		offset = lines.InputOffset() + 1 // and the newline
	}
}

func (s *spill) reset() error {
	if s.file == nil || s.size == 0 {
		return nil
	}
	if _, err := s.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	s.size = 0
	return s.file.Truncate(0)
}

func (s *spill) close() {
	if s.file != nil {
		_ = s.file.Close()
	}
}

// list is what Result tells of the objects that are left.
type list struct {
	spill   *spill
	objects []Failure
	kinds   map[Kind]int64
	shown   map[Kind][]Failure
	total   int64
}

// newList makes a list. With a path its file has that name; it is made at once, so
// that a path where nothing can be written is found out before anything is done.
func newList(path string) (*list, error) {
	l := &list{spill: new(spill)}
	if path != "" {
		var err error
		if l.spill.file, err = listFile(path); err != nil {
			return nil, fmt.Errorf("--failures: %w", err)
		}
	}
	return l, l.reset()
}

// listFile makes a file that only its owner may read: it names Secrets.
func listFile(path string) (*os.File, error) {
	const flags = os.O_RDWR | os.O_CREATE | os.O_TRUNC | syscall.O_NOFOLLOW
	file, err := os.OpenFile(path, flags, 0o600) //nolint:gosec // G304: the administrator's own choice
	if err != nil {
		return nil, err
	}
	// The file may have been there before, with another mode.
	return file, file.Chmod(0o600)
}

func (l *list) reset() error {
	l.objects, l.kinds, l.shown, l.total = nil, map[Kind]int64{}, map[Kind][]Failure{}, 0
	return l.spill.reset()
}

func (l *list) add(f Failure) error {
	l.total++
	l.kinds[f.Kind]++
	if len(l.objects) < maxObjects {
		l.objects = append(l.objects, f)
	}
	if len(l.shown[f.Kind]) < maxShown {
		l.shown[f.Kind] = append(l.shown[f.Kind], f)
	}
	_, err := l.spill.add(f)
	return err
}

// finish puts the list into the result. Where it is longer than what is shown and
// has no file yet, overflow becomes its file.
func (l *list) finish(result *Result, path, overflow string) error {
	result.Objects, result.List = l.objects, path
	if l.total == 0 {
		return nil
	}
	result.Kinds = l.kinds
	whole := int64(0)
	for _, kind := range Kinds {
		result.Shown = append(result.Shown, l.shown[kind]...)
		whole += int64(len(l.shown[kind]))
	}
	if whole == l.total || path != "" || overflow == "" {
		return nil
	}
	file, err := listFile(overflow)
	if err != nil {
		return fmt.Errorf("write the list of what could not be rewritten: %w; name a file with --failures", err)
	}
	w := bufio.NewWriter(file)
	_, err = io.Copy(w, io.NewSectionReader(l.spill.file, 0, l.spill.size))
	if err = errors.Join(err, w.Flush(), file.Close()); err != nil {
		return fmt.Errorf("write the list of what could not be rewritten: %w; name a file with --failures", err)
	}
	result.List = overflow
	return nil
}
