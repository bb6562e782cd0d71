package manifests_test

import (
	"encoding/json"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apiserver/pkg/apis/apiserver"
	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"k8s.io/kms/pkg/util"
	"sigs.k8s.io/yaml"

	"kekd/internal/config"
)

// encryption reads an EncryptionConfiguration as kube-apiserver does: strictly, with
// its defaults.
func encryption(t *testing.T, file string) *apiserver.EncryptionConfiguration {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := apiserver.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if err := apiserverv1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	codecs := serializer.NewCodecFactory(scheme, serializer.EnableStrict)
	obj, err := runtime.Decode(codecs.UniversalDecoder(apiserver.SchemeGroupVersion), []byte(read(t, file)))
	if err != nil {
		t.Fatal(err)
	}
	c, ok := obj.(*apiserver.EncryptionConfiguration)
	if !ok {
		t.Fatalf("is a %T", obj)
	}
	return c
}

func TestEncryptionConfigurations(t *testing.T) {
	tests := map[string][]string{ // the providers, the first one writes
		"encryption-1-prepare.yaml": {"identity", "kms"},
		"encryption-2-encrypt.yaml": {"kms", "identity"},
		"encryption-3-final.yaml":   {"kms"},
	}
	found, err := filepath.Glob("kube-apiserver/encryption-*")
	if err != nil || len(found) != len(tests) {
		t.Errorf("files %q, %v, and the test knows %d", found, err, len(tests))
	}
	for name, want := range tests {
		t.Run(name, func(t *testing.T) {
			c := encryption(t, filepath.Join("kube-apiserver", name))
			if len(c.Resources) != 1 {
				t.Fatalf("%d rules: one plugin in two of them is two plugins to kube-apiserver", len(c.Resources))
			}
			// Of these it is proven that kube-apiserver starts without kekd.
			if d := cmp.Diff([]string{"secrets", "configmaps"}, c.Resources[0].Resources); d != "" {
				t.Errorf("resources (-want +got):\n%s", d)
			}
			var got []string
			for _, p := range c.Resources[0].Providers {
				switch {
				case p.Identity != nil:
					got = append(got, "identity")
				case p.KMS != nil:
					got = append(got, "kms")
					checkKMS(t, p.KMS)
				default:
					got = append(got, "another")
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("providers %q, want %q", got, want)
			}
		})
	}
}

func checkKMS(t *testing.T, k *apiserver.KMSConfiguration) {
	t.Helper()
	if k.APIVersion != "v2" || k.Name != "kekd" || k.CacheSize != nil {
		t.Errorf("kms %+v", k)
	}
	at, err := util.ParseEndpoint(k.Endpoint)
	if err != nil || at != config.Default().Socket.Path {
		t.Errorf("endpoint %s leads to %q, %v; socket.path is %q", k.Endpoint, at, err, config.Default().Socket.Path)
	}
	if k.Timeout == nil || k.Timeout.Duration <= 0 || k.Timeout.Duration > config.Default().Socket.RequestTimeout {
		t.Errorf("timeout %v, and kekd's own limit is %v", k.Timeout, config.Default().Socket.RequestTimeout)
	}
}

// clusterConfiguration is what kubeadm.yaml uses of kubeadm's v1beta4.
type clusterConfiguration struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	APIServer  struct {
		ExtraArgs []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"extraArgs"`
		ExtraVolumes []struct {
			Name      string              `json:"name"`
			HostPath  string              `json:"hostPath"`
			MountPath string              `json:"mountPath"`
			ReadOnly  bool                `json:"readOnly"`
			PathType  corev1.HostPathType `json:"pathType"`
		} `json:"extraVolumes"`
	} `json:"apiServer"`
}

func TestKubeadm(t *testing.T) {
	var c clusterConfiguration
	decode(t, read(t, "kube-apiserver/kubeadm.yaml"), &c)
	if c.APIVersion != "kubeadm.k8s.io/v1beta4" || c.Kind != "ClusterConfiguration" {
		t.Errorf("is a %s %s", c.APIVersion, c.Kind)
	}
	args := map[string]string{}
	for _, a := range c.APIServer.ExtraArgs {
		args[a.Name] = a.Value
	}
	want := map[string]string{
		"encryption-provider-config":                  encryptionFile,
		"encryption-provider-config-automatic-reload": "true",
	}
	if d := cmp.Diff(want, args); d != "" {
		t.Errorf("flags (-want +got):\n%s", d)
	}
	var mounted []string
	for _, v := range c.APIServer.ExtraVolumes {
		mounted = append(mounted, v.MountPath)
		if v.HostPath != v.MountPath || !v.ReadOnly || v.PathType != corev1.HostPathDirectory {
			t.Errorf("volume %+v", v)
		}
	}
	if d := cmp.Diff([]string{path.Dir(encryptionFile), socketDir()}, mounted); d != "" {
		t.Errorf("directories (-want +got):\n%s", d)
	}
}

// Every comment and README names the file where the flag has it.
func TestEncryptionFile(t *testing.T) {
	named := regexp.MustCompile(`/etc/kubernetes/kms/\S+\.yaml`)
	found := 0
	for _, file := range files(t) {
		for _, at := range named.FindAllString(read(t, file), -1) {
			if found++; at != encryptionFile {
				t.Errorf("%s names %s, want %s", file, at, encryptionFile)
			}
		}
	}
	if found < 5 {
		t.Errorf("found %d: the pattern is at fault", found)
	}
}

// kubeadmManifest is kube-apiserver's static pod as other tools than kubeadm have
// made it: liveness and readiness by /healthz, no startup probe.
const kubeadmManifest = `
apiVersion: v1
kind: Pod
metadata: {name: kube-apiserver, namespace: kube-system}
spec:
  containers:
    - name: kube-apiserver
      command: [kube-apiserver, --secure-port=6443]
      startupProbe:
        httpGet: {host: 10.0.0.1, path: /healthz, port: 6443, scheme: HTTPS}
        periodSeconds: 10
        failureThreshold: 3
      livenessProbe:
        httpGet: {host: 10.0.0.1, path: /healthz, port: 6443, scheme: HTTPS}
        failureThreshold: 8
      readinessProbe:
        httpGet: {host: 10.0.0.1, path: /healthz, port: 6443, scheme: HTTPS}
`

// The patch of the probes, applied as kubeadm applies it.
func TestProbes(t *testing.T) {
	const file = "kube-apiserver/patches/kube-apiserver+strategic.yaml"
	var before, after, known corev1.Pod
	decode(t, kubeadmManifest, &before)
	decode(t, read(t, file), &known)
	original, err := json.Marshal(before)
	if err != nil {
		t.Fatal(err)
	}
	patch, err := yaml.YAMLToJSON([]byte(read(t, file)))
	if err != nil {
		t.Fatal(err)
	}
	patched, err := strategicpatch.StrategicMergePatch(original, patch, corev1.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	decode(t, string(patched), &after)

	if len(after.Spec.Containers) != 1 {
		t.Fatalf("%d containers", len(after.Spec.Containers))
	}
	c := after.Spec.Containers[0]
	for what, p := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
		path := "/livez"
		if what == "readiness" {
			path = "/readyz"
		}
		if p.HTTPGet.Path != path {
			t.Errorf("%s asks %s, want %s", what, p.HTTPGet.Path, path)
		}
		p.HTTPGet.Path = "/healthz"
	}
	// How long storage-readiness keeps /livez from passing.
	const storageReadiness = time.Minute
	if s := c.StartupProbe; time.Duration(s.PeriodSeconds*s.FailureThreshold)*time.Second < 2*storageReadiness {
		t.Errorf("startup probe %v does not outlast storage-readiness", s)
	}
	c.StartupProbe.FailureThreshold = 3
	if d := cmp.Diff(before, after); d != "" {
		t.Errorf("more than the probes is changed (-before +after):\n%s", d)
	}
	if !strings.HasPrefix(filepath.Base(file), "kube-apiserver+strategic.") {
		t.Errorf("kubeadm does not know a patch called %s", filepath.Base(file))
	}
}
