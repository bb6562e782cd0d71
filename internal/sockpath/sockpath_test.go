package sockpath_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"kekd/internal/sockpath"
)

// check is what a daemon of this uid does before it binds.
func check(path string, uid int) error {
	if err := sockpath.CheckPath(path); err != nil {
		return err
	}
	return sockpath.CheckDirectory(filepath.Dir(path), uid)
}

// privateDir is a directory that passes, with a path short enough for a socket.
func privateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "kekd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestCheck(t *testing.T) {
	t.Parallel()
	dir := privateDir(t)
	if err := os.Symlink(dir, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"plain":                dir + "/kekd.sock",
		"the longest":          dir + "/" + strings.Repeat("s", sockpath.MaxSize-len(dir)-1),
		"a dot in the name":    dir + "/.kekd.sock",
		"a link to the parent": dir + "/link/kekd.sock",
	} {
		if err := check(path, os.Geteuid()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckRefusesPaths(t *testing.T) {
	t.Parallel()
	dir := privateDir(t)
	for name, c := range map[string]struct{ path, says string }{
		"empty":            {"", "absolute"},
		"relative":         {"kekd.sock", "absolute"},
		"abstract":         {"@kekd", "abstract"},
		"a zero byte":      {dir + "/kekd\x00.sock", "absolute"},
		"a dot":            {dir + "/./kekd.sock", `write "` + dir + `/kekd.sock"`},
		"dots":             {dir + "/../kekd.sock", "shortest"},
		"a slash too many": {dir + "//kekd.sock", "shortest"},
		"a trailing slash": {dir + "/kekd.sock/", "shortest"},
		"108 bytes":        {dir + "/" + strings.Repeat("s", sockpath.MaxSize-len(dir)), "107"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := check(c.path, os.Geteuid())
			if err == nil || !strings.HasPrefix(err.Error(), "socket.path: ") || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error of socket.path that says %q", err, c.says)
			}
		})
	}
}

func TestCheckRefusesDirectories(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		// make turns a fresh directory into the case, and returns the uid to check for.
		make func(t *testing.T, dir string) int
		says string // DIR stands for the directory
	}{
		"missing": {func(t *testing.T, dir string) int {
			t.Helper()
			must(t, os.Remove(dir))
			return os.Geteuid()
		}, "install -d -m 0750 DIR"},
		"a file": {func(t *testing.T, dir string) int {
			t.Helper()
			must(t, os.Remove(dir))
			must(t, os.WriteFile(dir, nil, 0o600))
			return os.Geteuid()
		}, "DIR is no directory"},
		"below a file": {func(t *testing.T, dir string) int {
			t.Helper()
			must(t, os.Remove(dir))
			must(t, os.WriteFile(filepath.Dir(dir)+"/file", nil, 0o600))
			must(t, os.Symlink(filepath.Dir(dir)+"/file/sub", dir))
			return os.Geteuid()
		}, "look at directory DIR"},
		"writable by the group": {func(t *testing.T, dir string) int {
			t.Helper()
			must(t, os.Chmod(dir, 0o770))
			return os.Geteuid()
		}, "chmod go-w DIR"},
		"writable by others": {func(t *testing.T, dir string) int {
			t.Helper()
			must(t, os.Chmod(dir, 0o707))
			return os.Geteuid()
		}, "mode 0707"},
		"sticky and writable": {func(t *testing.T, dir string) int {
			t.Helper()
			must(t, os.Chmod(dir, 0o777|os.ModeSticky))
			return os.Geteuid()
		}, "chmod go-w DIR"},
		"of another user": {func(t *testing.T, dir string) int {
			t.Helper()
			if os.Geteuid() != 0 {
				return os.Geteuid() + 1 // then it is ours that is another's
			}
			must(t, os.Chown(dir, 65534, -1))
			return 0
		}, "chown"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := privateDir(t) + "/run"
			must(t, os.Mkdir(dir, 0o700))
			uid := c.make(t, dir)
			says := strings.ReplaceAll(c.says, "DIR", dir)
			err := check(dir+"/kekd.sock", uid)
			if err == nil || !strings.HasPrefix(err.Error(), "socket.path: ") || !strings.Contains(err.Error(), says) {
				t.Errorf("got %v, want an error of socket.path that says %q", err, says)
			}
		})
	}
}

// Root's directories are fine for any user: who is root needs no socket.
func TestRootsDirectory(t *testing.T) {
	t.Parallel()
	info, err := os.Stat("/usr/lib")
	must(t, err)
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Uid != 0 || info.Mode().Perm()&0o022 != 0 {
		t.Fatalf("/usr/lib is not root's alone: %v", info.Mode())
	}
	if err := check("/usr/lib/kekd.sock", 12345); err != nil {
		t.Error(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
