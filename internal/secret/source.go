package secret

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// MaxPINSize is the longest PIN that a Source yields, in bytes.
const MaxPINSize = 256

// credentialsDir is where systemd puts a service's credentials; the variable
// names a directory and holds nothing secret (systemd.exec(5)).
const credentialsDir = "CREDENTIALS_DIRECTORY"

// Source is where the PIN comes from. It is read anew each time, so that a
// changed PIN is seen without a restart.
type Source interface {
	// Read returns the PIN, 1 to MaxPINSize bytes. The caller owns it and wipes
	// it. The error names the configuration field, the place and the remedy,
	// never the content.
	Read() (Bytes, error)
	// String names the place, never the content.
	String() string
}

// FileSource reads the PIN from a regular file (hsm.pinFile). Symbolic links
// are followed, since Kubernetes mounts Secrets as links. The owner must be
// root or the user that the process runs as.
type FileSource struct {
	Path string
	// AllowOpen accepts a file that its group or others may read or write
	// (hsm.allowOpenPinFile).
	AllowOpen bool
	// Field is what names the file in errors; empty for hsm.pinFile.
	Field string
}

// String implements Source.
func (s FileSource) String() string { return "file " + s.Path }

// Read implements Source.
func (s FileSource) Read() (Bytes, error) {
	pin, err := s.read()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cmp.Or(s.Field, "hsm.pinFile"), err)
	}
	return pin, nil
}

func (s FileSource) read() (Bytes, error) {
	// Not blocking, so that a FIFO at the path is refused rather than waited for.
	f, err := os.OpenFile(s.Path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, openError(s.Path, err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("inspect %s: %w", s.Path, err)
	}
	if err := s.check(info); err != nil {
		return nil, err
	}
	return readPIN(f, s.Path)
}

// check judges what was opened by its kind, mode and owner.
func (s FileSource) check(info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file; name a file that holds the PIN and nothing else", s.Path)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("inspect %s: the owner is unknown", s.Path)
	}
	if user := os.Geteuid(); stat.Uid != 0 && int(stat.Uid) != user {
		return fmt.Errorf("%s belongs to uid %d, who could replace it; run this as that user, or chown %d %s", s.Path, stat.Uid, user, s.Path)
	}
	if mode := info.Mode().Perm(); mode&0o066 != 0 && !s.AllowOpen {
		return fmt.Errorf("%s has mode %#o, so its group or others can read or write it; run chmod 0600 %s, "+
			"or set hsm.allowOpenPinFile: true", s.Path, mode, s.Path)
	}
	return nil
}

// CredentialSource reads the PIN from a systemd credential (hsm.pinCredential).
// systemd made the file for this service alone, so its mode is not judged: an
// access control list of systemd's own shows there as group permissions.
type CredentialSource struct {
	// Name is the credential's name: a file name, without slashes.
	Name string
}

// String implements Source.
func (s CredentialSource) String() string { return "systemd credential " + s.Name }

// Read implements Source.
func (s CredentialSource) Read() (Bytes, error) {
	pin, err := s.read()
	if err != nil {
		return nil, fmt.Errorf("hsm.pinCredential: %w", err)
	}
	return pin, nil
}

func (s CredentialSource) read() (Bytes, error) {
	if s.Name == "" || s.Name == "." || s.Name == ".." || strings.ContainsAny(s.Name, "/\x00") {
		return nil, fmt.Errorf("%q is not a credential name; give a file name without slashes", s.Name)
	}
	dir := os.Getenv(credentialsDir)
	if dir == "" {
		return nil, fmt.Errorf("no credential %s: $%s is not set; start the service with "+
			"LoadCredential=%s:PATH or LoadCredentialEncrypted=, or use hsm.pinFile", s.Name, credentialsDir, s.Name)
	}
	path := filepath.Join(dir, s.Name)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) //nolint:gosec // G304: the name has no slash
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no credential %s in %s; add LoadCredential=%s:PATH to the unit", s.Name, dir, s.Name)
	}
	if err != nil {
		return nil, openError(path, err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("inspect %s: %w", path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return readPIN(f, path)
}

func openError(path string, err error) error {
	if reason, ok := errors.AsType[*fs.PathError](err); ok {
		err = reason.Err // the path is in the text already
	}
	return fmt.Errorf("open %s: %w; it must exist and be readable by uid %d", path, err, os.Geteuid())
}

// readPIN reads a PIN and takes one line ending off its end. More than one line
// is refused: it is a mistake, and trying it would cost one of the token's few
// attempts.
func readPIN(r io.Reader, path string) (Bytes, error) {
	// One more than the longest PIN with its line ending, to notice what is longer.
	buf := make(Bytes, MaxPINSize+len("\r\n")+1)
	n, err := io.ReadFull(r, buf)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		buf.Wipe()
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	pin, whole := bytes.CutSuffix(buf[:n], []byte("\n"))
	if whole {
		pin = bytes.TrimSuffix(pin, []byte("\r"))
	}
	var problem string
	switch {
	case len(pin) == 0:
		problem = "is empty"
	case len(pin) > MaxPINSize:
		problem = fmt.Sprintf("is longer than %d bytes", MaxPINSize)
	case bytes.ContainsAny(pin, "\r\n\x00"):
		problem = "holds a line break or a zero byte inside"
	default:
		return pin, nil
	}
	buf.Wipe()
	return nil, fmt.Errorf("%s %s; it must hold the PIN alone", path, problem)
}
