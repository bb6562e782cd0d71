package plugin

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"kekd/internal/sockpath"
)

// childListen plays another kekd: it listens, says so on stdout, and waits to be
// killed or for its stdin to end.
func childListen(part, path string) int {
	socket, err := Listen(path)
	if err != nil {
		fmt.Println("refused:", err)
		return 1
	}
	if part == "activated" {
		return childActivated(socket)
	}
	fmt.Println("listening")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	return 0
}

// child is a test binary that plays a part.
type child struct {
	cmd  *exec.Cmd
	said string // its first line
	stop func() // ends its stdin, which asks it to end
}

// startChild starts cmd, whose environment names the part and the path, and reads
// the child's first line.
func startChild(t *testing.T, cmd *exec.Cmd, part, path string) *child {
	t.Helper()
	cmd.Env = append(append(os.Environ(), childEnv+"="+part, childPathEnv+"="+path), cmd.Env...)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("child said %q: %v", line, err)
	}
	return &child{cmd: cmd, said: strings.TrimSpace(line), stop: func() { _ = in.Close() }}
}

func mustListen(t *testing.T, path string) *Socket {
	t.Helper()
	s, err := Listen(path)
	if err != nil {
		t.Fatalf("Listen: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// foreignListener is a program that is not kekd, living at path.
func foreignListener(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Every refusal names the field, what is wrong where, and the remedy.
func TestListenRefuses(t *testing.T) {
	type row struct {
		name  string
		setup func(t *testing.T, dir string) (path string)
		want  []string // DIR stands for the directory
	}
	in := func(dir string) string { return filepath.Join(dir, "kekd.sock") }
	tests := []row{
		{"empty path", func(*testing.T, string) string { return "" },
			[]string{`"" is not an absolute path`, "/run/kekd/kekd.sock"}},
		{"relative path", func(*testing.T, string) string { return "run/kekd.sock" },
			[]string{`"run/kekd.sock" is not an absolute path`, "/run/kekd/kekd.sock"}},
		{"zero byte", func(*testing.T, string) string { return "/run/kekd\x00.sock" },
			[]string{`"/run/kekd\x00.sock" is not an absolute path`}},
		{"abstract socket", func(*testing.T, string) string { return "@kekd" },
			[]string{`"@kekd" is an abstract socket`, "use a path"}},
		{"path with a slash at its end", func(_ *testing.T, dir string) string { return in(dir) + "/" },
			[]string{`write "DIR/kekd.sock"`}},
		{"path too long", func(_ *testing.T, dir string) string {
			return filepath.Join(dir, strings.Repeat("x", sockpath.MaxSize-len(dir)))
		}, []string{"has 108 bytes, and the kernel allows 107", "choose a shorter path"}},
		{"no directory", func(_ *testing.T, dir string) string { return in(dir + "/missing") },
			[]string{"directory DIR/missing does not exist", "install -d -m 0750 DIR/missing"}},
		{"directory is a file", func(t *testing.T, dir string) string {
			must(t, os.WriteFile(dir+"/file", nil, 0o600))
			return in(dir + "/file")
		}, []string{"DIR/file is no directory", "remove it or choose another path"}},
		{"directory behind a file", func(t *testing.T, dir string) string {
			must(t, os.WriteFile(dir+"/file", nil, 0o600))
			return in(dir + "/file/deep")
		}, []string{"look at directory DIR/file/deep", "not a directory"}},
		{"directory writable to its group", func(t *testing.T, dir string) string {
			must(t, os.Chmod(dir, 0o770))
			return in(dir)
		}, []string{"directory DIR has mode 0770", "chmod go-w DIR"}},
		{"directory writable to all", func(t *testing.T, dir string) string {
			must(t, os.Chmod(dir, os.ModeSticky|0o777))
			return in(dir)
		}, []string{"directory DIR has mode 0777", "chmod go-w DIR"}},
		{"a file at the path", func(t *testing.T, dir string) string {
			must(t, os.WriteFile(in(dir), []byte("precious"), 0o600))
			return in(dir)
		}, []string{"DIR/kekd.sock exists and is no socket (-rw-------)", "remove it or choose another path"}},
		{"a directory at the path", func(t *testing.T, dir string) string {
			must(t, os.Mkdir(in(dir), 0o700))
			return in(dir)
		}, []string{"DIR/kekd.sock exists and is no socket (drwx------)", "remove it"}},
		{"a symbolic link at the path", func(t *testing.T, dir string) string {
			must(t, os.Symlink("/nowhere", in(dir)))
			return in(dir)
		}, []string{"DIR/kekd.sock exists and is no socket (L", "remove it"}},
		{"a live socket", func(t *testing.T, dir string) string {
			foreignListener(t, in(dir))
			return in(dir)
		}, []string{"another process listens at DIR/kekd.sock", "stop it", "choose another path"}},
		{"a live socket of another type", func(t *testing.T, dir string) string {
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: in(dir), Net: "unixgram"})
			must(t, err)
			t.Cleanup(func() { _ = c.Close() })
			return in(dir)
		}, []string{"DIR/kekd.sock may be in use", "stop its owner"}},
		{"another kekd", func(t *testing.T, dir string) string {
			mustListen(t, in(dir))
			return in(dir)
		}, []string{fmt.Sprintf("another kekd (pid %d) serves DIR/kekd.sock and holds DIR/kekd.sock.lock", os.Getpid()), "stop it first"}},
		{"another kekd whose socket is gone", func(t *testing.T, dir string) string {
			mustListen(t, in(dir))
			must(t, os.Remove(in(dir)))
			return in(dir)
		}, []string{"another kekd (pid ", "stop it first"}},
		{"a symbolic link for a lock", func(t *testing.T, dir string) string {
			must(t, os.Symlink("/etc/passwd", in(dir)+lockSuffix))
			return in(dir)
		}, []string{"open the lock file DIR/kekd.sock.lock", "let kekd's user write"}},
	}
	if os.Geteuid() == 0 {
		tests = append(tests, row{"directory of another user", func(t *testing.T, dir string) string {
			must(t, os.Chown(dir, 4242, -1))
			return in(dir)
		}, []string{"directory DIR belongs to uid 4242, not to root or kekd's own uid 0", "chown 0 DIR"}})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := tempDir(t)
			path := tt.setup(t, dir)
			before := listing(t, dir)
			s, err := Listen(path)
			if err == nil {
				_ = s.Close()
				t.Fatal("Listen accepted it")
			}
			for _, want := range append(tt.want, "socket.path: ") {
				if want = strings.ReplaceAll(want, "DIR", dir); !strings.Contains(err.Error(), want) {
					t.Errorf("error %q misses %q", err, want)
				}
			}
			if after := listing(t, dir); after != before {
				t.Errorf("the directory changed from %q to %q", before, after)
			}
		})
	}
}

// listing names what is in dir, but for the lock file, which may stay.
func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var b strings.Builder
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), lockSuffix) {
			fmt.Fprintf(&b, "%s %v\n", e.Name(), e.Type())
		}
	}
	return b.String()
}

func TestListenAtTheLongestPath(t *testing.T) {
	dir := tempDir(t)
	path := filepath.Join(dir, strings.Repeat("x", sockpath.MaxSize-len(dir)-1))
	mustListen(t, path)
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("dial: %v", err)
	} else {
		_ = c.Close()
	}
}

// With the most open umask, nobody who looks at the right moment sees another
// mode than 0600.
func TestSocketModeFromTheFirstMoment(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := filepath.Join(tempDir(t), "kekd.sock")
	done := make(chan struct{})
	seen := make(map[os.FileMode]int)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if info, err := os.Lstat(path); err == nil {
				seen[info.Mode()]++
			}
		}
	})
	for range 300 {
		s, err := Listen(path)
		if err != nil {
			t.Error(err)
			break
		}
		must(t, s.Close())
	}
	close(done)
	wg.Wait()
	delete(seen, os.ModeSocket|0o600)
	if len(seen) != 0 {
		t.Errorf("modes seen beside 0600: %v", seen)
	}
	mustListen(t, path)
	info, err := os.Stat(path + lockSuffix)
	must(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("lock file has mode %v", info.Mode())
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(tempDir(t), "kekd.sock")
	other := startChild(t, exec.CommandContext(t.Context(), os.Args[0]), "listen", path)
	if other.said != "listening" {
		t.Fatalf("child: %s", other.said)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another kekd (pid %d)", other.cmd.Process.Pid)) {
		t.Fatalf("beside a live kekd, Listen: %v", err)
	}
	must(t, other.cmd.Process.Kill())
	_ = other.cmd.Wait()
	if info, err := os.Lstat(path); err != nil || info.Mode().Type() != os.ModeSocket {
		t.Fatalf("SIGKILL left no socket behind: %v, %v", info, err)
	}
	mustListen(t, path)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("dial after the restart: %v", err)
	}
	_ = c.Close()
}

func TestCloseRemovesOnlyItsOwnSocket(t *testing.T) {
	path := filepath.Join(tempDir(t), "kekd.sock")
	s := mustListen(t, path)
	must(t, s.Close())
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("after Close: %v", err)
	}
	must(t, s.Close()) // twice is fine

	s = mustListen(t, path)
	must(t, os.Remove(path))
	foreign := foreignListener(t, path)
	must(t, s.Close())
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("Close removed a foreign socket: %v", err)
	}
	_ = foreign.Close()
	mustListen(t, path) // and the lock is free again
}

func TestLockFileThatWasReplacedIsTakenAgain(t *testing.T) {
	name := filepath.Join(tempDir(t), "kekd.sock")
	first, err := acquireLock(name)
	must(t, err)
	defer func() { _ = first.Close() }()
	must(t, os.Remove(name+lockSuffix))
	if isAt(first, name+lockSuffix) {
		t.Error("a removed lock file counts as present")
	}
	second, err := acquireLock(name)
	must(t, err)
	defer func() { _ = second.Close() }()
	if isAt(first, name+lockSuffix) || !isAt(second, name+lockSuffix) {
		t.Error("the two lock files are mixed up")
	}
}

// What stands in the lock file is a pid, or is not repeated.
func TestLockHolder(t *testing.T) {
	for content, want := range map[string]string{
		"": "", "1\n": " (pid 1)", " 4194304 ": " (pid 4194304)", "0": "", "-1": "", "x": "", "7\n8\n": "", "7\x00": "", "99999999999999999999": "",
	} {
		path := filepath.Join(t.TempDir(), "lock")
		must(t, os.WriteFile(path, []byte(content), 0o600))
		f, err := os.Open(path)
		must(t, err)
		if got := lockHolder(f); got != want {
			t.Errorf("%q: %q, want %q", content, got, want)
		}
		must(t, f.Close())
	}
}
