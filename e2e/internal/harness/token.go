package harness

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Token is a SoftHSM token with its own configuration, files and label, so that
// tests share nothing.
type Token struct {
	Label   string
	Module  string
	PINFile string // mode 0600, no newline
	Conf    string // for SOFTHSM2_CONF

	store string // SoftHSM's directory of tokens
	pin   string // of the user, random

	faults string // where its files begin; "" without the fault-injecting module
	behind string // the module that stands behind it
}

// NewToken initialises a token without any keys.
func NewToken(tb testing.TB) *Token {
	tb.Helper()
	util, err := exec.LookPath("softhsm2-util")
	if err != nil {
		tb.Fatalf("%v: install softhsm2", err)
	}
	dir := shortDir(tb)
	t := &Token{
		Label:   "kekd-e2e-" + randomHex(4),
		Module:  softHSMModule(tb),
		PINFile: filepath.Join(dir, "pin"),
		Conf:    filepath.Join(dir, "softhsm2.conf"),
		store:   filepath.Join(dir, "tokens"),
		pin:     randomHex(8),
	}
	if err := os.Mkdir(t.store, 0o700); err != nil {
		tb.Fatalf("make the token directory: %v", err)
	}
	t.writeConf(tb)
	writeFile(tb, t.PINFile, t.pin)
	command(tb, t.env(), util, "--init-token", "--free", "--module", t.Module,
		"--label", t.Label, "--pin", t.pin, "--so-pin", randomHex(8))
	return t
}

// View returns the same token as another node sees it: with a configuration of its
// own and a link to the token's files, so that it can be taken away from that
// node alone.
func (t *Token) View(tb testing.TB) *Token {
	tb.Helper()
	dir := shortDir(tb)
	v := *t
	v.Conf = filepath.Join(dir, "softhsm2.conf")
	v.store = filepath.Join(dir, "tokens")
	if err := os.Symlink(t.store, v.store); err != nil {
		tb.Fatalf("link the token directory: %v", err)
	}
	v.writeConf(tb)
	return &v
}

// Env is the environment that the module needs.
func (t *Token) Env() map[string]string {
	env := map[string]string{"SOFTHSM2_CONF": t.Conf}
	if t.faults != "" {
		env["KEKD_FAULTS"], env["KEKD_FAULTS_MODULE"] = t.faults, t.behind
	}
	return env
}

// TakeAway moves the token's files out of SoftHSM's sight, as if the HSM had
// been unplugged. PutBack undoes it.
func (t *Token) TakeAway(tb testing.TB) {
	tb.Helper()
	t.rename(tb, t.store, t.away())
}

// IsAway tells whether TakeAway was called last.
func (t *Token) IsAway() bool {
	_, err := os.Stat(t.away())
	return err == nil
}

// PutBack makes the token visible again.
func (t *Token) PutBack(tb testing.TB) {
	tb.Helper()
	// SoftHSM may have made an empty directory in the meantime.
	if err := os.Remove(t.store); err != nil && !errors.Is(err, fs.ErrNotExist) {
		tb.Fatalf("remove the stand-in of the token directory: %v", err)
	}
	t.rename(tb, t.away(), t.store)
}

func (t *Token) away() string { return t.store + ".away" }

func (t *Token) rename(tb testing.TB, from, to string) {
	tb.Helper()
	if err := os.Rename(from, to); err != nil {
		tb.Fatalf("move the token directory: %v", err)
	}
}

// writeConf writes SoftHSM's configuration.
func (t *Token) writeConf(tb testing.TB) {
	tb.Helper()
	writeFile(tb, t.Conf, fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", t.store))
}

func (t *Token) env() []string { return []string{"SOFTHSM2_CONF=" + t.Conf} }

// shortDir makes a directory of mode 0700 that goes with the test. A socket's
// path may have 107 bytes; testing.T.TempDir spells out the test's name.
func shortDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "kekd-e2e-")
	if err != nil {
		tb.Fatalf("make a temporary directory: %v", err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("remove the temporary directory: %v", err)
		}
	})
	return dir
}

// writeFile writes a file of mode 0600.
func writeFile(tb testing.TB, path, content string) {
	tb.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		tb.Fatalf("write a file: %v", err)
	}
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
