package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"
	kmsservice "k8s.io/kms/pkg/service"

	"kekd/e2e/internal/harness"
)

const (
	pin = "7300418825"
	// readyWithin bounds the time from `docker run` to a proven key.
	readyWithin = 30 * time.Second
)

// node is what kekd needs of its host, in a directory.
type node struct {
	image  string
	dir    string
	mounts []string
}

// newNode makes the directories and files for a configuration that names the module.
func newNode(t *testing.T, image, module string) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("run this as root: kekd's files on the host belong to kekd's user")
	}
	// A socket's path may have 107 bytes; testing.T.TempDir spells out the test's name.
	dir, err := os.MkdirTemp("", "kekd-image-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := &node{image: image, dir: dir}
	n.mount(t, "etc", "/etc/kekd", 0o755, 0, true)
	n.mount(t, "state", "/var/lib/kekd", 0o700, uid, false)
	n.mount(t, "run", "/run/kekd", 0o750, uid, false)
	n.mount(t, "tokens", "/var/lib/softhsm/tokens", 0o700, uid, false)
	n.write(t, "etc/pin", pin, 0o600, uid)
	n.write(t, "etc/softhsm2.conf", "directories.tokendir = /var/lib/softhsm/tokens\nobjectstore.backend = file\n", 0o644, 0)
	n.write(t, "etc/config.yaml", fmt.Sprintf(`hsm:
  module: %s
  token: {label: kekd}
  pinFile: /etc/kekd/pin
  env: {SOFTHSM2_CONF: /etc/kekd/softhsm2.conf}
keyRing: {label: k8s-kek, refresh: 1s}
socket: {allowedUIDs: [0, 65529]}
`, module), 0o644, 0)
	return n
}

func (n *node) path(name string) string { return filepath.Join(n.dir, filepath.FromSlash(name)) }

func (n *node) mount(t *testing.T, name, target string, mode os.FileMode, owner int, readOnly bool) {
	t.Helper()
	if err := os.Mkdir(n.path(name), mode); err != nil {
		t.Fatal(err)
	}
	n.own(t, name, mode, owner)
	n.bind(name, target, readOnly)
}

func (n *node) bind(name, target string, readOnly bool) {
	mount := "type=bind,src=" + n.path(name) + ",dst=" + target
	if readOnly {
		mount += ",readonly"
	}
	n.mounts = append(n.mounts, "--mount", mount)
}

func (n *node) write(t *testing.T, name, content string, mode os.FileMode, owner int) {
	t.Helper()
	if err := os.WriteFile(n.path(name), []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	n.own(t, name, mode, owner)
}

// own sets owner and mode, whatever the umask is.
func (n *node) own(t *testing.T, name string, mode os.FileMode, owner int) {
	t.Helper()
	if err := os.Chown(n.path(name), owner, owner); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(n.path(name), mode); err != nil {
		t.Fatal(err)
	}
}

// args is the command line of `docker run` up to the image.
func (n *node) args(flags ...string) []string {
	args := append([]string{"run"}, lockedDown...)
	return append(append(args, n.mounts...), flags...)
}

// run runs a program of an image on the node, to its end.
func (n *node) run(t *testing.T, image, program string, args ...string) result {
	t.Helper()
	return run(t, append(n.args("--rm", "--entrypoint", program, image), args...)...)
}

// must is run, and requires success.
func (n *node) must(t *testing.T, image, program string, args ...string) string {
	t.Helper()
	r := n.run(t, image, program, args...)
	if r.code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s%s", program, strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

func TestVersion(t *testing.T) {
	t.Parallel()
	kekd, softHSM := names(t)
	for _, image := range []string{kekd, softHSM} {
		revision, dirty := strings.CutSuffix(config(t, image).Labels["org.opencontainers.image.revision"], "-dirty")
		for _, program := range []string{"kekd", "kekctl"} {
			got := docker(t, append(append([]string{"run", "--rm"}, lockedDown...), "--entrypoint", program, image, "version")...)
			if !strings.HasPrefix(got, program+" ") || !strings.Contains(got, "(commit "+revision) {
				t.Errorf("version of %s in %s is %q, want the commit %s", program, image, got, revision)
			}
			// What is left out of the build is no change.
			if !dirty && strings.Contains(got, "dirty") {
				t.Errorf("version of %s in %s is %q, and the checkout was clean", program, image, got)
			}
		}
	}
}

func TestConfigurationErrors(t *testing.T) {
	t.Parallel()
	kekd, _ := names(t)
	t.Run("missing", func(t *testing.T) {
		t.Parallel()
		r := run(t, append(append([]string{"run", "--rm"}, lockedDown...), kekd)...)
		const want = "kekd: error: read the configuration: open /etc/kekd/config.yaml: no such file or directory"
		if r.code != 1 || !strings.HasPrefix(r.stderr, want) {
			t.Errorf("exit code %d, want 1; stderr %q, want %q", r.code, r.stderr, want)
		}
	})
	t.Run("wrong", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, kekd, "libpkcs11.so")
		r := run(t, n.args("--rm", kekd)...)
		if r.code != 1 || !strings.Contains(r.stderr, "hsm.module") || !strings.Contains(r.stderr, "absolute") {
			t.Errorf("exit code %d, want 1; stderr %q, want what is wrong with hsm.module", r.code, r.stderr)
		}
	})
	t.Run("no module", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, kekd, "/opt/hsm/lib/libpkcs11.so")
		r := n.run(t, kekd, "kekctl", "doctor")
		if r.code != 1 || !strings.Contains(r.stdout, "/opt/hsm/lib/libpkcs11.so: no such file or directory") {
			t.Errorf("exit code %d, want 1; stdout %q, want what the doctor says of a missing module", r.code, r.stdout)
		}
	})
}

// TestServeSoftHSM goes the way of a trial, with the module of the image.
func TestServeSoftHSM(t *testing.T) {
	t.Parallel()
	_, softHSM := names(t)
	serve(t, newNode(t, softHSM, "/usr/lib/softhsm/libsofthsm2.so"))
}

// TestServeMountedModule goes the way of production: the image has no module, the
// vendor's is mounted into it, here SoftHSM's.
func TestServeMountedModule(t *testing.T) {
	t.Parallel()
	kekd, softHSM := names(t)
	n := newNode(t, kekd, "/opt/hsm/lib/libpkcs11.so")
	from := container(t, "create", softHSM)
	docker(t, "cp", "--follow-link", from+":/usr/lib/softhsm/libsofthsm2.so", n.path("libpkcs11.so"))
	n.bind("libpkcs11.so", "/opt/hsm/lib/libpkcs11.so", true)
	serve(t, n)
}

// serve makes a token and a key, starts kekd as a static pod would, and uses it.
func serve(t *testing.T, n *node) {
	_, softHSM := names(t)
	n.must(t, softHSM, "softhsm2-util", "--init-token", "--free", "--label", "kekd", "--pin", pin, "--so-pin", "00"+pin)
	n.must(t, n.image, "kekctl", "key", "create", "--yes")
	checkDoctor(t, n.must(t, n.image, "kekctl", "doctor"), "warn")

	id := container(t, n.args("--detach", n.image)...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("kekd's log:\n%s", runIn(context.Background(), t, "logs", id).stderr)
		}
	})
	plugin, err := kmsv2.NewGRPCService(t.Context(), "unix://"+n.path("run/kekd.sock"), "e2e", 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, readyWithin, "kekd becomes ready", func(ctx context.Context) error {
		if state := docker(t, "inspect", "--format", "{{.State.Status}}", id); state != "running" {
			return fmt.Errorf("%w: the container is %s", harness.ErrHopeless, state)
		}
		status, err := plugin.Status(ctx)
		if err == nil && status.Healthz != "ok" {
			err = fmt.Errorf("healthz is %q", status.Healthz)
		}
		return err
	})
	roundTrip(t, plugin)

	checkDoctor(t, docker(t, "exec", id, "kekctl", "doctor"), "ok")
	docker(t, "exec", id, "kekctl", "status")
	checkPrivileges(t, id)

	docker(t, "stop", "--time", "20", id)
	if code := docker(t, "inspect", "--format", "{{.State.ExitCode}}", id); code != "0" {
		t.Errorf("kekd ended with the exit code %s", code)
	}
	if log := run(t, "logs", id); strings.Contains(log.stdout+log.stderr, pin) {
		t.Error("kekd's log holds the PIN")
	}
}

// roundTrip encrypts and decrypts from the host, by kube-apiserver's own client.
func roundTrip(t *testing.T, plugin kmsservice.Service) {
	t.Helper()
	const secret = "0123456789abcdef0123456789abcdef"
	sealed, err := plugin.Encrypt(t.Context(), string(uuid.NewUUID()), []byte(secret))
	if err != nil {
		t.Fatalf("encrypt: %v", err)
	}
	if strings.Contains(string(sealed.Ciphertext), secret) {
		t.Fatal("the ciphertext holds the plaintext")
	}
	opened, err := plugin.Decrypt(t.Context(), string(uuid.NewUUID()), &kmsservice.DecryptRequest{
		Ciphertext:  sealed.Ciphertext,
		KeyID:       sealed.KeyID,
		Annotations: sealed.Annotations,
	})
	if err != nil {
		t.Fatalf("decrypt: %v", err)
	}
	if string(opened) != secret {
		t.Fatalf("decrypt = %q, want %q", opened, secret)
	}
}

// checkDoctor requires that no finding is worse than the given one.
func checkDoctor(t *testing.T, report, worst string) {
	t.Helper()
	if !strings.Contains(report, "proven on the primary") {
		t.Errorf("the doctor does not prove the mechanism:\n%s", report)
	}
	for line := range strings.Lines(report) {
		if strings.HasPrefix(line, "fail") || worst == "ok" && strings.HasPrefix(line, "warn") {
			t.Errorf("the doctor finds: %s", line)
		}
	}
}

// checkPrivileges requires that kekd and its HSM worker are kekd's user without any
// capability, and can't gain one.
func checkPrivileges(t *testing.T, container string) {
	t.Helper()
	kekd := docker(t, "inspect", "--format", "{{.State.Pid}}", container)
	pids := []string{kekd}
	stats, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, path := range stats {
		if status, err := os.ReadFile(path); err == nil && strings.Contains(string(status), "\nPPid:\t"+kekd+"\n") {
			pids = append(pids, filepath.Base(filepath.Dir(path)))
		}
	}
	if len(pids) < 2 {
		t.Fatal("kekd has no worker")
	}
	id := strconv.Itoa(uid)
	for _, pid := range pids {
		status, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"Uid:\t" + id + "\t" + id + "\t" + id + "\t" + id,
			"Gid:\t" + id + "\t" + id + "\t" + id + "\t" + id,
			"CapPrm:\t0000000000000000",
			"CapBnd:\t0000000000000000",
			"NoNewPrivs:\t1",
		} {
			if !strings.Contains(string(status), "\n"+want+"\n") {
				t.Errorf("process %s of the container lacks %q:\n%s", pid, want, status)
			}
		}
	}
}
