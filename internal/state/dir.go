package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
)

// maxFileSize bounds a state file in bytes when it is read.
const maxFileSize = 1 << 20

// fileName is the form of the names that Load, Save and Remove take.
var fileName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}$`)

// Dir is a state directory. It is safe for concurrent use within one process;
// between processes a save is atomic and the last one wins.
type Dir struct {
	path string

	// mu makes saves take turns: they share the name of the temporary file.
	mu sync.Mutex
	// create opens a file for writing, empty, with mode 0600. Tests plant faults here.
	create func(path string) (file, error)
}

// file is what a save needs of an *os.File.
type file interface {
	io.WriteCloser
	Sync() error
}

// Open returns the state directory at path. It makes the directory if it is
// missing, but not its parents, and refuses one that others could have written to.
func Open(path string) (*Dir, error) {
	err := os.Mkdir(path, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the state directory: %w; make its parent directory, or set stateDir", err)
	}
	if err := check(path); err != nil {
		return nil, err
	}
	d := &Dir{path: path, create: create}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setAside()
	return d, nil
}

func create(path string) (file, error) {
	// Whoever could plant a link in the directory could replace the state itself;
	// O_NOFOLLOW costs nothing all the same.
	const flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC | syscall.O_NOFOLLOW
	return os.OpenFile(path, flags, 0o600) //nolint:gosec // G304: the path is a constant name in our own directory
}

// Path returns the path of the file called name, for messages.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name+".json") }

// Load reads what Save wrote under name into v, a pointer; false when nothing was
// saved, and v is then as it was. Fields that v does not know are an error: a
// newer kekd wrote them, and they may matter.
func (d *Dir) Load(name string, v any) (bool, error) {
	if !fileName.MatchString(name) {
		return false, fmt.Errorf("load state %q: not a name", name)
	}
	path := d.Path(name)
	data, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		// A file that was never saved, unless it went with all the others.
		if _, err = os.Stat(d.path); err == nil {
			return false, nil
		}
	}
	if err != nil {
		return false, fmt.Errorf("load state: %w", d.failed(err))
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	err = dec.Decode(v)
	if err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the first value")
		}
	}
	if err != nil {
		return false, fmt.Errorf("load state: %s is damaged or of a newer kekd: %w; restore it, or remove it if kekd may forget what it held", path, err)
	}
	return true, nil
}

// read returns the content of a state file.
func read(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // G304: the path is a constant name in our own directory
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err == nil && len(data) > maxFileSize {
		err = fmt.Errorf("%s is larger than %d KiB; it is no state file of kekd", path, maxFileSize>>10)
	}
	return data, err
}

// Save replaces what is kept under name by v, as JSON. When it returns nil, the
// new content is on disk; when it returns an error, the old content still is.
func (d *Dir) Save(name string, v any) error {
	if !fileName.MatchString(name) {
		return fmt.Errorf("save state %q: not a name", name)
	}
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("save state %s: %w", name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.replace(d.Path(name), append(data, '\n')); err != nil {
		return fmt.Errorf("save state: %w", d.failed(err))
	}
	d.setAside()
	return nil
}

// replace writes data beside path and renames it over path. d.mu is held.
func (d *Dir) replace(path string, data []byte) error {
	temporary := path + ".new"
	err := d.write(temporary, data)
	if full(err) {
		err = errors.Join(err, ignoreMissing(os.Remove(temporary)))
		if d.useSpare(temporary, data) {
			err = nil
		}
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(temporary)))
	}
	if err := os.Rename(temporary, path); err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(temporary)))
	}
	return syncDir(d.path)
}

// write makes a durable file of data.
func (d *Dir) write(path string, data []byte) error {
	f, err := d.create(path)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// Remove forgets what is kept under name. Nothing kept is no error.
func (d *Dir) Remove(name string) error {
	if !fileName.MatchString(name) {
		return fmt.Errorf("remove state %q: not a name", name)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ignoreMissing(os.Remove(d.Path(name))); err != nil {
		return fmt.Errorf("remove state: %w", d.failed(err))
	}
	if err := syncDir(d.path); err != nil {
		return fmt.Errorf("remove state: %w", d.failed(err))
	}
	return nil
}

// syncDir makes a rename or a removal in the directory durable.
func syncDir(path string) error {
	dir, err := os.Open(path) //nolint:gosec // G304: our own directory
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
