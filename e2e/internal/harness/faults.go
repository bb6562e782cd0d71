package harness

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// WithFaults returns the same token behind the fault-injecting PKCS#11 module
// (hsm/hsmtest/faultmodule), which does nothing until Faults is called.
func (t *Token) WithFaults(tb testing.TB) *Token {
	tb.Helper()
	v := *t
	v.Module, v.behind = faultModule(tb), t.Module
	v.faults = filepath.Join(shortDir(tb), "module")
	return &v
}

// Faults replaces the faults of a token that WithFaults returned, for the
// daemons that run too. SetFaults in package hsmtest tells the language; this
// module does not import it, to keep kube-apiserver's own versions of what both
// need.
func (t *Token) Faults(tb testing.TB, lines ...string) {
	tb.Helper()
	lock, err := os.OpenFile(t.faults+".faults.lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		tb.Fatalf("lock the faults: %v", err)
	}
	defer func() { _ = lock.Close() }() // which frees the lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		tb.Fatalf("lock the faults: %v", err)
	}
	writeFile(tb, t.faults+".faults.new", strings.Join(lines, "\n"))
	if err := os.Rename(t.faults+".faults.new", t.faults+".faults"); err != nil {
		tb.Fatalf("set the faults: %v", err)
	}
}

// FaultsLeft tells whether a fault is left that was set with a count.
func (t *Token) FaultsLeft(tb testing.TB) bool {
	tb.Helper()
	b, err := os.ReadFile(t.faults + ".faults")
	if err != nil {
		tb.Fatalf("read the faults: %v", err)
	}
	return bytes.Contains(b, []byte(" n="))
}

// Calls tells how often each PKCS#11 function was called on a token that
// WithFaults returned, by all processes: struct counter of the module.
func (t *Token) Calls(tb testing.TB) map[string]uint64 {
	tb.Helper()
	const size, name = 32, 24
	b, err := os.ReadFile(t.faults + ".faults.counts")
	if err != nil {
		tb.Fatalf("count the calls: %v", err)
	}
	calls := map[string]uint64{}
	for ; len(b) >= size && b[0] != 0; b = b[size:] {
		call, _, _ := bytes.Cut(b[:name], []byte{0})
		calls[string(call)] = binary.NativeEndian.Uint64(b[name:])
	}
	return calls
}
