package kind_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const encrypted = "k8s:enc:kms:v2:kekd:"

// imageName is an image's full name on a node.
func imageName(local string) string { return "docker.io/library/" + local }

// prepare brings the release to a node and installs kekd's files there.
func (c *cluster) prepare(t *testing.T, node, image string) {
	t.Helper()
	// kind's nodes leave out what makes directories in /run at every other boot.
	c.on(t, node, "systemctl add-wants sysinit.target systemd-tmpfiles-setup.service")
	// The document says so too; the published node image has none.
	c.on(t, node, "command -v softhsm2-util >/dev/null || { apt-get update -qq && apt-get install -y -qq softhsm2; } >/dev/null")
	c.bring(t, node, image)
	c.step(t, node, "kubeadm-files")
	c.step(t, node, "kubeadm-pin")
	c.step(t, node, "kubeadm-image", "KEKD_IMAGE="+imageName(image))
}

// configure changes the cluster's ClusterConfiguration by the document's command, as
// somebody with an editor does.
func (c *cluster) configure(t *testing.T, change func(config map[string]any)) {
	t.Helper()
	cm, err := c.client.CoreV1().ConfigMaps("kube-system").Get(t.Context(), "kubeadm-config", metav1.GetOptions{})
	must(t, err)
	var config map[string]any
	must(t, yaml.Unmarshal([]byte(cm.Data["ClusterConfiguration"]), &config))
	change(config)
	edited, err := yaml.Marshal(config)
	must(t, err)
	cm.Data["ClusterConfiguration"] = string(edited)
	cm.APIVersion, cm.Kind = "v1", "ConfigMap"
	file, err := yaml.Marshal(cm)
	must(t, err)
	c.on(t, c.nodes[0], "cat >/root/kekd/edited.yaml <<'END'\n"+string(file)+"END\n"+
		"printf '#!/bin/sh\\ncat /root/kekd/edited.yaml >\"$1\"\\n' >/root/kekd/editor; chmod +x /root/kekd/editor")
	c.step(t, c.nodes[0], "kubeadm-config", "KUBE_EDITOR=/root/kekd/editor")
}

// additions are what manifests/kube-apiserver/kubeadm.yaml adds.
func additions(t *testing.T) map[string]any {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(repository, "manifests", "kube-apiserver", "kubeadm.yaml"))
	must(t, err)
	var config struct {
		APIServer map[string]any `json:"apiServer"`
	}
	must(t, yaml.Unmarshal(b, &config))
	return config.APIServer
}

func addKekd(t *testing.T) func(map[string]any) {
	return func(config map[string]any) {
		server, _ := config["apiServer"].(map[string]any)
		if server == nil {
			server = map[string]any{}
			config["apiServer"] = server
		}
		for field, more := range additions(t) {
			have, _ := server[field].([]any)
			server[field] = append(have, more.([]any)...)
		}
	}
}

func removeKekd(t *testing.T) func(map[string]any) {
	return func(config map[string]any) {
		server := config["apiServer"].(map[string]any)
		for field, added := range additions(t) {
			var rest []any
			for _, have := range server[field].([]any) {
				keep := true
				for _, a := range added.([]any) {
					keep = keep && have.(map[string]any)["name"] != a.(map[string]any)["name"]
				}
				if keep {
					rest = append(rest, have)
				}
			}
			server[field] = rest
		}
	}
}

// apiserver has kubeadm write kube-apiserver's manifest anew by a step, and waits for
// the restart.
func (c *cluster) apiserver(t *testing.T, node, step string) {
	t.Helper()
	before := c.on(t, node, "pgrep -x kube-apiserver")
	c.step(t, node, step)
	c.awaitAPIServer(t, node, before)
}

// awaitAPIServer waits until a node has another kube-apiserver than before, which is
// ready.
func (c *cluster) awaitAPIServer(t *testing.T, node, before string) {
	t.Helper()
	eventually(t, 3*time.Minute, "kube-apiserver restarts on "+node, func() error {
		now, err := c.tryOn(node, "pgrep -x kube-apiserver")
		if err == nil && now == before {
			err = fmt.Errorf("it is still process %s", now)
		}
		return err
	})
	eventually(t, 3*time.Minute, "kube-apiserver is ready on "+node, func() error {
		_, err := c.tryOn(node, `kubectl --server "https://$(hostname -I | cut -d' ' -f1):6443" get --raw /readyz`)
		return err
	})
}

// inventory is what kekctl counts in etcd, as JSON.
func (c *cluster) inventory(t *testing.T) string {
	t.Helper()
	return c.on(t, c.nodes[0], "kekctl inventory -o json")
}

// install installs kekd in a running cluster of one node, with everything encrypted
// but identity still allowed, by the document's steps.
func (c *cluster) install(t *testing.T, image string) {
	t.Helper()
	node := c.nodes[0]
	c.prepare(t, node, image)
	c.step(t, node, "kubeadm-token")
	if out := c.step(t, node, "kubeadm-key"); strings.Count(out, "\nwarn") != 1 || !strings.Contains(out, "nobody listens") {
		t.Errorf("the doctor must warn that kekd does not run, and of nothing else:\n%s", out)
	}
	c.step(t, node, "kubeadm-pod", "KEKD_IMAGE="+imageName(image))
	c.step(t, node, "kubeadm-ready")
	c.step(t, node, "kubeadm-encryption")
	c.configure(t, addKekd(t))
	c.apiserver(t, node, "kubeadm-apiserver")
	c.step(t, node, "kubeadm-check")
	if out := c.step(t, node, "kubeadm-apiserver-check"); !strings.Contains(out, "identity is left in place") {
		t.Errorf("kekctl apiserver check does not warn of identity:\n%s", out)
	}
}

// TestKubeadm takes a running cluster through all that docs/install.md has for
// kubeadm: encryption switched on, what happens to a node afterwards, and off again.
func TestKubeadm(t *testing.T) {
	t.Parallel()
	image := setting(t, "KEKD_SOFTHSM_IMAGE")
	c := newCluster(t, "kubeadm", oneNode)
	node := c.nodes[0]
	c.put(t, "before")
	if v := c.stored(t, "before"); !strings.Contains(v, marker) {
		t.Fatalf("the Secret is not plain before encryption is on: %q", v)
	}
	ok := t.Run("install", func(t *testing.T) { c.install(t, image) })
	run := func(name string, fn func(t *testing.T)) {
		ok = ok && t.Run(name, fn)
	}
	wantEncrypted := func(t *testing.T, name string) {
		t.Helper()
		if v := c.stored(t, name); !strings.HasPrefix(v, encrypted) || strings.Contains(v, marker) {
			t.Errorf("etcd has %.60q of the Secret %s, want it to begin with %q", v, name, encrypted)
		}
	}

	run("new objects are encrypted, old ones are by rewrap", func(t *testing.T) {
		c.put(t, "after")
		wantEncrypted(t, "after")
		if v := c.stored(t, "before"); !strings.Contains(v, marker) {
			t.Error("the old Secret is encrypted before kekctl rewrap")
		}
		t.Log(c.step(t, node, "kubeadm-rewrap"))
		wantEncrypted(t, "before")
		before := c.on(t, node, "pgrep -x kube-apiserver")
		c.reloads(t, c.nodes, func() { c.step(t, node, "kubeadm-final") })
		c.wants(t, 10*time.Second, "before", "after")
		if now := c.on(t, node, "pgrep -x kube-apiserver"); now != before {
			t.Error("the API server was restarted by a change of the file")
		}
	})

	run("rotation under load", func(t *testing.T) {
		stop := c.load(t)
		out := c.step(t, node, "kubeadm-rotate")
		requests, failures := stop()
		t.Logf("%s\nMEASURED rotation: %d requests, %d failed", out, requests, len(failures))
		if len(failures) > 0 || requests < 100 {
			t.Errorf("%d requests, %d failed: %v", requests, len(failures), failures)
		}
		c.wants(t, 10*time.Second, "before", "after", "load-0-0")
	})

	run("what was done is on record", func(t *testing.T) {
		t.Log(c.step(t, node, "kubeadm-audit"))
		for _, operation := range []string{"create", "create-audit-key", "encrypt", "wrap", "publish"} {
			if out := c.on(t, node, "kekctl audit query --result ok --operation "+operation); !strings.Contains(out, operation) {
				t.Errorf("no %s is on record: %q", operation, out)
			}
		}
	})

	run("kekd's pod is killed", func(t *testing.T) {
		stop := c.outages(t, "kekd killed", "before")
		c.on(t, node, "kill -9 $(pgrep -x kekd)")
		time.Sleep(time.Second)
		c.kekdReady(t, node, time.Minute)
		c.put(t, "after-kill")
		secrets, _ := stop()
		if secrets > time.Minute {
			t.Errorf("Secrets were unreadable for %v", secrets)
		}
		c.wants(t, 10*time.Second, "after-kill")
	})

	run("a socket left behind", func(t *testing.T) {
		// Killed in the middle, with no chance to remove its socket.
		before := c.on(t, node, "pgrep -x kekd | head -n 1; kill -STOP $(pgrep -x kekd); kill -9 $(pgrep -x kekd); test -S /run/kekd/kekd.sock && echo left")
		if !strings.Contains(before, "left") {
			t.Errorf("no socket was left behind: %q", before)
		}
		time.Sleep(time.Second)
		c.kekdReady(t, node, time.Minute)
		c.put(t, "after-socket")
		c.wants(t, 10*time.Second, "after-socket")
	})

	run("the node loses power", func(t *testing.T) {
		stop := c.outages(t, "power loss of the only node", "before")
		c.powerCycle(t, node)
		c.wants(t, 3*time.Minute, "before", "after", "load-0-0")
		c.kekdReady(t, node, time.Minute)
		c.put(t, "after-power")
		stop()
	})

	run("back to the image before, and forth", func(t *testing.T) {
		for _, to := range []struct{ what, image string }{
			{"rollback", setting(t, "KEKD_PREVIOUS_IMAGE")}, {"upgrade", image},
		} {
			c.bringImage(t, node, to.image)
			stop := c.outages(t, to.what, "before")
			before := c.on(t, node, "pgrep -x kekd | head -n 1")
			c.step(t, node, "kubeadm-upgrade", "KEKD_IMAGE="+imageName(to.image))
			eventually(t, time.Minute, "another kekd runs", func() error {
				now, err := c.tryOn(node, "pgrep -x kekd | head -n 1")
				if err == nil && now == before {
					err = fmt.Errorf("still process %s", now)
				}
				return err
			})
			c.kekdReady(t, node, time.Minute)
			c.put(t, to.what)
			stop()
			c.wants(t, 10*time.Second, "before", "after", "after-power", to.what)
			if running := c.on(t, node, `kubectl -n kube-system get pod "kekd-$(hostname)" -o jsonpath='{.spec.containers[0].image}'`); running != imageName(to.image) {
				t.Errorf("%s runs, want %s", running, to.image)
			}
		}
	})

	run("etcd is restored from a snapshot", func(t *testing.T) {
		c.step(t, node, "kubeadm-backup")
		must(t, c.client.CoreV1().Secrets(namespace).Delete(t.Context(), "after", metav1.DeleteOptions{}))
		before := c.on(t, node, "pgrep -x kube-apiserver")
		c.step(t, node, "kubeadm-restore")
		c.awaitAPIServer(t, node, before)
		c.wants(t, time.Minute, "before", "after")
		wantEncrypted(t, "after")
	})

	run("encryption is removed again", func(t *testing.T) {
		c.reloads(t, c.nodes, func() { c.step(t, node, "kubeadm-remove-prepare") })
		c.step(t, node, "kubeadm-remove-rewrite")
		for _, name := range []string{"before", "after", "load-0-0"} {
			if v := c.stored(t, name); !strings.Contains(v, marker) {
				t.Errorf("the Secret %s is still encrypted: %.40q", name, v)
			}
		}
		if inventory := c.inventory(t); strings.Contains(inventory, "k8s-kek/") {
			t.Errorf("the inventory still has objects under a key: %s", inventory)
		}
		c.configure(t, removeKekd(t))
		c.apiserver(t, node, "kubeadm-remove-apiserver")
		c.step(t, node, "kubeadm-remove-kekd")
		eventually(t, time.Minute, "kekd ends", func() error {
			if out, err := c.tryOn(node, "pgrep -x kekd"); err == nil {
				return fmt.Errorf("it runs: %s", out)
			}
			return nil
		})
		c.wants(t, 10*time.Second, "before", "after")
	})
}

// powerCycle ends a node at once and starts it again.
func (c *cluster) powerCycle(t *testing.T, node string) {
	t.Helper()
	host(t, "docker", "kill", "-s", "KILL", node)
	time.Sleep(2 * time.Second)
	host(t, "docker", "start", node)
}

// onlyEncrypted tells from kekctl's inventory whether a resource has objects and all of
// them are encrypted.
func onlyEncrypted(t *testing.T, inventory, resource string) bool {
	t.Helper()
	var report struct {
		Resources []struct {
			Resource string
			Objects  int
			Counts   []struct {
				Class   string
				Objects int
			}
		}
	}
	must(t, json.Unmarshal([]byte(inventory), &report))
	for _, r := range report.Resources {
		if r.Resource == resource {
			return r.Objects > 0 && len(r.Counts) == 1 && r.Counts[0].Class == "kms-v2"
		}
	}
	return false
}
