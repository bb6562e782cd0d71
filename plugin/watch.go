package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"kekd/internal/sockpath"
)

const (
	// watchInterval is how often the path is looked at: a client notices a
	// vanished socket only when it reconnects, and then backs off within seconds.
	watchInterval = 2 * time.Second
	// remindInterval is how often a fault that stays is logged again.
	remindInterval = time.Minute
)

// watch keeps the path leading to this socket until ctx ends: a file that
// vanished or was replaced by a dead one is bound again. Another live owner, or
// a missing directory, is logged and tried again, for as long as it takes.
// Connections that exist are not touched by any of it.
func (s *Socket) watch(ctx context.Context, every time.Duration, log *zap.Logger) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	var fault string
	var logged time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			rebound, err := s.tend()
			switch {
			case err == nil && rebound:
				log.Warn("socket had vanished, bound it again", zap.String("path", s.path))
			case err == nil && fault != "":
				log.Info("socket is at its path again", zap.String("path", s.path))
			case err != nil && (err.Error() != fault || now.Sub(logged) >= remindInterval):
				log.Error("socket cannot be reached at its path, new clients find no kekd",
					zap.String("path", s.path), zap.Error(err))
				logged = now
			}
			fault = ""
			if err != nil {
				fault = err.Error()
			}
		}
	}
}

// tend looks at the path once and repairs what it can. Only one goroutine calls
// it. It reports whether it bound the path again.
func (s *Socket) tend() (rebound bool, err error) {
	s.mu.Lock()
	at, lock, closed := s.at, s.lock, s.closed
	s.mu.Unlock()
	now, err := inodeOf(s.path)
	if closed || (err == nil && now == at) {
		return false, nil
	}
	if s.systemd {
		return false, fmt.Errorf("systemd's socket %s was removed or replaced; run: systemctl restart kekd.socket", s.path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("look at the socket: %w", err)
	}
	// What holds at the start holds here: whoever could replace the file may have
	// replaced the directory.
	if err := sockpath.CheckDirectory(filepath.Dir(s.path), os.Geteuid()); err != nil {
		return false, err
	}
	fresh := lock
	if !isAt(lock, s.path+lockSuffix) {
		if fresh, err = acquireLock(s.path); err != nil {
			return false, err
		}
	}
	// Without s.mu: asking whether a socket is alive may take probeTimeout, and
	// Accept needs the lock.
	listener, at, err := bind(s.path)
	if err != nil {
		if fresh != lock {
			_ = fresh.Close()
		}
		return false, err
	}
	return s.replace(listener, at, fresh)
}

// replace puts a new listener in the old one's place and closes the old one,
// which wakes Accept. A socket closed meanwhile stays closed.
func (s *Socket) replace(listener *net.UnixListener, at fileID, lock *os.File) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		err := errors.Join(os.Remove(s.path), listener.Close())
		if lock != s.lock {
			err = errors.Join(err, lock.Close())
		}
		return false, err
	}
	if lock != s.lock {
		_ = s.lock.Close() // it guarded a file that is gone
	}
	old := s.listener
	s.listener, s.at, s.lock = listener, at, lock
	_ = old.Close()
	return true, nil
}
