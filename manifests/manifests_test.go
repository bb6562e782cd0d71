// Package manifests_test holds the manifests against the types that they are
// read into, against the code that they start, and against each other.
package manifests_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"kekd/internal/config"
)

// uid is kekd's user and group, in the image and on every node.
const uid = 65529

// Where things are on a node.
const (
	configDir      = "/etc/kekd"
	tokenDir       = "/var/lib/softhsm/tokens"
	auditDir       = "/var/log/kekd"
	encryptionFile = "/etc/kubernetes/kms/encryption.yaml"
)

// socketDir is the directory of the default socket.path.
func socketDir() string { return filepath.Dir(config.Default().Socket.Path) }

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// decode reads YAML as Kubernetes' strict decoders do: fields that v does not know
// are refused, also for their case, and so are fields written twice.
func decode(t *testing.T, data string, v any) {
	t.Helper()
	text, err := yaml.YAMLToJSONStrict([]byte(data))
	if err != nil {
		t.Fatal(err)
	}
	strict, err := json.UnmarshalStrict(text, v)
	if err = errors.Join(append(strict, err)...); err != nil {
		t.Fatal(err)
	}
}

// files lists all manifests, tests aside.
func files(t *testing.T) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && !strings.HasSuffix(path, "_test.go") {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// program finds a program. Without it a test is skipped, but fails under CI.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v; make deps installs it", err)
		}
		t.Skip(err)
	}
	return path
}

// binary builds a command of this module, once.
func binary(t *testing.T, name string) string {
	t.Helper()
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// builtIn is where binaries builds; TestMain removes it.
var builtIn string

var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "kekd-manifests-")
	if err != nil {
		return "", err
	}
	builtIn = dir
	cmd := exec.Command("go", "build", "-o", dir, "../cmd/kekd", "../cmd/kekctl")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return dir, cmd.Run()
})

func TestMain(m *testing.M) {
	code := m.Run()
	if builtIn != "" {
		_ = os.RemoveAll(builtIn)
	}
	os.Exit(code)
}

// README.md says what each file is for.
func TestReadme(t *testing.T) {
	readme := read(t, "README.md")
	for _, path := range files(t) {
		if path == "README.md" || strings.HasPrefix(path, "static-pod/") {
			continue
		}
		// A folder may have a README.md of its own, which this one then names.
		if _, err := os.Stat(filepath.Join(strings.Split(path, "/")[0], "README.md")); err == nil {
			path = strings.Split(path, "/")[0] + "/README.md"
			if !strings.Contains(readme, path) {
				t.Errorf("README.md does not name %s", path)
			}
			continue
		}
		if !strings.Contains(readme, filepath.Base(path)) {
			t.Errorf("README.md does not name %s", path)
		}
	}
	overlays, err := filepath.Glob("static-pod/overlays/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range overlays {
		if !strings.Contains(readme, "`"+filepath.Base(path)+"`") && !strings.Contains(readme, "`"+path+"`") {
			t.Errorf("README.md does not name %s", path)
		}
	}
}

// kekctlCall finds what comments and scripts have readers run: a call in backticks,
// or one that a container runs.
var kekctlCall = regexp.MustCompile("(?:`|-- |kekd )kekctl ((?:[a-z][a-z-]* ?)+)((?:--[a-z-]+(?: [a-z]+)? ?)*)")

// What the manifests tell to run with kekctl, kekctl knows.
func TestKekctlCalls(t *testing.T) {
	found := 0
	for _, path := range files(t) {
		for _, call := range kekctlCall.FindAllStringSubmatch(read(t, path), -1) {
			words, flags := strings.Fields(call[1]), strings.Fields(call[2])
			found++
			cmd := exec.Command(binary(t, "kekctl"), append(append(words, flags...), "--help")...)
			out, err := cmd.CombinedOutput()
			// Help for a command that it does not know is help for another.
			if err != nil || !strings.Contains(string(out), "\n  kekctl "+strings.Join(words, " ")+" ") {
				t.Errorf("%s: kekctl %s %s: %v\n%s", path, words, flags, err, out)
			}
		}
	}
	if found < 8 {
		t.Errorf("found %d calls of kekctl: the pattern is at fault", found)
	}
}

// startsKekd runs a command line of a manifest, its binary and its configuration
// replaced, and wants it to get as far as reading the configuration.
func startsKekd(t *testing.T, line []string) {
	t.Helper()
	const path = configDir + "/config.yaml"
	if len(line) == 0 || line[0] != "/usr/local/bin/kekd" {
		t.Fatalf("runs %q, and not /usr/local/bin/kekd", line)
	}
	args := make([]string, 0, len(line))
	for _, arg := range line[1:] {
		args = append(args, strings.ReplaceAll(arg, path, t.TempDir()+"/config.yaml"))
	}
	out, err := exec.Command(binary(t, "kekd"), args...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "read the configuration") {
		t.Errorf("%q: %v\n%s", line, err, out)
	}
	if !strings.Contains(strings.Join(line, " "), path) {
		t.Errorf("%q does not name %s", line, path)
	}
}
