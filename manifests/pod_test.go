package manifests_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"kekd/internal/cluster"
	"kekd/internal/config"
	"kekd/internal/health"
	"kekd/internal/httpapi"
)

// overlays are the pods, with the image and the directories of the node that each
// has beside the base's.
var overlays = map[string]struct {
	image  string
	mounts map[string]bool // by path, true: read-only
}{
	"softhsm":     {"kekd:dev-softhsm", map[string]bool{tokenDir: false}},
	"module":      {"kekd:dev", map[string]bool{"/opt/hsm": true}},
	"network-hsm": {"kekd:dev", map[string]bool{"/opt/hsm": true, "/etc/hsm-client": true}},
}

// pod renders an overlay as kubectl kustomize does.
func pod(t *testing.T, overlay string) corev1.Pod {
	t.Helper()
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).
		Run(filesys.MakeFsOnDisk(), filepath.Join("static-pod/overlays", overlay))
	if err != nil {
		t.Fatal(err)
	}
	if built.Size() != 1 {
		t.Fatalf("renders %d objects, want the pod alone: the kubelet reads one from a file", built.Size())
	}
	data, err := built.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	var p corev1.Pod
	decode(t, string(data), &p)
	return p
}

func TestPods(t *testing.T) {
	dirs, err := filepath.Glob("static-pod/overlays/*")
	if err != nil {
		t.Fatal(err)
	}
	if len(dirs) != len(overlays) {
		t.Errorf("overlays are %q, and the test knows %d", dirs, len(overlays))
	}
	for name, want := range overlays {
		t.Run(name, func(t *testing.T) {
			p := pod(t, name)
			if p.APIVersion != "v1" || p.Kind != "Pod" || len(p.Spec.Containers) != 1 || len(p.Spec.InitContainers) != 0 {
				t.Fatalf("%s %s with containers %v", p.APIVersion, p.Kind, p.Spec.Containers)
			}
			c := p.Spec.Containers[0]
			if c.Image != want.image {
				t.Errorf("image %q, want %q", c.Image, want.image)
			}
			startsKekd(t, append(c.Command, c.Args...))
			checkPlace(t, p)
			checkSecurity(t, p)
			checkMounts(t, p, want.mounts)
			checkProbes(t, c)
			if p.Spec.TerminationGracePeriodSeconds == nil || time.Duration(*p.Spec.TerminationGracePeriodSeconds)*time.Second < 2*drainTime(t) {
				t.Errorf("grace period %v, and kekd drains for %v before it closes the token", p.Spec.TerminationGracePeriodSeconds, drainTime(t))
			}
		})
	}
}

// The component for kekd's own seccomp profile changes the pod in that and nothing
// else, in every overlay.
func TestSeccompComponent(t *testing.T) {
	const component = "static-pod/components/seccomp"
	if !json.Valid([]byte(read(t, component+"/kekd.json"))) {
		t.Error("the profile is no JSON")
	}
	for name := range overlays {
		t.Run(name, func(t *testing.T) {
			want := pod(t, name)
			files := filesys.MakeFsInMemory()
			if err := files.WriteFile("/with/kustomization.yaml",
				fmt.Appendf(nil, "resources: [../static-pod/overlays/%s]\ncomponents: [../%s]\n", name, component)); err != nil {
				t.Fatal(err)
			}
			if err := filepath.WalkDir("static-pod", func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				return files.WriteFile("/"+path, []byte(read(t, path)))
			}); err != nil {
				t.Fatal(err)
			}
			built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(files, "/with")
			if err != nil {
				t.Fatal(err)
			}
			data, err := built.AsYaml()
			if err != nil {
				t.Fatal(err)
			}
			var got corev1.Pod
			decode(t, string(data), &got)
			profile := "kekd.json"
			want.Spec.SecurityContext.SeccompProfile = &corev1.SeccompProfile{
				Type: corev1.SeccompProfileTypeLocalhost, LocalhostProfile: &profile,
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("pod (-want +got):\n%s", d)
			}
		})
	}
}

// drainTime is kekd's own.
func drainTime(t *testing.T) time.Duration {
	t.Helper()
	m := regexp.MustCompile(`const drainTime = (\d+) \* time\.Second`).FindStringSubmatch(read(t, "../cmd/kekd/serve.go"))
	if m == nil {
		t.Fatal("no drainTime in cmd/kekd/serve.go")
	}
	seconds, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(seconds) * time.Second
}

// checkPlace: what a static pod must be like to come up before the API server and
// to stay, and where kekctl looks for it.
func checkPlace(t *testing.T, p corev1.Pod) {
	t.Helper()
	selector, err := labels.Parse(cluster.KekdSelector)
	if err != nil {
		t.Fatal(err)
	}
	if p.Namespace != cluster.KekdNamespace || !selector.Matches(labels.Set(p.Labels)) {
		t.Errorf("kekctl does not find %s/%s with labels %v", p.Namespace, p.Name, p.Labels)
	}
	// Kubernetes' scheduling.SystemCriticalPriority and what is added for nodes.
	const highestUserDefinable, nodeCritical = 1_000_000_000, 1000
	if p.Spec.PriorityClassName != "system-node-critical" || p.Spec.Priority == nil || *p.Spec.Priority != 2*highestUserDefinable+nodeCritical {
		t.Errorf("priority %q %v", p.Spec.PriorityClassName, p.Spec.Priority)
	}
	if !p.Spec.HostNetwork || p.Spec.DNSPolicy == corev1.DNSClusterFirstWithHostNet {
		t.Error("needs the cluster's network or DNS, which need the API server")
	}
	if p.Spec.ServiceAccountName != "" || p.Spec.AutomountServiceAccountToken == nil || *p.Spec.AutomountServiceAccountToken || len(p.Spec.ImagePullSecrets) != 0 {
		t.Error("refers to a ServiceAccount or a Secret")
	}
	limits := p.Spec.Containers[0].Resources
	if limits.Requests.Memory().IsZero() || limits.Requests.Cpu().IsZero() || !limits.Limits.Cpu().IsZero() {
		t.Errorf("resources %v: want requests, and no CPU limit", limits)
	}
}

func checkSecurity(t *testing.T, p corev1.Pod) {
	t.Helper()
	id, yes, no := int64(uid), true, false
	want := &corev1.PodSecurityContext{
		RunAsNonRoot: &yes, RunAsUser: &id, RunAsGroup: &id,
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	if d := cmp.Diff(want, p.Spec.SecurityContext); d != "" {
		t.Errorf("pod's security (-want +got):\n%s", d)
	}
	c := p.Spec.Containers[0]
	inner := &corev1.SecurityContext{
		AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
	if d := cmp.Diff(inner, c.SecurityContext); d != "" {
		t.Errorf("container's security (-want +got):\n%s", d)
	}
	// What a PIN could stand in, for all who may read pods.
	if len(c.Env) != 0 || len(c.EnvFrom) != 0 || len(p.Annotations) != 0 {
		t.Errorf("environment %v %v, annotations %v: want none", c.Env, c.EnvFrom, p.Annotations)
	}
	if p.Spec.HostPID || p.Spec.HostIPC || p.Spec.ShareProcessNamespace != nil || p.Spec.HostUsers != nil {
		t.Error("shares more of the node than its network, or not its users, by whom callers are known")
	}
}

// checkMounts: each directory has the same path inside and outside, exists before
// the pod does, and is writable only where kekd writes.
func checkMounts(t *testing.T, p corev1.Pod, more map[string]bool) {
	t.Helper()
	want := map[string]bool{configDir: true, config.Default().StateDir: false, socketDir(): false, auditDir: false}
	maps.Copy(want, more)
	got := map[string]bool{}
	volumes := map[string]corev1.Volume{}
	for _, v := range p.Spec.Volumes {
		volumes[v.Name] = v
	}
	for _, m := range p.Spec.Containers[0].VolumeMounts {
		v, ok := volumes[m.Name]
		delete(volumes, m.Name)
		switch {
		case !ok:
			t.Errorf("mount %s has no volume", m.Name)
		case v.EmptyDir != nil:
			if m.MountPath != "/tmp" || v.EmptyDir.SizeLimit == nil {
				t.Errorf("mount %v of %v", m, v)
			}
		case v.HostPath == nil || v.HostPath.Path != m.MountPath || m.SubPath != "":
			t.Errorf("mount %v of volume %v: want the node's directory of the same path", m, v)
		case v.HostPath.Type == nil || *v.HostPath.Type != corev1.HostPathDirectory:
			t.Errorf("volume %v: want type Directory, which nobody creates with the wrong owner", v)
		default:
			got[m.MountPath] = m.ReadOnly
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("mounts, true: read-only (-want +got):\n%s", d)
	}
	if len(volumes) != 0 {
		t.Errorf("not mounted: %v", volumes)
	}
}

// checkProbes asks the real handler, of a kekd whose HSM is away for good.
func checkProbes(t *testing.T, c corev1.Container) {
	t.Helper()
	down := httpapi.NewHandler(unready{}, prometheus.NewRegistry(), zap.NewNop())
	for what, probe := range map[string]struct {
		*corev1.Probe
		code int
	}{
		"startup":   {c.StartupProbe, http.StatusOK},
		"liveness":  {c.LivenessProbe, http.StatusOK},
		"readiness": {c.ReadinessProbe, http.StatusServiceUnavailable},
	} {
		if probe.Probe == nil || probe.HTTPGet == nil {
			t.Errorf("no %s probe", what)
			continue
		}
		get := probe.HTTPGet
		if address := net.JoinHostPort(get.Host, get.Port.String()); address != config.Default().HTTP.Address {
			t.Errorf("%s asks %s, and http.address is %s", what, address, config.Default().HTTP.Address)
		}
		w := httptest.NewRecorder()
		down.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, get.Path, http.NoBody))
		if w.Code != probe.code {
			t.Errorf("%s gets %d of %s without the HSM, want %d", what, w.Code, get.Path, probe.code)
		}
	}
}

// unready is a kekd whose HSM is away for longer than the grace.
type unready struct{}

func (unready) Report() health.Report   { return health.Report{State: health.Unready} }
func (unready) Status() httpapi.Status  { return httpapi.Status{} }
func (unready) Refresh(context.Context) {}

// The image runs as the pod's user, and starts what the pod starts.
func TestDockerfile(t *testing.T) {
	text := read(t, "../Dockerfile")
	users := regexp.MustCompile(`(?m)^USER\s+(.*)$`).FindAllStringSubmatch(text, -1)
	if len(users) == 0 {
		t.Error("no USER")
	}
	for _, m := range users {
		if strings.TrimSpace(m[1]) != fmt.Sprintf("%d:%d", uid, uid) {
			t.Errorf("USER %s, want %d:%d", m[1], uid, uid)
		}
	}
	if !strings.Contains(text, "/usr/local/bin/kekd") {
		t.Error("nothing at /usr/local/bin/kekd, which the pod runs")
	}
}

// kindConfig is what kind.yaml uses of kind's v1alpha4.
type kindConfig struct {
	Kind       string `json:"kind"`
	APIVersion string `json:"apiVersion"`
	Nodes      []struct {
		Role        string `json:"role"`
		ExtraMounts []struct {
			HostPath      string `json:"hostPath"`
			ContainerPath string `json:"containerPath"`
			ReadOnly      bool   `json:"readOnly"`
		} `json:"extraMounts"`
		KubeadmConfigPatches []string `json:"kubeadmConfigPatches"`
	} `json:"nodes"`
}

// The node of kind has all that the pod and kube-apiserver want of it, and
// prepare.sh makes it.
func TestKind(t *testing.T) {
	var k kindConfig
	decode(t, read(t, "kind/kind.yaml"), &k)
	if k.Kind != "Cluster" || k.APIVersion != "kind.x-k8s.io/v1alpha4" || len(k.Nodes) != 1 || k.Nodes[0].Role != "control-plane" {
		t.Fatalf("config %+v", k)
	}
	script, dropIn := read(t, "kind/prepare.sh"), read(t, "kind/kubelet.conf")
	node := map[string]bool{}
	for _, m := range k.Nodes[0].ExtraMounts {
		node[m.ContainerPath] = true
		if m.ReadOnly == slices.Contains([]string{tokenDir, config.Default().StateDir, auditDir}, m.ContainerPath) {
			t.Errorf("%s is read-only: %v", m.ContainerPath, m.ReadOnly)
		}
		if !strings.Contains(script, strings.TrimPrefix(m.HostPath, "./")) || path.IsAbs(m.HostPath) {
			t.Errorf("prepare.sh makes no %s", m.HostPath)
		}
	}
	for _, v := range pod(t, "softhsm").Spec.Volumes {
		dir := v.HostPath.Path
		made := fmt.Sprintf("install -d -o %d -g %d -m 0750 %s\n", uid, uid, dir)
		if !node[dir] && !strings.Contains(dropIn, made) {
			t.Errorf("the pod's %s is not on the node", dir)
		}
	}
	for _, p := range []string{"/etc/kubernetes/manifests/kekd.yaml", path.Dir(encryptionFile)} {
		if !node[p] {
			t.Errorf("the node has no %s", p)
		}
	}
	image := regexp.MustCompile(`images import (\S+)`).FindStringSubmatch(dropIn)
	if image == nil || !node[image[1]] {
		t.Errorf("kubelet.conf imports %q, which is not on the node", image)
	}
	if !strings.Contains(script, fmt.Sprintf("user=%d\n", uid)) || !strings.Contains(script, overlays["softhsm"].image) {
		t.Error("prepare.sh has another user or image than the pod")
	}
	if len(k.Nodes[0].KubeadmConfigPatches) != 1 {
		t.Fatalf("%d patches, want one", len(k.Nodes[0].KubeadmConfigPatches))
	}
	var got, want clusterConfiguration
	decode(t, k.Nodes[0].KubeadmConfigPatches[0], &got)
	decode(t, read(t, "kube-apiserver/kubeadm.yaml"), &want)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("patch and kube-apiserver/kubeadm.yaml (-want +got):\n%s", d)
	}
}
