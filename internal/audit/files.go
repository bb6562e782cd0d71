package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
)

// fileName is the form of a file's name: the chain and a number.
var fileName = regexp.MustCompile(`^([a-z][a-z0-9-]{0,31})-([0-9]{8})\.jsonl$`)

// path is where a file of a chain is.
func path(dir, chain string, number uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s-%08d.jsonl", chain, number))
}

// chainFile is a file of a chain.
type chainFile struct {
	path   string
	number uint64
}

// Chains lists the files of a directory by chain, in order.
func chains(dir string) (map[string][]chainFile, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list the audit files: %w", err)
	}
	found := map[string][]chainFile{}
	for _, e := range entries {
		m := fileName.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		n, err := strconv.ParseUint(m[2], 10, 64)
		if err != nil {
			continue // not with eight digits
		}
		found[m[1]] = append(found[m[1]], chainFile{filepath.Join(dir, e.Name()), n})
	}
	for _, files := range found {
		slices.SortFunc(files, func(a, b chainFile) int {
			if a.number < b.number {
				return -1
			}
			return 1
		})
	}
	return found, nil
}

// eachLine calls do for every line of a file, with its newline, and counts from 1.
// The slice is do's until it returns. What follows the last newline is returned.
func eachLine(name string, do func(n int, line []byte) error) (rest []byte, err error) {
	f, err := os.Open(name) //nolint:gosec // G304: a file of the trail, named by the administrator
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	r := bufio.NewReaderSize(f, MaxLine)
	for n := 1; ; n++ {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			return bytes.Clone(line), nil
		case errors.Is(err, bufio.ErrBufferFull):
			// Too long for a line: its beginning is shown, the rest passed over.
			line = bytes.Clone(line)
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = r.ReadSlice('\n')
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
		case err != nil:
			return nil, err
		}
		if err := do(n, line); err != nil {
			return nil, err
		}
	}
}

// prepareDir makes the directory if it is missing, and refuses one that others
// could have written to.
func prepareDir(dir string) error {
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the audit directory: %w; make its parent directory, or set audit.dir", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("check the audit directory: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("check the audit directory: %s is not a directory; set audit.dir to one", dir)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("check the audit directory: %s is writable by group or others (mode %04o); run chmod 0750 %s",
			dir, info.Mode().Perm(), dir)
	}
	return nil
}

// ofDisk reports whether an error is the disk's, which may have room or be whole again
// later, and not that of a configuration.
func ofDisk(err error) bool {
	for _, e := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// ErrLocked: only one process at a time writes a chain.
var ErrLocked = errors.New("another process writes this audit trail")

// lock takes the chain for this process; it waits for nobody.
func lock(dir, chain string) (*os.File, error) {
	name := filepath.Join(dir, chain+".lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600) //nolint:gosec // G304: in our own directory
	if err != nil {
		return nil, fmt.Errorf("lock the audit trail: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: the chain %q in %s", ErrLocked, chain, dir)
		}
		return nil, fmt.Errorf("lock the audit trail %s: %w", name, err)
	}
	return f, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // G304: our own directory
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
