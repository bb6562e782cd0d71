package cmdtest

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// Run runs the scripts in the directory testdata, each as a parallel subtest.
func Run(t *testing.T) {
	t.Helper()
	testscript.Run(t, testscript.Params{
		Dir: "testdata", Setup: setup, Cmds: scriptCommands(), RequireUniqueNames: true,
	})
}

// nodeVariable names the daemon that commands act on.
const nodeVariable = "NODE"

// script is the state of one running script. Only the script's own goroutine
// uses it.
type script struct {
	dir string
	// pin is the token's PIN.
	pin string
	// secrets are what no output may hold: the PINs and what was encrypted.
	secrets []string
	// nodes are the daemons by name.
	nodes map[string]*node
}

// scriptKey is where testscript keeps the script's state.
type scriptKey struct{}

func stateOf(ts *testscript.TestScript) *script {
	s, ok := ts.Value(scriptKey{}).(*script)
	if !ok {
		ts.Fatalf("the script has no state")
	}
	return s
}

// node returns the daemon that NODE names.
func (s *script) node(ts *testscript.TestScript) *node {
	name := ts.Getenv(nodeVariable)
	n := s.nodes[name]
	if n == nil {
		n = &node{name: name, dir: s.dir, address: loopback()}
		s.nodes[name] = n
	}
	return n
}

func setup(env *testscript.Env) error {
	s := &script{dir: env.WorkDir, nodes: map[string]*node{}}
	env.Values[scriptKey{}] = s
	env.Setenv(nodeVariable, "kekd")
	env.Setenv("MODULE", softHSMModule)
	env.Setenv("LIBRARY", cLibrary())
	env.Setenv("UID", fmt.Sprint(os.Getuid()))
	// The race detector would make every program sleep for a second at its end.
	env.Setenv("GORACE", "atexit_sleep_ms=0")
	for _, dir := range []string{tokenDir, "run"} {
		if err := os.Mkdir(filepath.Join(s.dir, dir), 0o700); err != nil {
			return err
		}
	}
	conf := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", filepath.Join(s.dir, tokenDir))
	if err := os.WriteFile(filepath.Join(s.dir, softHSMConf), []byte(conf), 0o600); err != nil {
		return err
	}
	s.pin = s.newSecret("pin")
	if err := s.writePIN(s.pin); err != nil {
		return err
	}
	env.Defer(func() {
		tb, ok := env.T().(testing.TB)
		for _, n := range s.nodes {
			n.end()
			if ok && tb.Failed() {
				tb.Logf("end of %s:\n%s", n.logName(), n.logTail())
			}
		}
	})
	return nil
}

// cLibrary is the path of a shared library that is no PKCS#11 module: the C
// library that this process has loaded, empty if it has none.
func cLibrary() string {
	maps, _ := os.ReadFile("/proc/self/maps") // without it the script that uses the path fails
	for line := range strings.Lines(string(maps)) {
		fields := strings.Fields(line)
		if path := fields[len(fields)-1]; strings.HasPrefix(filepath.Base(path), "libc.so") || strings.HasPrefix(filepath.Base(path), "libc-") {
			return path
		}
	}
	return ""
}

// newSecret makes a random text that is found wherever it turns up.
func (s *script) newSecret(kind string) string {
	secret := kind + "-" + randomHex(8)
	s.secrets = append(s.secrets, secret)
	return secret
}

func (s *script) writePIN(pin string) error {
	return os.WriteFile(filepath.Join(s.dir, "pin"), []byte(pin+"\n"), 0o600)
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// loopback makes an address for an HTTP endpoint. All of 127.0.0.0/8 is this
// machine, so a random address there has every port free, where a free port of
// 127.0.0.1 could be taken by another before it is used.
func loopback() string {
	b := make([]byte, 3)
	for bytes.ContainsAny(b, "\x00\xff") {
		_, _ = rand.Read(b) // never fails
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, b[0], b[1], b[2]}), 8780).String()
}
