package doctor_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/hsm"
	"kekd/hsm/wire"
	"kekd/internal/admin/doctor"
	"kekd/internal/config"
	"kekd/internal/health"
	"kekd/internal/httpapi"
	"kekd/internal/kek"
)

// fakeToken is a token that is as a test wants it.
type fakeToken struct {
	keys   []kek.Info
	labels []string
	pinErr error
}

func (t *fakeToken) Info(context.Context) (wire.TokenInfo, error) {
	return wire.TokenInfo{Label: "kekd", Serial: "1", Model: "fake", LoginRequired: true, Sessions: 4}, t.pinErr
}
func (t *fakeToken) Keys(context.Context) ([]kek.Info, error) { return t.keys, nil }
func (t *fakeToken) OtherLabels(context.Context) ([]string, int, error) {
	return t.labels, 0, nil
}
func (t *fakeToken) AuditKeys(context.Context) ([]wire.AuditKey, error) { return nil, nil }
func (t *fakeToken) Prove(context.Context, kek.ID) (kek.Mechanism, []string, error) {
	return kek.Mechanism(1), nil, nil
}
func (t *fakeToken) Probe(context.Context, kek.ID, kek.Mechanism) error { return nil }
func (t *fakeToken) Close()                                             {}

// node is a node with a configuration, a state directory, a socket's directory, and a
// root for the files of other programs.
type node struct {
	dir   string
	token *fakeToken
	doctor.Options
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{dir: dir, token: &fakeToken{keys: []kek.Info{{Ring: "ring", ID: "\x01"}}}}
	for _, sub := range []string{"run", "state", "root"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	n.write(t, "pin", "1234")
	n.write(t, "config.yaml", fmt.Sprintf(`
socket: {path: %[1]s/run/kekd.sock}
http: {address: "127.0.0.1:8780"}
stateDir: %[1]s/state
hsm: {module: /lib/module.so, token: {label: kekd}, pinFile: %[1]s/pin}
keyRing: {label: ring}
`, dir))
	n.Options = doctor.Options{
		Config: filepath.Join(dir, "config.yaml"),
		Root:   filepath.Join(dir, "root"),
		Open: func(_ config.Config, latch hsm.LatchStore, _ hsm.PINSource) (doctor.Token, error) {
			// As package hsm does: no login while a refusal could not be remembered.
			if err := latch.Writable(); err != nil {
				return &fakeToken{pinErr: err}, nil //nolint:nilerr // it comes with Info
			}
			return n.token, nil
		},
		Socket: func(context.Context, string) (*kmsapi.StatusResponse, error) {
			return &kmsapi.StatusResponse{Healthz: "ok", KeyId: "ring/01/000000"}, nil
		},
		HTTP: func(context.Context, string) (*httpapi.Status, error) {
			return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		},
		User:     func(string) (int, bool) { return 0, false },
		Outsider: func(config.Config) string { return "" },
		Clock:    time.Now,
	}
	return n
}

func (n *node) write(t *testing.T, name, content string) {
	t.Helper()
	path := filepath.Join(n.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// serve makes a socket file at kekd's path.
func (n *node) serve(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(n.dir, "run/kekd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
}

// lines are the findings of a check, as "result: detail -> remedy", without the node's
// directory.
func (n *node) lines(report doctor.Report, check string) []string {
	var out []string
	for _, f := range report {
		if f.Check == check {
			line := string(f.Result) + ": " + f.Detail
			if f.Remedy != "" {
				line += " -> " + f.Remedy
			}
			out = append(out, strings.ReplaceAll(line, n.dir, ""))
		}
	}
	return out
}

// files lists all that is on the node.
func (n *node) files(t *testing.T) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(n.dir, func(path string, _ fs.DirEntry, err error) error {
		all = append(all, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestHealthyNode(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	before := n.files(t)
	report := doctor.Examine(t.Context(), n.Options)
	if f := report.Failed(); f != nil {
		t.Errorf("failed: %+v", f)
	}
	if diff := cmp.Diff(before, n.files(t)); diff != "" {
		t.Errorf("the doctor changes files: -before +after:\n%s", diff)
	}
}

// Finding 8: a state directory that is missing stays so, and is not ok.
func TestMissingStateDirectory(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	if err := os.Remove(filepath.Join(n.dir, "state")); err != nil {
		t.Fatal(err)
	}
	n.User = func(string) (int, bool) { return 65529, true }
	before := n.files(t)
	report := doctor.Examine(t.Context(), n.Options)
	if diff := cmp.Diff([]string{"fail: /state does not exist -> install -d -m 0700 -o 65529 /state"}, n.lines(report, "state directory")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"skip: the state directory does not exist, so a refused PIN could not be remembered: neither the login was tried nor what needs it"}, n.lines(report, "login")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff(before, n.files(t)); diff != "" {
		t.Errorf("the doctor changes files: -before +after:\n%s", diff)
	}
}

// Finding 8: the owner of the state directory is not taken for kekd's user, and the
// advice is never to give it to the caller.
func TestUser(t *testing.T) {
	t.Parallel()
	const nobody = 65529
	uid := os.Geteuid()
	unit := func(text string) func(*testing.T, *node) {
		return func(t *testing.T, n *node) { n.write(t, "root/etc/systemd/system/kekd.service", text) }
	}
	byName := func(name string) (int, bool) { return nobody, name == "kekd" }
	wrong := []string{fmt.Sprintf("fail: /state belongs to uid %d, and kekd runs as uid %d -> chown -R %d /state", uid, nobody, nobody)}
	right := []string{fmt.Sprintf("ok: /state, uid %d, mode 0700", uid)}
	for name, c := range map[string]struct {
		arrange func(*testing.T, *node)
		user    func(string) (int, bool)
		who     string
		state   []string
	}{
		"unknown":               {nil, nil, "skip: unknown: there is no socket, unit, static pod or user of kekd's on this node, so owners of files are not judged", right},
		"a user of the node":    {nil, byName, "ok: uid 65529, by the user kekd of this node", wrong},
		"a unit":                {unit("[Service]\nUser=kekd\n"), byName, "ok: uid 65529, by User= of /etc/systemd/system/kekd.service", wrong},
		"a unit and its number": {unit("[Service]\nUser=65529\n"), nil, "ok: uid 65529, by User= of /etc/systemd/system/kekd.service", wrong},
		"a drop-in": {func(t *testing.T, n *node) {
			unit("[Service]\nUser=other\n")(t, n)
			n.write(t, "root/etc/systemd/system/kekd.service.d/user.conf", "[Service]\nUser=kekd\n")
		}, byName, "ok: uid 65529, by User= of /etc/systemd/system/kekd.service", wrong},
		"a static pod": {func(t *testing.T, n *node) {
			n.write(t, "root/etc/kubernetes/manifests/kekd.yaml", "spec:\n  securityContext: {runAsUser: 65529}\n  containers: [{name: kekd}]\n")
		}, nil, "ok: uid 65529, by runAsUser of /etc/kubernetes/manifests/kekd.yaml", wrong},
		"its socket": {func(t *testing.T, n *node) { n.serve(t) }, nil, fmt.Sprintf("ok: uid %d, by the owner of /run/kekd.sock", uid), right},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			if c.arrange != nil {
				c.arrange(t, n)
			}
			if c.user != nil {
				n.User = c.user
			}
			report := doctor.Examine(t.Context(), n.Options)
			if diff := cmp.Diff([]string{c.who}, n.lines(report, "kekd's user")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if diff := cmp.Diff(c.state, n.lines(report, "state directory")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// Finding 8: a taken HTTP port is reported.
func TestHTTP(t *testing.T) {
	t.Parallel()
	const remedy = " -> find it with ss -ltnp 'sport = :8780' and stop it, or set http.address"
	answers := func(status *httpapi.Status, err error) func(context.Context, string) (*httpapi.Status, error) {
		return func(context.Context, string) (*httpapi.Status, error) { return status, err }
	}
	kekd := &httpapi.Status{Health: health.Report{State: health.Ready}}
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	for name, c := range map[string]struct {
		http   func(context.Context, string) (*httpapi.Status, error)
		serves bool
		want   string
	}{
		"kekd":              {answers(kekd, nil), true, "ok: kekd answers at 127.0.0.1:8780"},
		"free":              {answers(nil, refused), false, "ok: 127.0.0.1:8780 is free"},
		"another kekd":      {answers(kekd, nil), false, "fail: another kekd listens at 127.0.0.1:8780: this one's socket is not there" + remedy},
		"another program":   {answers(nil, errors.New("GET /status: 404 Not Found")), true, "fail: another program listens at 127.0.0.1:8780: GET /status: 404 Not Found" + remedy},
		"another with JSON": {answers(new(httpapi.Status), nil), true, "fail: another program listens at 127.0.0.1:8780: its /status is not kekd's" + remedy},
		"kekd without HTTP": {answers(nil, refused), true, "warn: nobody listens at 127.0.0.1:8780, although the socket is there -> start kekd, or see its log"},
		"not our address": {
			answers(nil, &net.OpError{Op: "dial", Err: syscall.ENETUNREACH}), false,
			"fail: dial: network is unreachable -> set http.address to an address of this node, such as 127.0.0.1:8780",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.HTTP = c.http
			if c.serves {
				n.serve(t)
			}
			if diff := cmp.Diff([]string{c.want}, n.lines(doctor.Examine(t.Context(), n.Options), "HTTP address")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// Finding 8: one finding for each problem of the configuration, and a failed check keeps
// no other one from running.
func TestOneFindingForEachProblem(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.write(t, "config.yaml", "seeds: {mode: eager}\nhsm: {module: /lib/module.so, token: {label: kekd}, pinFile: /pin, callTimeout: 5ms}\nkeyRing: {label: ring}\n")
	report := doctor.Examine(t.Context(), n.Options)
	if len(report) != 2 || report[0].Check != "configuration" || report[1].Check != "configuration" {
		t.Errorf("got %+v, want one finding for each of two problems", report)
	}
}

func TestFailuresAreIndependent(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	if err := os.Remove(filepath.Join(n.dir, "run")); err != nil {
		t.Fatal(err)
	}
	n.HTTP = func(context.Context, string) (*httpapi.Status, error) { return nil, errors.New("418") }
	report := doctor.Examine(t.Context(), n.Options)
	for check, want := range map[string]doctor.Result{
		"socket directory": doctor.Fail, "HTTP address": doctor.Fail,
		"login": doctor.OK, "round trip": doctor.OK, "policy": doctor.OK, "kube-apiserver": doctor.Skip,
	} {
		found := n.lines(report, check)
		if len(found) != 1 || !strings.HasPrefix(found[0], string(want)+": ") {
			t.Errorf("%s: got %q, want %s", check, found, want)
		}
	}
}

// Finding 9: a mistyped keyRing.label.
func TestOtherLabels(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.token = &fakeToken{labels: []string{"k8s-kek"}}
	report := doctor.Examine(t.Context(), n.Options)
	want := []string{`fail: the ring has no usable KEK: no key has the label "ring", and the token has AES keys under other labels: "k8s-kek" -> correct keyRing.label if it is mistyped; kekctl key create --new-ring creates the first key of another ring`}
	if diff := cmp.Diff(want, n.lines(report, "key ring")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// kube-apiserver's configuration is judged where there is one.
func TestAPIServer(t *testing.T) {
	t.Parallel()
	const file = "/etc/kubernetes/kms/encryption.yaml"
	manifest := func(t *testing.T, n *node, flags string) {
		t.Helper()
		n.write(t, "root/etc/kubernetes/manifests/kube-apiserver.yaml", `spec:
  containers:
  - {name: kube-apiserver, command: [kube-apiserver`+flags+`], volumeMounts: [{name: kms, mountPath: /etc/kubernetes/kms}, {name: run, mountPath: `+n.dir+`/run}]}
  volumes: [{name: kms, hostPath: {path: /etc/kubernetes/kms}}, {name: run, hostPath: {path: `+n.dir+`/run}}]
`)
	}
	const flags = ", --encryption-provider-config=" + file + ", --encryption-provider-config-automatic-reload=true"
	for name, c := range map[string]struct {
		flags     string
		providers string
		want      string
	}{
		"no encryption yet": {"", "", "skip: kube-apiserver has no --encryption-provider-config in /etc/kubernetes/manifests/kube-apiserver.yaml: it writes plaintext"},
		"kekd":              {flags, "[{kms: KEKD}]", "ok: " + file + ": this kekd encrypts 1 resource(s)"},
		"identity first":    {flags, "[{identity: {}}, {kms: KEKD}]", "fail: secrets: identity is first: kube-apiserver writes plaintext (" + file + ") -> once every kube-apiserver has this file, put kms kekd first, as manifests/kube-apiserver/encryption-2-encrypt.yaml does; then run kekctl rewrap"},
		"not kekd yet":      {flags, "[{aescbc: {keys: [{name: a, secret: b}]}}]", "warn: secrets: this kekd is not a provider: kube-apiserver encrypts with aescbc: a (" + file + ") -> add kekd to the rule, as manifests/kube-apiserver/encryption-2-encrypt.yaml does"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			manifest(t, n, c.flags)
			if c.providers != "" {
				providers := strings.ReplaceAll(c.providers, "KEKD", "{apiVersion: v2, name: kekd, endpoint: 'unix://"+n.dir+"/run/kekd.sock'}")
				n.write(t, "root"+file, "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: [{resources: [secrets], providers: "+providers+"}]\n")
			}
			if diff := cmp.Diff([]string{c.want}, n.lines(doctor.Examine(t.Context(), n.Options), "kube-apiserver")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
