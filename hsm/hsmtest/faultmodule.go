package hsmtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// FaultModule puts the fault-injecting PKCS#11 module before the fixture's own
// and returns the path to give to SetFaults and CallCounts. Workers that are
// started later meet the faults.
func (f *Fixture) FaultModule(t *testing.T) string {
	t.Helper()
	prefix := filepath.Join(t.TempDir(), "module")
	env := map[string]string{"KEKD_FAULTS": prefix, "KEKD_FAULTS_MODULE": f.Config.Module}
	maps.Copy(env, f.Config.Env)
	f.Config.Module, f.Config.Env = faultModule(t), env
	return prefix
}

// faultModule builds the module, if it is not built, as the Makefile says.
func faultModule(t *testing.T) string {
	t.Helper()
	root, err := os.Getwd()
	must(t, err)
	for {
		if _, err := os.Stat(filepath.Join(root, "Makefile")); err == nil {
			break
		}
		if filepath.Dir(root) == root {
			t.Fatal("no Makefile above the working directory, which builds bin/kekd-faults.so")
		}
		root = filepath.Dir(root)
	}
	command(t, os.Environ(), "make", "-s", "-C", root, "bin/kekd-faults.so")
	return filepath.Join(root, "bin", "kekd-faults.so")
}

// counterSize and nameSize are those of a counter in the module's file: a name,
// ended by NULs, and a number of the machine's byte order.
const (
	counterSize = 32
	nameSize    = 24
)

// CallCounts tells how often the PKCS#11 functions were called through the
// fault-injecting module, in all processes together.
func CallCounts(path string) (map[string]uint64, error) {
	b, err := os.ReadFile(path + ".faults.counts")
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]uint64{}, nil // no worker was there yet
	}
	if err != nil {
		return nil, err
	}
	counts := map[string]uint64{}
	for ; len(b) >= counterSize && b[0] != 0; b = b[counterSize:] {
		name, _, _ := bytes.Cut(b[:nameSize], []byte{0})
		counts[string(name)] = binary.NativeEndian.Uint64(b[nameSize:])
	}
	return counts, nil
}
