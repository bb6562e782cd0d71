package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// kubeadmManifest is kube-apiserver's static pod as kubeadm writes it, but for
// the places of things.
const kubeadmManifest = `apiVersion: v1
kind: Pod
metadata:
  name: kube-apiserver
  namespace: kube-system
spec:
  containers:
  - command:
    - kube-apiserver
    - --advertise-address=10.0.0.4
    - --etcd-cafile=/pki/etcd-ca.crt
    - --etcd-certfile=/pki/client.crt
    - --etcd-keyfile=/pki/client.key
    - --etcd-servers=https://10.0.0.1:2379,https://10.0.0.2:2379
    - --etcd-prefix=/other
    image: registry.k8s.io/kube-apiserver:v1.37.2
    name: kube-apiserver
    livenessProbe: {httpGet: {port: 6443}}
  hostNetwork: true
`

func TestEtcdFlags(t *testing.T) {
	t.Parallel()
	type values struct {
		Endpoints             []string
		CA, Cert, Key, Prefix string
	}
	const pki = "/etc/kubernetes/pki/"
	defaults := values{[]string{"https://127.0.0.1:2379"}, pki + "etcd/ca.crt", pki + "apiserver-etcd-client.crt", pki + "apiserver-etcd-client.key", "/registry"}
	kubeadm := values{[]string{"https://10.0.0.1:2379", "https://10.0.0.2:2379"}, "/pki/etcd-ca.crt", "/pki/client.crt", "/pki/client.key", "/other"}
	for name, c := range map[string]struct {
		manifest string
		args     []string
		want     values
	}{
		"no manifest":          {"", nil, defaults},
		"kubeadm":              {kubeadmManifest, nil, kubeadm},
		"not kube-apiserver's": {"kind: Pod\nspec: {containers: [{command: [kekd, serve]}]}", nil, defaults},
		"another kind":         {"[]", nil, defaults},
		"no YAML":              {"{", nil, defaults},
		"plain etcd, in args":  {"spec: {containers: [{command: [kube-apiserver], args: [--etcd-servers, 'http://10.0.0.3:2379']}]}", nil, values{Endpoints: []string{"http://10.0.0.3:2379"}, Prefix: "/registry"}},
		"flags come first": {
			kubeadmManifest,
			[]string{"--etcd-endpoints=http://a,http://b", "--etcd-cacert=", "--etcd-cert=c", "--etcd-key=k", "--etcd-prefix=/p"},
			values{[]string{"http://a", "http://b"}, "", "c", "k", "/p"},
		},
		"one flag":           {kubeadmManifest, []string{"--etcd-endpoints=https://10.0.0.9:2379"}, values{[]string{"https://10.0.0.9:2379"}, kubeadm.CA, kubeadm.Cert, kubeadm.Key, "/other"}},
		"flags, no manifest": {"", []string{"--etcd-endpoints", "http://a", "--etcd-endpoints", "http://b"}, values{[]string{"http://a", "http://b"}, defaults.CA, defaults.Cert, defaults.Key, "/registry"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := parseEtcdFlags(t, c.manifest, c.args...)
			if err := f.complete(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, values{f.endpoints, f.ca, f.cert, f.key, f.prefix}); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestEtcdSources: the command line goes before kekd's configuration, and that
// before kube-apiserver's static pod.
func TestEtcdSources(t *testing.T) {
	t.Parallel()
	const (
		configured = "{etcd: {endpoints: ['https://10.0.0.7:2379'], ca: /c/ca, prefix: /c}}"
		overridden = "spec: {containers: [{command: [kube-apiserver, '--etcd-servers=https://10.0.0.1:2379,https://10.0.0.2:2379', " +
			"'--etcd-servers-overrides=/events#https://10.0.0.5:2379;https://10.0.0.6:2379,apps/deployments#https://10.0.0.8:2379']}]}"
		refused = `: whether these overrides hold is unclear; give --etcd-servers-overrides`
	)
	type values struct {
		Endpoints, Overrides []string
		CA, Prefix           string
	}
	own := []string{"https://10.0.0.1:2379", "https://10.0.0.2:2379"}
	overrides := []string{"/events#https://10.0.0.5:2379;https://10.0.0.6:2379", "apps/deployments#https://10.0.0.8:2379"}
	for name, c := range map[string]struct {
		config, manifest string
		args             []string
		want             values
		err              string
	}{
		"configuration":                {configured, "", nil, values{[]string{"https://10.0.0.7:2379"}, nil, "/c/ca", "/c"}, ""},
		"configuration, then manifest": {"{etcd: {ca: /c/ca}}", kubeadmManifest, nil, values{own, nil, "/c/ca", "/other"}, ""},
		"flags, then configuration":    {configured, kubeadmManifest, []string{"--etcd-prefix=/f"}, values{[]string{"https://10.0.0.7:2379"}, nil, "/c/ca", "/f"}, ""},
		"overrides":                    {"", overridden, nil, values{own, overrides, "", "/registry"}, ""},
		"overrides, the same endpoints": {"", overridden, []string{"--etcd-endpoints=https://10.0.0.2:2379,https://10.0.0.1:2379", "--etcd-cacert=x"},
			values{[]string{own[1], own[0]}, overrides, "x", "/registry"}, ""},
		"overrides, other endpoints":      {"", overridden, []string{"--etcd-endpoints=https://10.0.0.9:2379"}, values{}, "--etcd-endpoints names https://10.0.0.9:2379, and kube-apiserver's static pod "},
		"overrides, configured endpoints": {configured, overridden, nil, values{}, "cluster.etcd.endpoints names https://10.0.0.7:2379, and kube-apiserver's static pod "},
		"overrides, left out":             {configured, overridden, []string{"--etcd-servers-overrides="}, values{[]string{"https://10.0.0.7:2379"}, []string{}, "/c/ca", "/c"}, ""},
		"a broken configuration":          {"[", kubeadmManifest, nil, values{}, "configuration "},
		"a broken one that is not needed": {"[", kubeadmManifest, []string{"--etcd-endpoints=https://10.0.0.9:2379"}, values{[]string{"https://10.0.0.9:2379"}, nil, "/pki/etcd-ca.crt", "/other"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := &app{stderr: io.Discard}
			f := newEtcdFlags(t, a, c.manifest)
			f.given.StringVar(&a.configPath, "config", "", "")
			if c.config != "" {
				path := filepath.Join(t.TempDir(), "config.yaml")
				text := "hsm: {module: /lib/p11.so, token: {label: kekd}, pinFile: /etc/kekd/pin}\nkeyRing: {label: ring}\ncluster: " + c.config
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				c.args = append(c.args, "--config="+path)
			}
			if err := f.given.Parse(c.args); err != nil {
				t.Fatal(err)
			}
			err := f.complete()
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, values{f.endpoints, f.overrides, f.ca, f.prefix}); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestEtcdFlagsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.crt")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		manifest string
		args     []string
		want     string
	}{
		"no URL":            {"", []string{"--etcd-endpoints=127.0.0.1:2379"}, `--etcd-endpoints: must be URLs such as https://127.0.0.1:2379, got "127.0.0.1:2379"`},
		"another scheme":    {"", []string{"--etcd-endpoints=unix:///run/etcd"}, "--etcd-endpoints: must be URLs"},
		"no host":           {"", []string{"--etcd-endpoints=https://"}, "--etcd-endpoints: must be URLs"},
		"none":              {"", []string{"--etcd-endpoints="}, "--etcd-endpoints: must be"},
		"http and https":    {"", []string{"--etcd-endpoints=https://a,http://b"}, `--etcd-endpoints: must be all http or all https, got "https://a,http://b"`},
		"no certificates":   {"", []string{"--etcd-cacert=" + empty}, "--etcd-cacert: " + empty + " holds no certificate in PEM; run kekctl on a control-plane node, or give --etcd-endpoints"},
		"a missing CA file": {"", []string{"--etcd-cacert=" + dir + "/x"}, "--etcd-cacert: open " + dir + "/x: no such file or directory; run kekctl on"},
		"a missing key":     {"", []string{"--etcd-cacert=", "--etcd-cert=" + empty, "--etcd-key=" + dir + "/x"}, "--etcd-cert, --etcd-key: open " + dir + "/x: no such file"},
		"an override":       {"", []string{"--etcd-endpoints=http://a", "--etcd-servers-overrides=events#http://b"}, `--etcd-servers-overrides: must be GROUP/RESOURCE#URL;URL such as /events#https://10.0.0.1:2379, got "events#http://b"`},
		"its URL":           {"", []string{"--etcd-endpoints=http://a", "--etcd-servers-overrides=/events#b"}, `--etcd-servers-overrides: /events: must be URLs`},
		"not reached":       {"", []string{"--etcd-endpoints=http://a", "--etcd-servers-overrides=/events#http://b", "--etcd-via-cluster"}, "--etcd-via-cluster: does not reach the etcd that kube-apiserver keeps /events in"},
		"no cluster":        {"", []string{"--etcd-endpoints=http://a", "--etcd-via-cluster", "--kubeconfig=" + dir + "/x"}, dir + "/x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, err := parseEtcdFlags(t, c.manifest, c.args...).open(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, %v, want %q", store, err, c.want)
			}
		})
	}
}

// parseEtcdFlags reads a command line on a machine with that manifest, or none.
func parseEtcdFlags(t *testing.T, manifest string, args ...string) *etcdFlags {
	t.Helper()
	f := newEtcdFlags(t, &app{stderr: io.Discard}, manifest)
	if err := f.given.Parse(args); err != nil {
		t.Fatal(err)
	}
	return f
}

func newEtcdFlags(t *testing.T, a *app, manifest string) *etcdFlags {
	t.Helper()
	f := new(etcdFlags)
	f.add(a, pflag.NewFlagSet("", pflag.ContinueOnError))
	f.manifest = filepath.Join(t.TempDir(), "kube-apiserver.yaml")
	if manifest != "" {
		if err := os.WriteFile(f.manifest, []byte(manifest), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}
