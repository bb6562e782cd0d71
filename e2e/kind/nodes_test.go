package kind_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestThreeNodes installs kekd on three control-plane nodes that share one token, in
// the two rounds that docs/install.md has for API servers that run, and rotates, once
// with all nodes and once while one of them is down.
func TestThreeNodes(t *testing.T) {
	t.Parallel()
	image := setting(t, "KEKD_SOFTHSM_IMAGE")
	tokens := filepath.Join(t.TempDir(), "tokens")
	must(t, os.Mkdir(tokens, 0o700))
	mount := oneNode + "  extraMounts:\n  - {hostPath: " + tokens + ", containerPath: /var/lib/softhsm/tokens}\n"
	c := newCluster(t, "three", strings.Repeat(mount, 3))
	first, last := c.nodes[0], c.nodes[2]

	var pin string
	for _, node := range c.nodes {
		if pin != "" {
			c.on(t, node, "install -d /etc/kekd; umask 0077; printf '%s' '"+pin+"' >/etc/kekd/pin")
		}
		c.prepare(t, node, image)
		pin = strings.TrimSpace(c.on(t, node, "cat /etc/kekd/pin"))
	}
	c.step(t, first, "kubeadm-token")
	c.step(t, first, "kubeadm-key")
	for _, node := range c.nodes {
		c.step(t, node, "kubeadm-pod", "KEKD_IMAGE="+imageName(image))
	}
	for _, node := range c.nodes {
		c.step(t, node, "kubeadm-ready")
	}
	c.configure(t, addKekd(t))
	for _, node := range c.nodes {
		c.step(t, node, "kubeadm-encryption-prepare")
		c.apiserver(t, node, "kubeadm-apiserver")
	}
	c.reloads(t, c.nodes, func() {
		for _, node := range c.nodes {
			c.step(t, node, "kubeadm-encryption")
		}
	})
	c.everyNodeReadsWhatOthersWrite(t, "encrypted")
	t.Log(c.step(t, first, "kubeadm-rewrap"))

	if !t.Run("rotation converges on all", func(t *testing.T) {
		before := c.keyID(t, c.nodes)
		t.Log(c.step(t, first, "kubeadm-rotate"))
		if after := c.keyID(t, c.nodes); after == before {
			t.Errorf("all nodes still have %s", before)
		}
		c.everyNodeReadsWhatOthersWrite(t, "rotated")
	}) {
		return
	}

	t.Run("a node is down while the key changes", func(t *testing.T) {
		before := c.keyID(t, c.nodes)
		c.on(t, first, `: >/root/kekd/rotate.log
			(kekctl rotate --yes --activate-in 40s; echo "exit $?") >/root/kekd/rotate.log 2>&1 </dev/null &`)
		log := func() string { return c.on(t, first, "cat /root/kekd/rotate.log") }
		eventually(t, 2*time.Minute, "all nodes have tested the new key", func() error {
			if out := log(); strings.Count(out, "has tested the key") < 3 {
				return errors.New(out)
			}
			return nil
		})
		// Through the API server of a node that stays; etcd may have to elect a leader.
		c.on(t, first, `(until [ -e /root/kekd/enough ]; do
			kubectl --request-timeout=2s --server "https://$(hostname -I | cut -d' ' -f1):6443" get secret rotated-0 >/dev/null 2>&1 && echo read || echo failed
			sleep 0.1
		done) >/root/kekd/reads 2>/dev/null </dev/null &`)
		host(t, "docker", "kill", "-s", "KILL", last)
		eventually(t, 2*time.Minute, "the two others encrypt under the new key", func() error {
			if now := c.status(c.nodes[0]); now == before || now != c.status(c.nodes[1]) {
				return fmt.Errorf("%s, %s", now, c.status(c.nodes[1]))
			}
			return nil
		})
		c.put(t, "while-down")
		host(t, "docker", "start", last)
		c.kekdReady(t, last, 2*time.Minute)
		eventually(t, 3*time.Minute, "the API server of the third is back", func() error {
			_, err := c.tryOn(last, `kubectl --server "https://$(hostname -I | cut -d' ' -f1):6443" get --raw /readyz`)
			return err
		})
		eventually(t, 10*time.Minute, "kekctl rotate ends", func() error {
			if out := log(); !strings.Contains(out, "exit ") {
				return errors.New(out)
			}
			return nil
		})
		reads := c.on(t, first, "touch /root/kekd/enough; sleep 3; cat /root/kekd/reads")
		good, bad := strings.Count(reads, "read"), strings.Count(reads, "failed")
		t.Logf("MEASURED a node killed during a rotation: %d reads through another, %d failed", good, bad)
		if good < 50 || bad > good/10 {
			t.Errorf("%d reads through another node, %d failed", good, bad)
		}
		t.Logf("kekctl rotate, with a node killed:\n%s", log())
		if !strings.Contains(log(), "exit 0") {
			// As it says itself: run it again when the node is mended.
			t.Logf("again:\n%s", c.on(t, first, "kekctl rotate --yes --activate-in 30s"))
		}
		if after := c.keyID(t, c.nodes); after == before {
			t.Errorf("all nodes still have %s", before)
		}
		if inventory := c.inventory(t); strings.Contains(inventory, before) {
			t.Errorf("objects are left under %s: %s", before, inventory)
		}
		c.everyNodeReadsWhatOthersWrite(t, "after-down")
		c.wants(t, 10*time.Second, "while-down")
	})
}

// status is the key_id that a node's kekd encrypts under; empty when it does not say.
func (c *cluster) status(node string) string {
	out, err := c.tryOn(node, "curl -sS -m 2 http://127.0.0.1:8780/status | jq -r .health.keyID")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(out)
}

// keyID is the one key_id that all of the nodes have, within a minute.
func (c *cluster) keyID(t *testing.T, nodes []string) string {
	t.Helper()
	var one string
	eventually(t, time.Minute, "all nodes have one key_id", func() error {
		one = c.status(nodes[0])
		for _, node := range nodes {
			if got := c.status(node); got != one || got == "" || got == "null" {
				return fmt.Errorf("%s has %q, %s %q", nodes[0], one, node, got)
			}
		}
		return nil
	})
	return one
}

// everyNodeReadsWhatOthersWrite writes a Secret through each API server and reads it
// through each.
func (c *cluster) everyNodeReadsWhatOthersWrite(t *testing.T, name string) {
	t.Helper()
	const api = `k() { kubectl --server "https://$(hostname -I | cut -d' ' -f1):6443" "$@"; }; `
	for i, node := range c.nodes {
		c.on(t, node, api+fmt.Sprintf("k create secret generic %s-%d --from-literal=value='%s'", name, i, marker))
		if v := c.stored(t, fmt.Sprintf("%s-%d", name, i)); !strings.HasPrefix(v, encrypted) {
			t.Errorf("etcd has %.40q of what %s wrote", v, node)
		}
	}
	for _, node := range c.nodes {
		for i := range c.nodes {
			got := c.on(t, node, api+fmt.Sprintf("k get secret %s-%d -o jsonpath='{.data.value}' | base64 -d", name, i))
			if got != marker {
				t.Errorf("%s reads %q of what %s wrote", node, got, c.nodes[i])
			}
		}
	}
}
