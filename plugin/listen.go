package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kekd/internal/sockpath"
)

const (
	// socketMode lets in kekd's own user and root, whoever is on the allow-list.
	socketMode = 0o600
	// probeTimeout bounds the question whether anyone listens at a path.
	probeTimeout = time.Second
)

// Socket is the Unix socket that kube-apiserver connects to. It is safe for
// concurrent use.
type Socket struct {
	path    string
	systemd bool // the service manager owns the path

	mu       sync.Mutex
	listener *net.UnixListener // guarded by mu; replaced when the path is bound again
	at       fileID            // the path's inode as bound; guarded by mu
	lock     *os.File          // guarded by mu; nil once released, and for systemd's socket
	closed   bool              // guarded by mu; no connection is accepted any more
}

// Listen returns the socket at path: the one that systemd passes (LISTEN_FDS),
// if any, or else a new one. Connections queue from now on; Server.Run answers
// them. Whoever does not call Run closes the socket.
//
// The directory must exist, belong to root or kekd's own user, and be writable
// to nobody else. A socket file left behind by a process that is gone is
// replaced; a live one, or a file that is no socket, is refused, and so is a
// second kekd at the same path, by a lock on the file PATH.lock, which stays.
// Errors name the configuration field, the path and the remedy.
func Listen(path string) (*Socket, error) {
	if err := sockpath.CheckPath(path); err != nil {
		return nil, err
	}
	if s, err := activated(path); s != nil || err != nil {
		return s, err
	}
	if err := sockpath.CheckDirectory(filepath.Dir(path), os.Geteuid()); err != nil {
		return nil, err
	}
	lock, err := acquireLock(path)
	if err != nil {
		return nil, err
	}
	listener, at, err := bind(path)
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	return &Socket{path: path, listener: listener, at: at, lock: lock}, nil
}

// Close stops accepting, removes the socket file if it is still this socket's
// own, and gives up the lock. Connections already accepted stay. Closing twice
// does nothing.
func (s *Socket) Close() error {
	err := s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
		s.lock = nil
	}
	return err
}

// stop is Close but for the lock, which is held until requests are drained: a
// second kekd that starts earlier would share the token and the state directory.
func (s *Socket) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var err error
	// systemd's socket stays: clients queue on it until the next kekd runs.
	if at, statErr := inodeOf(s.path); !s.systemd && statErr == nil && at == s.at {
		err = os.Remove(s.path)
	}
	return errors.Join(err, s.listener.Close())
}

// acceptor is the net.Listener that gRPC sees. It outlives the listeners behind
// it.
type acceptor struct{ *Socket }

// Accept implements net.Listener.
func (a acceptor) Accept() (net.Conn, error) {
	for {
		listener := a.current()
		accepted, err := listener.AcceptUnix()
		switch {
		case err == nil:
			return &conn{UnixConn: accepted}, nil
		case a.current() == listener:
			return nil, err
		} // else the path was bound again
	}
}

// Close implements net.Listener.
func (a acceptor) Close() error { return a.stop() }

// Addr implements net.Listener.
func (a acceptor) Addr() net.Addr { return &net.UnixAddr{Name: a.path, Net: "unix"} }

func (s *Socket) current() *net.UnixListener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listener
}

// bind makes the socket at path and listens. The caller holds the lock. The
// listener's Close leaves the file alone, since it may be another's by then.
func bind(path string) (*net.UnixListener, fileID, error) {
	if err := clearPath(path); err != nil {
		return nil, fileID{}, err
	}
	config := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var chmodErr error
		if err := conn.Control(func(fd uintptr) {
			// bind(2) takes the file's mode from the socket's own inode, so the
			// file has the right one before anybody can open it. A chmod after the
			// bind comes too late, and umask belongs to the whole process.
			chmodErr = unix.Fchmod(int(fd), socketMode)
		}); err != nil {
			return err
		}
		return chmodErr
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fileID{}, fmt.Errorf("socket.path: bind %s: %w; let kekd's user write to %s", path, err, filepath.Dir(path))
	}
	listener, ok := l.(*net.UnixListener)
	if !ok {
		_ = l.Close()
		return nil, fileID{}, fmt.Errorf("socket.path: bind %s: got a %T", path, l)
	}
	listener.SetUnlinkOnClose(false)
	at, err := checkBound(path)
	if err != nil {
		_ = listener.Close()
		return nil, fileID{}, err
	}
	return listener, at, nil
}

// checkBound looks at the file that bind made.
func checkBound(path string) (fileID, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return fileID{}, fmt.Errorf("socket.path: look at the new socket: %w", err)
	}
	if mode := info.Mode(); mode != os.ModeSocket|socketMode {
		return fileID{}, fmt.Errorf("socket.path: the new socket %s has mode %v, not %v; start kekd with umask 0077 and without default ACLs on its directory", path, mode, os.ModeSocket|socketMode)
	}
	return idOf(info)
}

// clearPath removes a dead socket from path. It returns nil when path is free.
// Between the question and the removal a process other than kekd could bind the
// path; only root and kekd's own user may write there, and kekds exclude each
// other by the lock.
func clearPath(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("socket.path: look at %s: %w; let kekd's user search %s", path, err, filepath.Dir(path))
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("socket.path: %s exists and is no socket (%v); remove it or choose another path", path, info.Mode())
	}
	conn, err := net.DialTimeout("unix", path, probeTimeout)
	switch {
	case err == nil:
		_ = conn.Close()
		return fmt.Errorf("socket.path: another process listens at %s; stop it (ss -xlp shows it) or choose another path", path)
	case errors.Is(err, os.ErrNotExist):
		return nil
	case !errors.Is(err, syscall.ECONNREFUSED):
		// Only a refusal proves that nobody listens: a full queue or a missing
		// permission does not.
		return fmt.Errorf("socket.path: %s may be in use: %w; stop its owner (ss -xlp shows it) or choose another path", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("socket.path: remove the dead socket %s: %w; remove it by hand", path, err)
	}
	return nil
}

// fileID names a file for as long as anything keeps it: an open lock file and a
// bound socket pin their inodes, so these numbers are not used again meanwhile.
type fileID struct{ dev, ino uint64 }

func inodeOf(path string) (fileID, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return fileID{}, err
	}
	return idOf(info)
}

func idOf(info os.FileInfo) (fileID, error) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileID{}, fmt.Errorf("inode of %s is unknown on this system", info.Name())
	}
	return fileID{dev: stat.Dev, ino: stat.Ino}, nil
}
