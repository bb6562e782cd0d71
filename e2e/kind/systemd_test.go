package kind_test

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// maxExposure is what `systemd-analyze security` may say of the unit, in tenths: 0 is
// closed, 100 open. manifests/README.md has the number.
const maxExposure = 15

// TestSystemd has systemd run kekd on a node, as docs/install.md says, and the API
// server of that node encrypt by it.
func TestSystemd(t *testing.T) {
	t.Parallel()
	image := setting(t, "KEKD_SOFTHSM_IMAGE")
	c := newCluster(t, "systemd", oneNode)
	node := c.nodes[0]
	c.prepare(t, node, image)
	c.step(t, node, "kubeadm-token")
	c.step(t, node, "systemd-files", "KEKD_IMAGE="+imageName(image))
	c.step(t, node, "systemd-start")
	if out := c.step(t, node, "systemd-key"); strings.Contains(out, "\nwarn") || strings.Contains(out, "\nfail") {
		t.Errorf("the doctor complains:\n%s", out)
	}
	c.step(t, node, "kubeadm-encryption")
	c.configure(t, addKekd(t))
	c.apiserver(t, node, "kubeadm-apiserver")
	c.step(t, node, "kubeadm-check")
	c.step(t, node, "kubeadm-apiserver-check")
	c.put(t, "systemd")
	if v := c.stored(t, "systemd"); !strings.HasPrefix(v, encrypted) {
		t.Errorf("etcd has %.40q", v)
	}

	// kekd in its sandbox and kekctl outside write to one directory.
	t.Log(c.step(t, node, "kubeadm-audit"))

	out := c.on(t, node, "systemd-analyze security --no-pager kekd.service")
	m := regexp.MustCompile(`Overall exposure level for kekd.service: ([0-9]+)\.([0-9])`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("systemd-analyze names no exposure:\n%s", out)
	}
	whole, _ := strconv.Atoi(m[1])
	tenth, _ := strconv.Atoi(m[2])
	t.Logf("MEASURED exposure level %s.%s", m[1], m[2])
	if whole*10+tenth > maxExposure {
		t.Errorf("%s, want at most %d.%d", m[0], maxExposure/10, maxExposure%10)
	}

	// The socket is systemd's: a restart is a wait and no refusal.
	stop := c.outages(t, "systemctl restart kekd", "systemd")
	c.on(t, node, "systemctl restart kekd.service")
	c.kekdReady(t, node, time.Minute)
	c.put(t, "after-restart")
	stop()

	c.on(t, node, "systemctl kill -s KILL kekd.service")
	time.Sleep(time.Second)
	c.kekdReady(t, node, time.Minute)
	c.put(t, "after-kill")

	stop = c.outages(t, "power loss, systemd", "systemd")
	c.powerCycle(t, node)
	c.wants(t, 3*time.Minute, "systemd", "after-restart", "after-kill")
	stop()
	c.put(t, "after-power")
	if ran := c.on(t, node, "systemctl is-active kekd.service kekd.socket; test ! -e /etc/kubernetes/manifests/kekd.yaml && echo no pod"); ran != "active\nactive\nno pod\n" {
		t.Errorf("after the boot: %q", ran)
	}
}
