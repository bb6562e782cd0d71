// Package lock lets one kekctl at a time change the token from this machine. Two on
// different machines are kept apart by the token itself: each change is conditional on
// what was seen.
package lock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHeld: another process holds the lock.
var ErrHeld = errors.New("another kekctl is changing the token")

// retry is the pause between two attempts.
const retry = 50 * time.Millisecond

// name is the lock file's, in the state directory. kekd has locks of its own.
const name = "admin.lock"

// Take takes the lock in a directory, for which it waits. The kernel drops the lock
// when the process ends, however it ends. The file stays.
func Take(ctx context.Context, dir string, wait time.Duration) (release func(), err error) {
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600) //nolint:gosec // G304: the state directory is the configured one
	if err != nil {
		return nil, fmt.Errorf("open the lock of changes: %w", err)
	}
	end := time.Now().Add(wait)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			// For those that are refused; the lock holds without it, so a full disk does not matter.
			if f.Truncate(0) == nil {
				_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
			}
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w; put stateDir on a local file system", path, err)
		}
		if !time.Now().Before(end) {
			err := fmt.Errorf("%w%s and holds %s; wait until it has ended", ErrHeld, holder(f), path)
			_ = f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(retry):
		}
	}
}

// holder is " (pid N)" as the holder left it, or nothing.
func holder(f *os.File) string {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 32))
	if err != nil {
		return ""
	}
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid > 0 {
		return fmt.Sprintf(" (pid %d)", pid)
	}
	return ""
}
