package encryptionconfig

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"kekd/internal/apiserverflags"
)

// The flags of kube-apiserver.
const (
	flagFile   = "encryption-provider-config"
	flagReload = "encryption-provider-config-automatic-reload"
)

// maxFileSize bounds the file in bytes.
const maxFileSize = 1 << 20

// ErrNoAPIServer is the error of Find on a node where no kube-apiserver is set up in a
// way that it knows.
var ErrNoAPIServer = errors.New("no kube-apiserver with a known layout on this node")

// ErrNoFile is the error of Find for a kube-apiserver without a configuration: it writes
// plaintext.
var ErrNoFile = errors.New("kube-apiserver has no --" + flagFile)

// Source is where an EncryptionConfiguration was found.
type Source struct {
	// File is its path on the host.
	File string `json:"file"`
	// Layout is kubeadm, k3s or rke2, or "given" for a file that the caller named.
	Layout string `json:"layout"`
	// By is the file that says so: a static pod, a configuration file, a unit.
	By string `json:"by,omitempty"`
	// Reload is "true" or "false", and empty where nothing tells.
	Reload string `json:"reload,omitempty"`

	root string
	// flags are kube-apiserver's; its zero value maps every path to itself.
	flags apiserverflags.Flags
	// file is the path as kube-apiserver sees it.
	file string
}

// How says in a few words how the file was found.
func (s Source) How() string {
	if s.Layout == layoutGiven {
		return "given by --encryption-config"
	}
	return fmt.Sprintf("%s, by %s", s.Layout, s.By)
}

// hostPath is where on the host the file is that kube-apiserver sees at a path.
func (s Source) hostPath(inside string) string { return s.flags.HostPath(inside) }

// resolve follows the links in the directory of a path on the host.
func (s Source) resolve(host string) string {
	dir, err := filepath.EvalSymlinks(filepath.Join(s.root, filepath.Dir(host)))
	if err != nil {
		return filepath.Clean(host)
	}
	if s.root != "" {
		if rel, err := filepath.Rel(s.root, dir); err == nil {
			dir = filepath.Join("/", rel)
		}
	}
	return filepath.Join(dir, filepath.Base(host))
}

// problems are those of how kube-apiserver gets the file.
func (s Source) problems() []Problem {
	switch {
	case s.Reload == "false":
		return []Problem{{
			Verdict: Warn, Text: "--" + flagReload + " is not set: a change of the file has no effect before kube-apiserver restarts",
			Remedy: "set it to true, as manifests/kube-apiserver/kubeadm.yaml does",
		}}
	case s.Reload == "true" && s.flags.MountsFile(s.file):
		return []Problem{{
			Verdict: Warn, Text: "the pod mounts the file itself: it keeps the old file when you replace it, whatever the reload",
			Remedy: "mount the directory " + filepath.Dir(s.file) + " instead",
		}}
	}
	return nil
}

// Find reads the EncryptionConfiguration of this node's kube-apiserver: file if it is
// not empty, else the one that kubeadm's, RKE2's or k3s's setup names. root is put before
// every path on the host; it is empty but in tests.
//
// The error wraps ErrNoAPIServer or ErrNoFile if there is none, and fs.ErrPermission if
// the caller may not look. Source is filled in as far as it is known, whatever the error.
func Find(root, file string) (Config, error) {
	source := Source{File: file, Layout: layoutGiven, root: root, file: file}
	if file == "" {
		var err error
		if source, err = locate(root); err != nil {
			return Config{Source: source}, err
		}
	}
	data, err := read(filepath.Join(root, source.File))
	if err != nil {
		return Config{Source: source}, fmt.Errorf("read the EncryptionConfiguration: %w", err)
	}
	c, err := Parse(data)
	c.Source = source
	if err != nil {
		return c, fmt.Errorf("read the EncryptionConfiguration %s: %w", source.File, err)
	}
	return c, nil
}

// read returns the content of a file of reasonable size.
func read(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // G304: found by a fixed list, or named by the administrator
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err == nil && len(data) > maxFileSize {
		err = fmt.Errorf("%s is larger than %d KiB", path, maxFileSize>>10)
	}
	return data, err
}

// exists reports whether there is such a file. What may not be looked at is an error.
func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
