package plugin

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// lockSuffix makes the lock file's name from the socket's path.
const lockSuffix = ".lock"

// lockTries bounds the race with somebody who removes the lock file over and over.
const lockTries = 10

// acquireLock takes the lock that keeps a second kekd off the socket at path. The
// kernel drops it when the process dies, however it dies, or when the returned
// file is closed. The file itself stays: removing it would let a third process
// lock another file of the same name.
func acquireLock(path string) (*os.File, error) {
	name := path + lockSuffix
	for range lockTries {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600) //nolint:gosec // G304: the path is the configured one
		if err != nil {
			return nil, fmt.Errorf("socket.path: open the lock file %s: %w; let kekd's user write to its directory", name, err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			holder := lockHolder(f)
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("socket.path: another kekd%s serves %s and holds %s; stop it first or choose another path", holder, path, name)
			}
			return nil, fmt.Errorf("socket.path: lock %s: %w; choose a directory on a local file system", name, err)
		}
		if isAt(f, name) {
			noteHolder(f)
			return f, nil
		}
		// It was removed between the open and the lock, so this lock guards nothing.
		_ = f.Close()
	}
	return nil, fmt.Errorf("socket.path: the lock file %s keeps changing; stop what removes it", name)
}

// isAt reports whether name still leads to f.
func isAt(f *os.File, name string) bool {
	info, err := f.Stat()
	if err != nil {
		return false
	}
	want, err := idOf(info)
	if err != nil {
		return false
	}
	got, err := inodeOf(name)
	return err == nil && got == want
}

// noteHolder writes the pid into the lock file for whoever is refused. The lock
// holds without it, so a full disk does not matter.
func noteHolder(f *os.File) {
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
}

// lockHolder returns " (pid N)" as noteHolder left it, or nothing.
func lockHolder(f *os.File) string {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return ""
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid < 1 {
		return ""
	}
	return fmt.Sprintf(" (pid %d)", pid)
}
