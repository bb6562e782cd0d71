package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"kekd/internal/kek"
)

const (
	// spareName is the file that holds room for one save on a full disk. It is no
	// name that Save takes.
	spareName = "spare"
	// spareSize is its size in bytes. What kekd keeps is smaller by far.
	spareSize = 8 << 10
)

// setAside makes the spare if it is missing. Without room for it there is none, and
// the next save tries again. d.mu is held.
func (d *Dir) setAside() {
	path := filepath.Join(d.path, spareName)
	if info, err := os.Lstat(path); err == nil && info.Size() == spareSize {
		return
	}
	// The zeros are written, and synced, so that the blocks are really there.
	temporary := path + ".new"
	err := d.write(temporary, make([]byte, spareSize))
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		_ = os.Remove(temporary)
	}
}

// useSpare makes a durable file of data at path in the blocks of the spare, which
// takes none that are not there yet. d.mu is held.
func (d *Dir) useSpare(path string, data []byte) bool {
	if len(data) > spareSize {
		return false
	}
	// The rename is what makes it ours: another process may want it too.
	if err := os.Rename(filepath.Join(d.path, spareName), path); err != nil {
		return false
	}
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NOFOLLOW, 0) //nolint:gosec // G304: a constant name in our own directory
	if err != nil {
		return false
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Truncate(int64(len(data)))
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close()) == nil
}

// Writable returns nil when a Save could be made now, be it in the spare. The error
// wraps kek.ErrState.
func (d *Dir) Writable() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	const probe = "writable"
	path := filepath.Join(d.path, probe)
	err := d.write(path, make([]byte, spareSize))
	err = errors.Join(err, ignoreMissing(os.Remove(path)))
	if full(err) {
		if info, missing := os.Lstat(filepath.Join(d.path, spareName)); missing == nil && info.Size() == spareSize {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("write state: %w", d.failed(err))
	}
	return nil
}

// Lock keeps the directory from other processes that call it, until the process
// ends or release is called. It fails at once where another process has it. It
// writes nothing, so that a full disk is no obstacle.
func (d *Dir) Lock() (release func() error, err error) {
	dir, err := os.Open(d.path)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", d.failed(err))
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		err = fmt.Errorf("stateDir: another kekd uses %s; stop it first, or give each kekd a state directory of its own", d.path)
	case err != nil:
		err = fmt.Errorf("stateDir: lock %s: %w; choose a directory on a local file system", d.path, err)
	default:
		return dir.Close, nil
	}
	return nil, errors.Join(err, dir.Close())
}

// full reports whether an error says that there is no room.
func full(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// failed gives an error its class and, where there is one, the remedy.
func (d *Dir) failed(err error) error {
	remedy := ""
	if _, gone := os.Stat(d.path); errors.Is(gone, fs.ErrNotExist) {
		remedy = fmt.Sprintf("; the state directory is gone: restore %s (mode 0700, of kekd's user)", d.path)
	} else if full(err) {
		remedy = "; make room where stateDir is"
	} else if errors.Is(err, syscall.EROFS) {
		remedy = "; mount stateDir writable"
	}
	return fmt.Errorf("%w: %w%s", kek.ErrState, err, remedy)
}
