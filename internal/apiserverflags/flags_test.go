package apiserverflags_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kekd/internal/apiserverflags"
)

// manifest is kube-apiserver's static pod as kubeadm writes it, with a second
// container that an administrator added.
const manifest = `apiVersion: v1
kind: Pod
metadata: {name: kube-apiserver, namespace: kube-system}
spec:
  containers:
  - command: [sidecar, --encryption-provider-config=/not/this]
    name: sidecar
  - command:
    - kube-apiserver
    - --etcd-servers=https://10.0.0.1:2379,https://10.0.0.2:2379
    - --encryption_provider_config=/etc/kubernetes/kms/encryption.yaml
    - --encryption-provider-config-automatic-reload
    - --etcd-servers-overrides=/events#https://10.0.0.9:2379
    - --etcd-prefix
    - /other
    - --v=2
    - --v=4
    name: kube-apiserver
    volumeMounts:
    - {mountPath: /etc/kubernetes, name: all}
    - {mountPath: /etc/kubernetes/kms, name: kms, readOnly: true}
    - {mountPath: /etc/kubernetes/other, name: all, subPath: sub}
    - {mountPath: /tmp/x, name: scratch}
  volumes:
  - {name: all, hostPath: {path: /host/kubernetes}}
  - {name: kms, hostPath: {path: /srv/kms/, type: Directory}}
  - {name: scratch, emptyDir: {}}
`

func parse(t *testing.T, text string) apiserverflags.Flags {
	t.Helper()
	f, err := apiserverflags.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestGet(t *testing.T) {
	t.Parallel()
	f := parse(t, manifest)
	for name, want := range map[string]string{
		"etcd-servers":                                "https://10.0.0.1:2379,https://10.0.0.2:2379",
		"encryption-provider-config":                  "/etc/kubernetes/kms/encryption.yaml",
		"encryption-provider-config-automatic-reload": "true",
		"etcd-servers-overrides":                      "/events#https://10.0.0.9:2379",
		"etcd-prefix":                                 "/other",
		"v":                                           "4",
		"--etcd-prefix":                               "/other",
	} {
		if got, ok := f.Get(name); got != want || !ok {
			t.Errorf("Get(%s): got %q, %v, want %q", name, got, ok, want)
		}
	}
	if got, ok := f.Get("etcd-cafile"); ok || got != "" {
		t.Errorf("a flag that is not given: got %q, %v", got, ok)
	}
	if diff := cmp.Diff([]string{"2", "4"}, f.All("v")); diff != "" {
		t.Errorf("All: -want +got:\n%s", diff)
	}
	var none apiserverflags.Flags
	if got, ok := none.Get("v"); ok {
		t.Errorf("the zero value: got %q", got)
	}
}

func TestHostPath(t *testing.T) {
	t.Parallel()
	f := parse(t, manifest)
	for inside, want := range map[string]string{
		"/etc/kubernetes/kms/encryption.yaml": "/srv/kms/encryption.yaml",
		"/etc/kubernetes/kms":                 "/srv/kms",
		"/etc/kubernetes/kms2/x":              "/host/kubernetes/kms2/x",
		"/etc/kubernetes/kms/../pki/ca.crt":   "/host/kubernetes/pki/ca.crt",
		"/etc/kubernetes/other/x":             "/host/kubernetes/sub/x",
		"/tmp/x/encryption.yaml":              "",
		"/var/lib/x":                          "",
	} {
		if got := f.HostPath(inside); got != want {
			t.Errorf("HostPath(%s): got %q, want %q", inside, got, want)
		}
	}
	if got := parse(t, "spec: {containers: [{name: kube-apiserver}]}").HostPath("/x/y"); got != "" {
		t.Errorf("a pod without volumes: got %q", got)
	}
	if got := apiserverflags.FromArgs([]string{"--v=2"}).HostPath("/x/y"); got != "/x/y" {
		t.Errorf("without a pod: got %q", got)
	}
}

func TestReadRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, c := range map[string]struct {
		content string
		want    error
	}{
		"another pod":   {"kind: Pod\nspec: {containers: [{name: kekd, command: [kekd, serve]}]}", apiserverflags.ErrNotAPIServer},
		"no containers": {"kind: Pod", apiserverflags.ErrNotAPIServer},
		"not YAML":      {"{", nil},
		"a list":        {"[]", nil},
	} {
		file := filepath.Join(dir, "pod.yaml")
		if err := os.WriteFile(file, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := apiserverflags.Read(file)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	if _, err := apiserverflags.Read(filepath.Join(dir, "missing.yaml")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got %v", err)
	}
}
