// Package kind_test installs kekd in real clusters, made by kind, as docs/install.md
// says, and does to them what happens to clusters. `make e2e-kind` runs it.
package kind_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const repository = "../.."

// setting is a variable that make e2e-kind sets.
func setting(tb testing.TB, name string) string {
	tb.Helper()
	v := os.Getenv(name)
	if v == "" {
		tb.Fatalf("%s is not set; run make e2e-kind", name)
	}
	return v
}

// cluster is a running kind cluster.
type cluster struct {
	name       string
	kubeconfig string
	nodes      []string
	client     *kubernetes.Clientset
}

// oneNode is a control-plane node in kind's configuration.
const oneNode = "- role: control-plane\n"

// offline ends a configuration of kind's. Without a network there are no images of
// CoreDNS and kube-proxy, and nothing here needs them.
const offline = `networking:
  disableDefaultCNI: true
  kubeProxyMode: none
kubeadmConfigPatches:
- |
  kind: KubeletConfiguration
  failCgroupV1: false
- |
  kind: InitConfiguration
  skipPhases: [addon/coredns, addon/kube-proxy]
  nodeRegistration: {ignorePreflightErrors: [all]}
- |
  kind: JoinConfiguration
  nodeRegistration: {ignorePreflightErrors: [all]}
`

// newCluster makes a cluster without kekd, of the nodes that are configured, which
// ends with the test.
func newCluster(t *testing.T, name, nodes string) *cluster {
	t.Helper()
	c := &cluster{name: "kekd-" + name, kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	config := filepath.Join(t.TempDir(), "kind.yaml")
	must(t, os.WriteFile(config, []byte("kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n"+nodes+offline), 0o600))
	c.endWith(t)
	begun := time.Now()
	args := []string{"create", "cluster", "--name", c.name, "--image", setting(t, "KEKD_NODE_IMAGE"), "--config", config, "--kubeconfig", c.kubeconfig, "--wait", "180s", "--retain"}
	if _, err := try(c.env(), kind(t), args...); err != nil {
		t.Fatal(err)
	}
	t.Logf("the cluster came up in %v", time.Since(begun).Round(time.Second))
	c.connect(t)
	return c
}

// endWith deletes the cluster, one of an earlier run now and this one with the test.
func (c *cluster) endWith(t *testing.T) {
	t.Helper()
	// With a kubeconfig of its own: two tests at once would stumble over the lock of
	// the user's.
	remove := []string{"delete", "cluster", "--name", c.name, "--kubeconfig", c.kubeconfig}
	host(t, kind(t), remove...)
	t.Cleanup(func() {
		if t.Failed() {
			c.report(t)
		}
		host(t, kind(t), remove...)
		_, _ = try(nil, "docker", "network", "rm", c.name)
	})
}

// env has kind make a network for this cluster alone: a node that was killed must
// find its address free when it starts again, and no node of another test on it.
func (c *cluster) env() []string { return []string{"KIND_EXPERIMENTAL_DOCKER_NETWORK=" + c.name} }

func (c *cluster) connect(t *testing.T) {
	t.Helper()
	for node := range strings.FieldsSeq(host(t, kind(t), "get", "nodes", "--name", c.name)) {
		if strings.Contains(node, "control-plane") {
			c.nodes = append(c.nodes, node)
		}
	}
	slices.Sort(c.nodes)
	config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
	must(t, err)
	config.QPS, config.Burst = 500, 500
	config.Timeout = 10 * time.Second
	c.client, err = kubernetes.NewForConfig(config)
	must(t, err)
}

func kind(tb testing.TB) string { return filepath.Join(setting(tb, "KEKD_KUBE_BIN"), "kind") }

// host runs a program and returns its stdout.
func host(tb testing.TB, program string, args ...string) string {
	tb.Helper()
	out, err := try(nil, program, args...)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

func try(env []string, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(program), strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// on runs a script as root on a node, and returns its stdout.
func (c *cluster) on(tb testing.TB, node, script string, env ...string) string {
	tb.Helper()
	out, err := c.tryOn(node, script, env...)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// scriptTimeout bounds a script. A rotation takes the most: some five minutes, two of
// which are the wait until no witness of the old key can be behind.
const scriptTimeout = 10 * time.Minute

func (c *cluster) tryOn(node, script string, env ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), scriptTimeout)
	defer cancel()
	args := []string{"exec", "-i", "-e", "KUBECONFIG=/etc/kubernetes/admin.conf"}
	for _, e := range env {
		args = append(args, "-e", e)
	}
	cmd := exec.CommandContext(ctx, "docker", append(args, node, "bash", "-euo", "pipefail", "-s")...)
	cmd.Stdin = strings.NewReader(script)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("on %s: %w\n--- script\n%s--- stdout\n%s--- stderr\n%s", node, err, script, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// step runs a step of docs/install.md on a node.
func (c *cluster) step(t *testing.T, node, name string, env ...string) string {
	t.Helper()
	begun := time.Now()
	out := c.on(t, node, step(t, name), env...)
	t.Logf("%s: step %s took %v", node, name, time.Since(begun).Round(100*time.Millisecond))
	return out
}

// bring copies the release to a node, as the document asks the reader to.
func (c *cluster) bring(t *testing.T, node, image string) {
	t.Helper()
	c.on(t, node, "mkdir -p /root/kekd")
	host(t, "docker", "cp", filepath.Join(repository, "manifests"), node+":/root/kekd/")
	c.bringImage(t, node, image)
}

func (c *cluster) bringImage(t *testing.T, node, image string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kekd.tar")
	host(t, "docker", "save", "-o", file, image)
	host(t, "docker", "cp", file, node+":/root/kekd/kekd.tar")
}

// report prints what explains a failure.
func (c *cluster) report(t *testing.T) {
	for _, node := range c.nodes {
		out, err := c.tryOn(node, `
			ls -la /run/kekd /var/lib/kekd /etc/kekd /etc/kubernetes/manifests || true
			for f in /var/log/containers/kekd-*.log /var/log/containers/kube-apiserver-*.log; do echo "== $f"; tail -n 15 "$f" | cut -c1-400 || true; done
			journalctl -u kekd --no-pager -n 25 || true
			journalctl -u kubelet --no-pager | grep -E ' [EW][0-9]{4} ' | tail -n 15 | cut -c1-400 || true`)
		t.Logf("%s: %v\n%s", node, err, out)
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// eventually tries until it succeeds, and returns how long that took.
func eventually(tb testing.TB, within time.Duration, what string, fn func() error) time.Duration {
	tb.Helper()
	begun := time.Now()
	for {
		err := fn()
		if err == nil {
			return time.Since(begun)
		}
		if time.Since(begun) > within {
			tb.Fatalf("%s: not within %v: %v", what, within, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// kekdReady waits until the kekd of a node is ready.
func (c *cluster) kekdReady(tb testing.TB, node string, within time.Duration) {
	tb.Helper()
	eventually(tb, within, "kekd on "+node+" is ready", func() error {
		out, err := c.tryOn(node, "curl -sS -m 2 http://127.0.0.1:8780/readyz")
		if err == nil && strings.TrimSpace(out) != "ready" {
			err = errors.New(out)
		}
		return err
	})
}

// reloads runs change, which replaces the EncryptionConfiguration of nodes, and waits
// until the API server of each has taken it up, which it does each minute.
func (c *cluster) reloads(t *testing.T, nodes []string, change func()) {
	t.Helper()
	count := func(node string) string {
		out, err := c.tryOn(node, `kubectl --server "https://$(hostname -I | cut -d' ' -f1):6443" get --raw /metrics |
			grep '^apiserver_encryption_config_controller_automatic_reloads_total{.*status="success"}' || true`)
		if err != nil {
			return err.Error()
		}
		return out
	}
	before := map[string]string{}
	for _, node := range nodes {
		before[node] = count(node)
	}
	change()
	for _, node := range nodes {
		eventually(t, 2*time.Minute, "the API server of "+node+" reads its EncryptionConfiguration", func() error {
			if now := count(node); now == before[node] {
				return fmt.Errorf("reloads: %s", now)
			}
			return nil
		})
	}
}
