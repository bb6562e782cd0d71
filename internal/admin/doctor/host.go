package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"google.golang.org/grpc/status"

	"kekd/internal/encryptionconfig"
	"kekd/internal/sockpath"
	"kekd/internal/state"
)

// socketDirectory checks that nobody but kekd can serve at its socket.
func (e *examination) socketDirectory() {
	const check = "socket directory"
	path := e.cfg.Socket.Path
	uid := e.user.uid
	if !e.user.known() {
		// Only the mode can be judged.
		uid = owner(filepath.Dir(path))
	}
	bad := e.fail(check, sockpath.CheckPath(path), "")
	if e.fail(check, sockpath.CheckDirectory(filepath.Dir(path), uid), "") || bad {
		return
	}
	e.ok(check, "safe for %s", path)
}

// owner returns whom a file belongs to; -1 if that cannot be said.
func owner(path string) int {
	info, err := os.Lstat(path)
	if err != nil {
		return -1
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid)
	}
	return -1
}

// socket asks the running kekd what kube-apiserver asks it, and reports whether anybody
// is there.
func (e *examination) socket(ctx context.Context) bool {
	const check, why = "socket", "the lines below, or kekd's log, say why"
	path := e.cfg.Socket.Path
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		e.add(check, Warn, "nobody listens at "+path, "start kekd")
		return false
	}
	answer, err := e.Socket(ctx, path)
	switch {
	case err != nil:
		remedy := e.Outsider(e.cfg)
		if remedy == "" {
			remedy = why
		}
		e.add(check, Warn, "Status fails: "+status.Convert(err).Message(), remedy)
	case answer.GetHealthz() != "ok":
		e.add(check, Warn, "Status says "+answer.GetHealthz(), why)
	default:
		e.ok(check, "Status is ok, key_id %s", answer.GetKeyId())
	}
	return true
}

// http checks that nobody but kekd listens at its HTTP address. serves tells whether
// kekd's socket is there.
func (e *examination) http(ctx context.Context, serves bool) {
	const check = "HTTP address"
	address := e.cfg.HTTP.Address
	if address == "" {
		e.ok(check, "turned off")
		return
	}
	_, port, _ := net.SplitHostPort(address)
	remedy := fmt.Sprintf("find it with ss -ltnp 'sport = :%s' and stop it, or set http.address", port)
	answer, err := e.HTTP(ctx, address)
	dial, failed := errors.AsType[*net.OpError](err)
	switch {
	case err == nil && answer.Health.State == "":
		e.add(check, Fail, fmt.Sprintf("another program listens at %s: its /status is not kekd's", address), remedy)
	case err == nil && !serves:
		e.add(check, Fail, fmt.Sprintf("another kekd listens at %s: this one's socket is not there", address), remedy)
	case err == nil:
		e.ok(check, "kekd answers at %s", address)
	case errors.Is(err, syscall.ECONNREFUSED) && serves:
		e.add(check, Warn, fmt.Sprintf("nobody listens at %s, although the socket is there", address), "start kekd, or see its log")
	case errors.Is(err, syscall.ECONNREFUSED):
		e.ok(check, "%s is free", address)
	case failed && dial.Op == "dial":
		e.add(check, Fail, err.Error(), "set http.address to an address of this node, such as 127.0.0.1:"+port)
	default:
		e.add(check, Fail, fmt.Sprintf("another program listens at %s: %v", address, err), remedy)
	}
}

// stateDirectory looks at the state directory without making it. The directory is nil
// where this process may not use it, and the error says why.
func (e *examination) stateDirectory() (*state.Dir, error) {
	const check = "state directory"
	path := e.cfg.StateDir
	found, err := state.Inspect(path)
	if errors.Is(err, fs.ErrNotExist) {
		e.add(check, Fail, path+" does not exist", "install -d -m 0700 "+e.user.ownerFlag()+path)
		return nil, errors.New("the state directory does not exist, so a refused PIN could not be remembered")
	}
	if e.fail(check, err, "") {
		return nil, errors.New("the state directory is not safe, so a refused PIN could not be remembered")
	}
	if e.user.known() && found.UID != e.user.uid {
		e.add(check, Fail, fmt.Sprintf("%s belongs to uid %d, and kekd runs as uid %d", path, found.UID, e.user.uid),
			fmt.Sprintf("chown -R %d %s", e.user.uid, path))
	} else {
		e.ok(check, "%s, uid %d, mode %04o", path, found.UID, found.Mode)
	}
	dir, err := state.OpenExisting(path)
	if err != nil {
		err = fmt.Errorf("uid %d must not write to the state directory of uid %d, so a refused PIN could not be remembered", os.Geteuid(), found.UID)
		e.add("caller", Fail, err.Error(), fmt.Sprintf("run kekctl as uid %d, as manifests/host/kekctl does", found.UID))
		return nil, err
	}
	return dir, nil
}

// apiserver looks at the EncryptionConfiguration of the kube-apiserver on this node.
func (e *examination) apiserver() {
	const check = "kube-apiserver"
	found, err := encryptionconfig.Find(e.Root, e.EncryptionConfig)
	switch {
	case errors.Is(err, encryptionconfig.ErrNoAPIServer):
		e.add(check, Skip, "not a control-plane node with a known layout", "")
		return
	case errors.Is(err, encryptionconfig.ErrNoFile):
		e.add(check, Skip, err.Error(), "")
		return
	case errors.Is(err, fs.ErrPermission):
		e.add(check, Skip, err.Error(), "run kekctl apiserver check as root")
		return
	case e.fail(check, err, "correct the file; kube-apiserver does not start with it"):
		return
	}
	path := e.cfg.Socket.Path
	first, problems := found.ResourcesOf(path)
	used := found.Uses(path)
	for _, p := range problems {
		result, detail := Result(p.Verdict), p.Text
		if !used && p.Resource != "" {
			result = Warn // nothing depends on this kekd yet
		}
		if p.Resource != "" {
			detail = p.Resource + ": " + detail
		}
		e.add(check, result, detail+" ("+found.Source.File+")", p.Remedy)
	}
	if len(problems) == 0 {
		e.ok(check, "%s: this kekd encrypts %d resource(s)", found.Source.File, len(first))
	}
}
