package kind_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// fatal is how long an API server whose own objects are encrypted lives at most
// without its plugin, and some more.
const fatal = 60 * time.Second

// TestBootOrder starts the API server while kekd is away, with the resources that
// docs/install.md encrypts, which it must survive, and with all of them, which it does
// not, and which is why the document says so.
func TestBootOrder(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "boot", oneNode)
	node := c.nodes[0]
	c.install(t, setting(t, "KEKD_SOFTHSM_IMAGE"))
	c.put(t, "boot")

	stopKekd := func(t *testing.T) {
		t.Helper()
		c.on(t, node, "mv /etc/kubernetes/manifests/kekd.yaml /root/kekd/")
		eventually(t, time.Minute, "kekd ends", func() error {
			if _, err := c.tryOn(node, "pgrep -x kekd"); err == nil {
				return errors.New("it runs")
			}
			return nil
		})
	}
	startKekd := func(t *testing.T) {
		t.Helper()
		c.on(t, node, "mv /root/kekd/kekd.yaml /etc/kubernetes/manifests/")
	}
	// restart kills the API server, and returns the process that comes next.
	restart := func(t *testing.T) string {
		t.Helper()
		before := c.on(t, node, "pgrep -x kube-apiserver; kill -9 $(pgrep -x kube-apiserver)")
		var now string
		eventually(t, 2*time.Minute, "another API server", func() error {
			var err error
			if now, err = c.tryOn(node, "pgrep -x kube-apiserver"); err == nil && now == before {
				err = errors.New("still the old one")
			}
			return err
		})
		return strings.TrimSpace(now)
	}
	livez := func() error {
		_, err := c.tryOn(node, "curl -sSk -m 2 --fail https://127.0.0.1:6443/livez")
		return err
	}

	if !t.Run("secrets and configmaps", func(t *testing.T) {
		stopKekd(t)
		pid := restart(t)
		begun := time.Now()
		t.Logf("MEASURED /livez was good %v after an API server's start without kekd",
			eventually(t, 3*time.Minute, "/livez is good without kekd", livez).Round(time.Second))
		time.Sleep(max(0, fatal-time.Since(begun)))
		if now := c.on(t, node, "pgrep -x kube-apiserver"); strings.TrimSpace(now) != pid {
			t.Errorf("the API server did not live: process %s, then %s", pid, now)
		}
		if err := c.read("boot"); err == nil {
			t.Error("a Secret can be read without kekd, so nothing was shown")
		}
		startKekd(t)
		begun = time.Now()
		c.wants(t, 2*time.Minute, "boot")
		t.Logf("MEASURED Secrets were readable %v after kekd's manifest was there", time.Since(begun).Round(100*time.Millisecond))
		c.put(t, "boot-after")
	}) {
		return
	}

	t.Run("everything", func(t *testing.T) {
		c.on(t, node, `sed 's/resources: \[secrets, configmaps\]/resources: ["*.*"]/' /etc/kubernetes/kms/encryption.yaml >/etc/kubernetes/kms/new
			grep -q '"\*\.\*"' /etc/kubernetes/kms/new
			mv /etc/kubernetes/kms/new /etc/kubernetes/kms/encryption.yaml`)
		c.kekdReady(t, node, time.Minute)
		restart(t)
		eventually(t, 2*time.Minute, "the API server is ready", func() error {
			_, err := c.tryOn(node, "kubectl get --raw /readyz")
			return err
		})
		// As they are after a year: written once since encryption was switched on.
		c.on(t, node, "for r in clusterroles clusterrolebindings priorityclasses namespaces; do kubectl get $r -o json | kubectl replace -f - >/dev/null; done")
		stopKekd(t)
		pid := restart(t)
		died := eventually(t, fatal, "the API server dies without kekd", func() error {
			if now, err := c.tryOn(node, "pgrep -x kube-apiserver"); err == nil && strings.TrimSpace(now) == pid {
				return fmt.Errorf("process %s lives", pid)
			}
			return nil
		})
		t.Logf("MEASURED with *.* encrypted the API server died after %v without kekd", died.Round(time.Second))
		startKekd(t)
		begun := time.Now()
		c.wants(t, 5*time.Minute, "boot", "boot-after")
		t.Logf("MEASURED and was back %v after kekd", time.Since(begun).Round(time.Second))
	})
}
