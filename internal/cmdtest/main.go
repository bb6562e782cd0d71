package cmdtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"kekd/hsm/worker"
)

// programs are the commands of this module. The one under test is the test
// binary itself; the other is built.
func programs() []string { return []string{"kekd", "kekctl"} }

// Main is the TestMain of the package of a command: name is the command's, and
// main its main function. It does not return.
func Main(m *testing.M, name string, main func()) {
	if worker.Is(os.Args) {
		// The program under test re-executes /proc/self/exe as its HSM worker, and
		// that is this test binary under a name that testscript does not know.
		os.Exit(worker.Main(worker.OpenModule))
	}
	testscript.Main(suite{m: m, self: name}, map[string]func(){name: main, tokenTool: tokenToolMain})
}

// suite is a testscript.TestingM that builds the other program first.
type suite struct {
	m    *testing.M
	self string
}

// Run implements testscript.TestingM.
func (s suite) Run() int {
	dir, err := os.MkdirTemp("", "kekd-cmdtest-")
	if err != nil {
		return fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for _, name := range programs() {
		if name == s.self {
			continue
		}
		// The directory is read for the cache of test results: a change there, and
		// not only in what this package imports, is a reason to run again.
		if _, err := os.ReadDir(filepath.Join("..", name)); err != nil {
			return fatal(err)
		}
		build := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(dir, name), "kekd/cmd/"+name)
		if out, err := build.CombinedOutput(); err != nil {
			return fatal(fmt.Errorf("build %s: %w\n%s", name, err, out))
		}
	}
	path := dir + string(filepath.ListSeparator) + os.Getenv("PATH")
	if err := os.Setenv("PATH", path); err != nil {
		return fatal(err)
	}
	return s.m.Run()
}

func fatal(err error) int {
	fmt.Fprintln(os.Stderr, "cmdtest:", err)
	return 1
}
