package encryptionconfig_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kekd/internal/encryptionconfig"
)

const socket = "/run/kekd/kekd.sock"

func TestFind(t *testing.T) {
	t.Parallel()
	type found struct {
		File, Layout, By, Reload string
		Ours                     []string
	}
	const own = "server/cred/encryption-config.json"
	for root, want := range map[string]found{
		"kubeadm":  {"/srv/kms/encryption.yaml", "kubeadm", "/etc/kubernetes/manifests/kube-apiserver.yaml", "true", []string{"secrets"}},
		"k3s":      {"/etc/kubernetes/kms/encryption.yaml", "k3s", "/etc/rancher/k3s/config.yaml and /etc/rancher/k3s/config.yaml.d/10-kekd.yaml and /etc/rancher/k3s/config.yaml.d/20-more.yaml", "true", []string{"secrets"}},
		"k3s-unit": {"/etc/kubernetes/kms/encryption.yaml", "k3s", "/etc/systemd/system/k3s.service", "false", []string{"secrets"}},
		"k3s-own":  {"/var/lib/rancher/k3s/" + own, "k3s", "secrets-encryption of k3s", "true", nil},
		"rke2":     {"/etc/kubernetes/kms/encryption.yaml", "rke2", "/var/lib/rancher/rke2/agent/pod-manifests/kube-apiserver.yaml", "true", []string{"secrets"}},
		"rke2-own": {"/var/lib/rancher/rke2/" + own, "rke2", "secrets-encryption of rke2", "true", nil},
	} {
		t.Run(root, func(t *testing.T) {
			t.Parallel()
			c, err := encryptionconfig.Find(filepath.Join("testdata", root), "")
			if err != nil {
				t.Fatal(err)
			}
			first, _ := c.ResourcesOf(socket)
			s := c.Source
			if diff := cmp.Diff(want, found{s.File, s.Layout, s.By, s.Reload, first}); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// /var/run is a link to /run.
func TestLinkedSocket(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, dir := range []string{"run/kekd", "var", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../run", filepath.Join(root, "var/run")); err != nil {
		t.Fatal(err)
	}
	text := file([]string{"secrets", strings.Replace(ours, "/run/", "/var/run/", 1)})
	if err := os.WriteFile(filepath.Join(root, "etc/encryption.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := encryptionconfig.Find(root, "/etc/encryption.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if first, problems := c.ResourcesOf(socket); len(first) != 1 || len(problems) != 0 {
		t.Errorf("got %q, %v", first, problems)
	}
}

func TestFindNothing(t *testing.T) {
	t.Parallel()
	for root, want := range map[string]error{
		"kubeadm-plain": encryptionconfig.ErrNoFile,
		"k3s-plain":     encryptionconfig.ErrNoFile,
		"k3s-agent":     encryptionconfig.ErrNoAPIServer,
		"no-such-node":  encryptionconfig.ErrNoAPIServer,
	} {
		if c, err := encryptionconfig.Find(filepath.Join("testdata", root), ""); !errors.Is(err, want) {
			t.Errorf("%s: got %+v, %v, want %v", root, c, err, want)
		}
	}
	if _, err := encryptionconfig.Find("testdata/kubeadm-unmounted", ""); err == nil ||
		errors.Is(err, encryptionconfig.ErrNoFile) || errors.Is(err, encryptionconfig.ErrNoAPIServer) {
		t.Errorf("a file that the pod does not show: got %v", err)
	}
	if _, err := encryptionconfig.Find("", "testdata/missing.yaml"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: got %v", err)
	}
}

// What each layout's way of passing the file on makes of the file's problems.
func TestSourceProblems(t *testing.T) {
	t.Parallel()
	for root, want := range map[string][]string{
		"kubeadm":  nil,
		"k3s":      nil,
		"k3s-unit": {"warn: --encryption-provider-config-automatic-reload is not set: a change of the file has no effect before kube-apiserver restarts"},
		"rke2":     {"warn: the pod mounts the file itself: it keeps the old file when you replace it, whatever the reload"},
	} {
		c, err := encryptionconfig.Find(filepath.Join("testdata", root), "")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, texts(c.FileProblems())); diff != "" {
			t.Errorf("%s: -want +got:\n%s", root, diff)
		}
	}
}

// texts are problems without their remedies, of which there must be one each.
func texts(problems []encryptionconfig.Problem) []string {
	var out []string
	for _, p := range problems {
		text := string(p.Verdict) + ": " + p.Text
		if p.Remedy == "" {
			text += " (no remedy)"
		}
		if p.Resource != "" {
			text = p.Resource + ": " + text
		}
		out = append(out, text)
	}
	return out
}
