package plugin

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/activation"

	"kekd/internal/sockpath"
)

// activated returns the socket that systemd passes, or nil when it passes none.
// It clears LISTEN_FDS and its companions from the environment, so that no child
// process takes them for its own.
//
// The socket must be the configured one: kekctl and the apiserver's
// configuration speak of that path.
func activated(path string) (*Socket, error) {
	files := activation.Files(true)
	if len(files) == 0 {
		return nil, nil
	}
	// FileListener duplicates the descriptor.
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if len(files) != 1 {
		return nil, fmt.Errorf("socket.path: systemd passes %d sockets, and kekd takes one; keep one ListenStream= in kekd.socket", len(files))
	}
	l, err := net.FileListener(files[0])
	if err != nil {
		return nil, fmt.Errorf("socket.path: take over systemd's socket: %w; use ListenStream=%s in kekd.socket", err, path)
	}
	listener, ok := l.(*net.UnixListener)
	if !ok || listener.Addr().String() != path {
		addr := l.Addr()
		_ = l.Close()
		return nil, fmt.Errorf("socket.path: systemd passes %s socket %s instead of %s; use ListenStream=%s in kekd.socket", addr.Network(), addr, path, path)
	}
	at, err := checkActivated(path)
	if err != nil {
		_ = listener.Close()
		return nil, err
	}
	return &Socket{path: path, systemd: true, listener: listener, at: at}, nil
}

// checkActivated looks at the file and the directory that systemd made. A group
// may be let in, which systemd's unit can name and kekd's own socket cannot;
// everybody may not.
func checkActivated(path string) (fileID, error) {
	if err := sockpath.CheckDirectory(filepath.Dir(path), os.Geteuid()); err != nil {
		return fileID{}, err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return fileID{}, fmt.Errorf("socket.path: look at systemd's socket: %w; run: systemctl restart kekd.socket", err)
	}
	if mode := info.Mode(); mode.Type() != os.ModeSocket {
		return fileID{}, fmt.Errorf("socket.path: %s is no longer systemd's socket (%v); run: systemctl restart kekd.socket", path, mode)
	} else if mode.Perm()&0o007 != 0 {
		return fileID{}, fmt.Errorf("socket.path: systemd's socket %s has mode %#o, open to everybody; use SocketMode=0600 in kekd.socket", path, mode.Perm())
	}
	return idOf(info)
}
