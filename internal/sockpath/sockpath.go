// Package sockpath says what a Unix socket's path must be like for its owner to
// be the only one who can serve at it.
package sockpath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// MaxSize is the longest path in bytes: sun_path holds 108 with its closing zero
// byte.
const MaxSize = 107

// CheckPath refuses what cannot be, or should not be, a socket's path. Errors, as
// CheckDirectory's, begin with the configuration's field and end with the remedy.
func CheckPath(path string) error {
	switch {
	case strings.HasPrefix(path, "@"):
		return fmt.Errorf("socket.path: %q is an abstract socket, which no file permission protects; use a path such as /run/kekd/kekd.sock", path)
	case !filepath.IsAbs(path) || strings.ContainsRune(path, 0):
		return fmt.Errorf("socket.path: %q is not an absolute path; use one such as /run/kekd/kekd.sock", path)
	case filepath.Clean(path) != path:
		return fmt.Errorf("socket.path: %q is not in its shortest form; write %q", path, filepath.Clean(path))
	case len(path) > MaxSize:
		return fmt.Errorf("socket.path: %q has %d bytes, and the kernel allows %d; choose a shorter path", path, len(path), MaxSize)
	}
	return nil
}

// CheckDirectory makes sure that only root and the daemon's own user, uid, can
// replace files in the socket's directory: whoever can, can stand in for kekd and
// read kube-apiserver's seeds.
func CheckDirectory(dir string, uid int) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("socket.path: directory %s does not exist; create it: install -d -m 0750 %s", dir, dir)
	case err != nil:
		return fmt.Errorf("socket.path: look at directory %s: %w; let kekd's user search every directory above it", dir, err)
	case !info.IsDir():
		return fmt.Errorf("socket.path: %s is no directory; remove it or choose another path", dir)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("socket.path: owner of %s is unknown on this system; choose a directory on a local file system", dir)
	}
	if stat.Uid != 0 && int(stat.Uid) != uid {
		return fmt.Errorf("socket.path: directory %s belongs to uid %d, not to root or kekd's own uid %d; change it: chown %d %s", dir, stat.Uid, uid, uid, dir)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("socket.path: directory %s has mode %#o, so others can replace the socket; change it: chmod go-w %s", dir, mode, dir)
	}
	return nil
}
