package encryptionconfig_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kekd/internal/encryptionconfig"
)

// ours is this node's kekd as a provider.
const ours = "kms: {apiVersion: v2, name: kekd, endpoint: unix:///run/kekd/kekd.sock, timeout: 3s}"

const aescbc = "aescbc: {keys: [{name: key1, secret: c2VjcmV0IHRoYXQgbXVzdCBub3QgYmUgc2hvd24=}]}"

// file makes an EncryptionConfiguration of rules: the resources, then the providers.
func file(rules ...[]string) string {
	var b strings.Builder
	b.WriteString("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n")
	for _, r := range rules {
		fmt.Fprintf(&b, "- resources: [%s]\n  providers:\n", r[0])
		for _, p := range r[1:] {
			fmt.Fprintf(&b, "  - %s\n", p)
		}
	}
	return b.String()
}

func parse(t *testing.T, text string) encryptionconfig.Config {
	t.Helper()
	c, err := encryptionconfig.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOrder(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		file  string
		first []string
		want  []string
	}{
		"alone": {file([]string{"secrets", ours}), []string{"secrets"}, nil},
		"identity left in place": {
			file([]string{"secrets, configmaps", ours, "identity: {}"}),
			[]string{"secrets", "configmaps"},
			[]string{
				"secrets: warn: identity is left in place: kube-apiserver accepts plaintext from etcd",
				"configmaps: warn: identity is left in place: kube-apiserver accepts plaintext from etcd",
			},
		},
		"identity first": {
			file([]string{"secrets", "identity: {}", ours}), nil,
			[]string{"secrets: fail: identity is first: kube-apiserver writes plaintext"},
		},
		"static key first": {
			file([]string{"secrets", aescbc, ours}), nil,
			[]string{"secrets: fail: aescbc: key1 is first: kube-apiserver encrypts with it, and not with this kekd"},
		},
		"static key behind": {file([]string{"secrets", ours, aescbc}), []string{"secrets"}, nil},
		"another plugin first": {
			file([]string{"secrets", "kms: {apiVersion: v2, name: other, endpoint: unix:///run/other.sock}", ours}), nil,
			[]string{"secrets: fail: kms other is first: kube-apiserver encrypts with it, and not with this kekd"},
		},
		"not there": {
			file([]string{"secrets", aescbc, "identity: {}"}), nil,
			[]string{"secrets: fail: this kekd is not a provider: kube-apiserver encrypts with aescbc: key1"},
		},
		"not there for one of two": {
			file([]string{"secrets", ours}, []string{"configmaps", "identity: {}"}), []string{"secrets"},
			[]string{"configmaps: warn: this kekd is not a provider: kube-apiserver writes plaintext"},
		},
		"another socket": {
			file([]string{"secrets", "kms: {apiVersion: v2, name: kekd, endpoint: unix:///run/old/kekd.sock}"}), nil,
			[]string{"secrets: fail: this kekd is not a provider: kms kekd is at /run/old/kekd.sock, and this kekd listens at /run/kekd/kekd.sock"},
		},
		"first rule wins": {
			file([]string{"'*.'", "identity: {}"}, []string{"secrets, widgets.example.com", ours}), []string{"widgets.example.com"},
			[]string{
				"*.: warn: this kekd is not a provider: kube-apiserver writes plaintext",
				`secrets: warn: never applies: the earlier rule for "*." wins`,
			},
		},
		"wildcards": {
			file([]string{"secrets, widgets.example.com", ours}, []string{"'*.example.com'", "identity: {}"}, []string{"'*.*'", aescbc}, []string{"pods, gadgets.example.com", aescbc}),
			[]string{"secrets", "widgets.example.com"},
			[]string{
				"*.example.com: warn: this kekd is not a provider: kube-apiserver writes plaintext",
				"*.*: warn: this kekd is not a provider: kube-apiserver encrypts with aescbc: key1",
				`pods: warn: never applies: the earlier rule for "*.*" wins`,
				`gadgets.example.com: warn: never applies: the earlier rule for "*.example.com" wins`,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, problems := parse(t, c.file).ResourcesOf(socket)
			if diff := cmp.Diff(c.first, first); diff != "" {
				t.Errorf("first: -want +got:\n%s", diff)
			}
			if diff := cmp.Diff(c.want, texts(problems)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestProviders(t *testing.T) {
	t.Parallel()
	const rest = "endpoint: unix:///run/kekd/kekd.sock"
	for name, c := range map[string]struct {
		kms  string
		want []string
	}{
		"no apiVersion":  {"name: kekd, " + rest, []string{"secrets: fail: kms kekd has apiVersion v1, and kekd speaks v2"}},
		"cachesize":      {"apiVersion: v2, name: kekd, cachesize: 100, " + rest, []string{"secrets: fail: kms kekd has cachesize, which kube-apiserver refuses with v2"}},
		"a colon":        {"apiVersion: v2, name: 'a:b', " + rest, []string{`secrets: fail: the plugin's name must not be empty nor contain a colon, got "a:b"`}},
		"timeout of 0":   {"apiVersion: v2, name: kekd, timeout: 0s, " + rest, []string{"secrets: fail: kms kekd has timeout 0s, and kube-apiserver demands more than 0"}},
		"short timeout":  {"apiVersion: v2, name: kekd, timeout: 100ms, " + rest, []string{"secrets: warn: kms kekd has timeout 100ms, which a slow HSM may exceed"}},
		"long timeout":   {"apiVersion: v2, name: kekd, timeout: 1m, " + rest, []string{"secrets: warn: kms kekd has timeout 1m0s: while kekd is away, each request that needs it waits that long"}},
		"no duration":    {"apiVersion: v2, name: kekd, timeout: soon, " + rest, []string{`fail: resources[0].providers[0].kms.timeout must be a duration such as 3s, got "soon"`}},
		"usual timeouts": {"apiVersion: v2, name: kekd, timeout: 10s, " + rest, nil},
		"two slashes": {"apiVersion: v2, name: kekd, endpoint: 'unix://var/run/kekd/kekd.sock'", []string{
			"secrets: fail: this kekd is not a provider: kms kekd is at /run/kekd/kekd.sock, and this kekd listens at /nowhere.sock",
			`secrets: fail: kms kekd: endpoint "unix://var/run/kekd/kekd.sock": with two slashes, kube-apiserver connects to /run/kekd/kekd.sock`,
		}},
		"relative": {"apiVersion: v2, name: kekd, endpoint: 'unix:kekd.sock'", []string{
			"secrets: fail: this kekd is not a provider: kms kekd is at unix:kekd.sock, and this kekd listens at /nowhere.sock",
			`secrets: fail: kms kekd: endpoint "unix:kekd.sock": kube-apiserver finds no path in it`,
		}},
		"abstract": {"apiVersion: v2, name: kekd, endpoint: 'unix:///@kekd'", []string{
			"secrets: fail: this kekd is not a provider: kms kekd is at unix:///@kekd, and this kekd listens at /nowhere.sock",
			`secrets: fail: kms kekd: endpoint "unix:///@kekd": any process on the node can serve an abstract socket`,
		}},
		"TCP": {"apiVersion: v2, name: kekd, endpoint: 'tcp://127.0.0.1:1'", []string{
			"secrets: fail: this kekd is not a provider: kms kekd is at tcp://127.0.0.1:1, and this kekd listens at /nowhere.sock",
			`secrets: fail: kms kekd: endpoint "tcp://127.0.0.1:1": kube-apiserver takes unix only`,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := socket
			if !strings.Contains(c.kms, rest) {
				at = "/nowhere.sock"
			}
			_, problems := parse(t, file([]string{"secrets", "kms: {" + c.kms + "}"})).ResourcesOf(at)
			if diff := cmp.Diff(c.want, texts(problems)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestFileProblems(t *testing.T) {
	t.Parallel()
	second := strings.Replace(ours, "name: kekd", "name: kekd2", 1)
	for name, c := range map[string]struct {
		file string
		want []string
	}{
		"unknown provider": {
			file([]string{"secrets", ours, "rot13: {}"}),
			[]string{"fail: line 7: field rot13 is unknown", "fail: resources[0].providers[1] must have exactly one of aesgcm, aescbc, secretbox, identity and kms, got 0"},
		},
		"unknown fields": {
			file([]string{"secrets", strings.Replace(ours, "timeout", "timeOut", 1)}) + "extra: 1\n",
			[]string{"fail: line 6: field timeOut is unknown", "fail: line 7: field extra is unknown"},
		},
		"identity without braces": {
			file([]string{"secrets", ours, "identity:"}),
			[]string{"fail: resources[0].providers[1] must have exactly one of aesgcm, aescbc, secretbox, identity and kms, got 0"},
		},
		"two kinds in one": {
			file([]string{"secrets", ours + "\n    identity: {}"}),
			[]string{"fail: resources[0].providers[0] must have exactly one of aesgcm, aescbc, secretbox, identity and kms, got 2"},
		},
		"another apiVersion": {
			strings.Replace(file([]string{"secrets", ours}), "apiserver.config.k8s.io/v1", "v1", 1),
			[]string{`fail: apiVersion and kind must be apiserver.config.k8s.io/v1 and EncryptionConfiguration, got "v1" and "EncryptionConfiguration"`},
		},
		"two documents": {
			file([]string{"secrets", ours}) + "---\na: 1\n",
			[]string{"fail: more follows the first YAML document, which kube-apiserver does not read"},
		},
		"no rules": {
			"apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n",
			[]string{"fail: resources is empty, so nothing is encrypted"},
		},
		"an empty rule": {
			file([]string{""}),
			[]string{"fail: resources[0].resources is empty", "fail: resources[0].providers is empty"},
		},
		"one name twice": {
			file([]string{"secrets", ours}, []string{"configmaps", ours}),
			[]string{`fail: resources[1].providers[0].kms.name: "kekd" is another plugin's name already, and kube-apiserver refuses the file`},
		},
		"two names": {
			file([]string{"secrets", ours}, []string{"configmaps", second}),
			[]string{"warn: the plugin at /run/kekd/kekd.sock has 2 names: kekd, kekd2"},
		},
		"names of resources": {
			file([]string{"'*'", ours}, []string{"'pods.*', Secrets, events.events.k8s.io", second}),
			[]string{
				`fail: resources[0].resources: "*" is not a wildcard, and kube-apiserver refuses the file`,
				`fail: resources[1].resources: "pods.*" names one resource in all groups, and kube-apiserver refuses the file`,
				`fail: resources[1].resources: "Secrets" has capital letters, and kube-apiserver refuses the file`,
				`fail: resources[1].resources: "events.events.k8s.io" is in a group that stores nothing, and kube-apiserver refuses the file`,
				"warn: the plugin at /run/kekd/kekd.sock has 2 names: kekd, kekd2",
			},
		},
		"overlap": {
			file([]string{"'*.', secrets, widgets.example.com", ours}),
			[]string{`fail: resources[0].resources: "secrets" overlaps another name of the same rule, and kube-apiserver refuses the file`},
		},
		"wrong types": {
			strings.Replace(file([]string{"secrets", ours}), "[secrets]", "{a: c2VjcmV0IHRoYXQ}", 1),
			[]string{"fail: line 4: a value of the wrong type", "fail: resources[0].resources is empty"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(c.want, texts(parse(t, c.file).FileProblems())); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestParseRefused(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"empty": "", "not YAML": "{", "another kind": "kind: Pod\nspec: {}", "something else": "a: 1",
	} {
		if c, err := encryptionconfig.Parse([]byte(text)); err == nil && len(c.FileProblems()) == 0 {
			t.Errorf("%s: no error and no problem", name)
		}
	}
}

// Keys of other providers are not kept, whatever is printed of the configuration.
func TestNoSecrets(t *testing.T) {
	t.Parallel()
	c := parse(t, file([]string{"secrets", aescbc, "secretbox: {keys: [{name: b, secret: c2VjcmV0IHRoYXQgbXVzdCBub3QgYmUgc2hvd24=, secrit: c2VjcmV0IHRoYXQ}]}", ours}))
	if text := fmt.Sprintf("%+v %v", c, c.FileProblems()); strings.Contains(text, "c2VjcmV0") {
		t.Errorf("a key is shown: %s", text)
	}
}

// Our own three files are judged as what they are.
func TestManifests(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][]string{
		"encryption-1-prepare.yaml": {
			"secrets: fail: identity is first: kube-apiserver writes plaintext",
			"configmaps: fail: identity is first: kube-apiserver writes plaintext",
		},
		"encryption-2-encrypt.yaml": {
			"secrets: warn: identity is left in place: kube-apiserver accepts plaintext from etcd",
			"configmaps: warn: identity is left in place: kube-apiserver accepts plaintext from etcd",
		},
		"encryption-3-final.yaml": nil,
	} {
		data, err := os.ReadFile(filepath.Join("../../manifests/kube-apiserver", name))
		if err != nil {
			t.Fatal(err)
		}
		_, problems := parse(t, string(data)).ResourcesOf(socket)
		if diff := cmp.Diff(want, texts(problems)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", name, diff)
		}
		if name == "encryption-1-prepare.yaml" && !strings.Contains(problems[0].Remedy, "encryption-2-encrypt.yaml") {
			t.Errorf("the remedy does not name the next file: %s", problems[0].Remedy)
		}
	}
}

// FuzzParse: whatever is in the file, there is an answer and no panic.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"", "{", "[]", file([]string{"secrets", ours, aescbc, "identity: {}"}), file([]string{"'*.*'", "identity:"})} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := encryptionconfig.Parse([]byte(text))
		first, problems := c.ResourcesOf(socket)
		if err != nil && len(first) > 0 {
			t.Errorf("an error and resources: %v, %v, %v", err, first, problems)
		}
	})
}
