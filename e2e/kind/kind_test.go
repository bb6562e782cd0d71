package kind_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestKind makes the encrypted cluster of docs/install.md's section on kind: kekd and
// the first API server start together, out of nothing.
func TestKind(t *testing.T) {
	t.Parallel()
	image := setting(t, "KEKD_SOFTHSM_IMAGE")
	c := &cluster{name: "kekd", kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	c.endWith(t)
	root, err := filepath.Abs(repository)
	must(t, err)
	// The document's commands name the repository's files and make a directory beside
	// them; here that is a directory of the test's.
	dir := t.TempDir()
	must(t, os.Symlink(filepath.Join(root, "manifests"), filepath.Join(dir, "manifests")))
	run := func(name string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", step(t, name))
		cmd.Dir = dir
		cmd.Env = append(append(os.Environ(), c.env()...), "KUBECONFIG="+c.kubeconfig, "KEKD_IMAGE="+image, "PATH="+setting(t, "KEKD_KUBE_BIN")+":"+os.Getenv("PATH"))
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		begun := time.Now()
		if err := cmd.Run(); err != nil {
			t.Fatalf("step %s: %v\n%s%s", name, err, stdout.String(), stderr.String())
		}
		t.Logf("step %s took %v", name, time.Since(begun).Round(100*time.Millisecond))
		return stdout.String()
	}

	run("kind-prepare")
	// What a machine without a network needs besides: the node image, and no pods whose
	// images would have to be pulled.
	file := filepath.Join(dir, "kekd-kind", "kind.yaml")
	config, err := os.ReadFile(file)
	must(t, err)
	offlineConfig := strings.Replace(string(config), "- role: control-plane\n", "- role: control-plane\n    image: "+setting(t, "KEKD_NODE_IMAGE")+"\n", 1)
	if offlineConfig == string(config) {
		t.Fatal("manifests/kind/kind.yaml has no '- role: control-plane' to add the image to")
	}
	must(t, os.WriteFile(file, []byte(offlineConfig+offline), 0o600))
	begun := time.Now()
	run("kind-create")
	c.connect(t)
	eventually(t, 2*time.Minute, "the API server is ready", func() error {
		_, err := c.tryOn(c.nodes[0], "kubectl get --raw /readyz")
		return err
	})
	t.Logf("MEASURED cold start: an encrypted cluster out of nothing in %v", time.Since(begun).Round(time.Second))
	if out := run("kind-check"); !strings.Contains(out, encrypted) {
		t.Errorf("the check shows nothing encrypted:\n%s", out)
	}
	// Every object of these resources, the first ones too, is encrypted: there never
	// was an API server without kekd.
	c.bring(t, c.nodes[0], image)
	inventory := c.on(t, c.nodes[0], `ctr -n k8s.io images mount `+imageName(image)+` /mnt >/dev/null
		/mnt/usr/local/bin/kekctl inventory -o json; ctr -n k8s.io images unmount --rm /mnt >/dev/null`)
	for _, resource := range []string{"configmaps", "secrets"} {
		if !onlyEncrypted(t, inventory, resource) {
			t.Errorf("%s are not all encrypted: %s", resource, inventory)
		}
	}

	c.put(t, "power")
	stop := c.outages(t, "power loss of the kind node", "power")
	c.powerCycle(t, c.nodes[0])
	c.wants(t, 3*time.Minute, "power")
	stop()
	run("kind-delete")
}
