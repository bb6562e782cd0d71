package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"kekd/hsm/wire"
)

// usageError reports whether err is one of the command line's that names the flag.
func usageError(err error, flag string) bool {
	e, ok := errors.AsType[codeError](err)
	return ok && e.code == exitUsage && strings.HasPrefix(e.Error(), flag+": ")
}

// FuzzFlags: what a flag says is within its bounds, or the error is the command
// line's and names the flag.
func FuzzFlags(f *testing.F) {
	for _, s := range []string{"", "d", "0d", "30d", "-1d", "+1d", "1h", "3651d", "99999999999999999999d", " 1d", "1dd"} {
		f.Add(s, "rsa-oaep", "sha256", "", "")
	}
	for _, s := range []string{"10.0.0.1:8780", "http://10.0.0.1:8780", "https://[::1]:8780/status?x#y", "unix:///run/kekd", "http://", "http://a b", "://", "http://user:pw@h", "%zz", "h:port"} {
		f.Add(s, "aes-kwp", "", "01", "A1B2C3")
	}
	f.Add("", "rsa-aes-key-wrap", "sha1", "0102", "a1b2c3")
	f.Add("", "aes-kwp", "md5", "", "")
	f.Add("", "rsa-oaep", "md5", "", "")
	f.Add("", "rsa-oaep", "sha256", "zz", "")
	f.Add("", "rsa-oaep", "sha256", "", "a1b2")
	f.Add("", "rsa-oaep", "sha256", "", "a1b2c3d4")
	f.Add("", "des", "sha256", "", "")
	path := filepath.Join(f.TempDir(), "kek.wrapped")
	if err := os.WriteFile(path, []byte("wrapped"), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text, method, hash, wrappingKey, checkValue string) {
		checkDays(t, text)
		checkNodeURL(t, text)
		checkImport(t, importFlags{method: method, hash: hash, wrappingKey: wrappingKey, checkValue: checkValue}, path)
	})
}

func checkDays(t *testing.T, s string) {
	t.Helper()
	n, err := parseDays(s)
	if err != nil {
		if n != 0 || !usageError(err, "--after") {
			t.Errorf("parseDays(%q) = %d, %v", s, n, err)
		}
		return
	}
	digits, ok := strings.CutSuffix(s, "d")
	if !ok || n < 0 || n > maxDestroyDelay || strings.Trim(digits, "+-0123456789") != "" {
		t.Errorf("parseDays(%q) = %d", s, n)
	}
}

// A node's URL reads again as itself, and holds no password that would be printed.
func checkNodeURL(t *testing.T, s string) {
	t.Helper()
	n, err := namedNode(s)
	if err != nil {
		if !usageError(err, "--node") {
			t.Errorf("namedNode(%q): %v", s, err)
		}
		return
	}
	again, err := namedNode(n.URL())
	if err != nil || again.URL() != n.URL() || n.Name() == "" || strings.Contains(n.URL(), "@") {
		t.Errorf("namedNode(%q) is %q at %q, and of that %q, %v", s, n.Name(), n.URL(), again.URL(), err)
	}
}

// What goes to the token is one of the methods and hashes that kekctl knows, with an
// id and a check value of the right size.
func checkImport(t *testing.T, f importFlags, path string) {
	t.Helper()
	req, err := f.request(path)
	if err != nil {
		if !slices.ContainsFunc([]string{"--method", "--hash", "--wrapping-key", "--check-value"}, func(flag string) bool { return usageError(err, flag) }) {
			t.Errorf("the error names no flag: %v", err)
		}
		return
	}
	switch {
	case !slices.Contains(wire.ImportMethods(), req.Method), string(req.Wrapped) != "wrapped":
		t.Errorf("%+v", req)
	case req.Method == wire.AESKWP && (req.Hash != "" || len(req.WrappingKey) == 0):
		t.Errorf("aes-kwp with the hash %q and the key %x", req.Hash, req.WrappingKey)
	case req.Method != wire.AESKWP && req.Hash != wire.SHA256 && req.Hash != wire.SHA1:
		t.Errorf("the hash %q", req.Hash)
	case (f.checkValue == "") != (req.CheckValue == nil) || req.CheckValue != nil && req.CheckValue.String() != strings.ToLower(f.checkValue):
		t.Errorf("the check value %q became %v", f.checkValue, req.CheckValue)
	}
}

// FuzzManifest: whatever stands where kube-apiserver's static pod should be, the
// flags keep their defaults or take what it says of etcd.
func FuzzManifest(f *testing.F) {
	for _, s := range []string{
		"", "{", "[]", kubeadmManifest, "spec: {containers: [{command: [kube-apiserver], args: [--etcd-servers, 'http://10.0.0.3:2379']}]}",
		"spec: {containers: [{command: [--etcd-servers]}]}", "spec: {containers: [null, {args: [--etcd-servers=a, --etcd-servers=]}]}", "a: &a [*a]", "spec: {containers: {}}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, manifest []byte) {
		fresh := func(manifest string) *etcdFlags {
			flags, e := pflag.NewFlagSet("", pflag.ContinueOnError), new(etcdFlags)
			e.add(&app{stderr: io.Discard}, flags)
			e.manifest = manifest
			return e
		}
		path := filepath.Join(t.TempDir(), "kube-apiserver.yaml")
		if err := os.WriteFile(path, manifest, 0o600); err != nil {
			t.Fatal(err)
		}
		got, defaults := fresh(path), fresh("")
		if err := got.complete(); err != nil {
			t.Fatal(err)
		}
		if slices.Equal(got.endpoints, defaults.endpoints) {
			return
		}
		if len(got.endpoints) == 0 || got.prefix == "" {
			t.Errorf("endpoints %q and prefix %q", got.endpoints, got.prefix)
		}
		// What it names is checked like a flag's value.
		got.manifest, got.ca, got.cert, got.key = "", "", "", ""
		store, err := got.open(t.Context())
		if err == nil {
			err = store.Close()
		}
		if err != nil && !usageError(err, "--etcd-endpoints") && !usageError(err, "--etcd-servers-overrides") {
			t.Errorf("the error names no flag: %v", err)
		}
	})
}

// What a node, an API server or a token says can't move an administrator's cursor.
func TestNothingForTheTerminal(t *testing.T) {
	t.Parallel()
	const bad = "a\x1b[2J\rb\u202ec\u009bd"
	var out, notes strings.Builder
	row(&out, "problem", bad)
	(&app{stderr: &notes}).note("%s\n%s", bad, "next")
	for _, got := range []string{out.String(), notes.String()} {
		if strings.ContainsAny(got, "\x1b\r\u202e\u009b") || !strings.Contains(got, "a\ufffd[2J\ufffdb\ufffdc\ufffdd") {
			t.Errorf("printed: %q", got)
		}
	}
	if !strings.HasSuffix(notes.String(), "\nnext\n") || !strings.HasPrefix(out.String(), "problem\t") {
		t.Errorf("printed: %q and %q", out.String(), notes.String())
	}
}
