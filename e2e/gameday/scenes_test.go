package gameday

import (
	"net/http"
	"os"
	"testing"

	"kekd/e2e/internal/harness"
)

// takenAway is an HSM that cannot be reached.
func takenAway(t *testing.T, n *node) { n.token.TakeAway(t) }

// putBack mends it.
func putBack(t *testing.T, n *node) { n.token.PutBack(t) }

// acts is one act.
func acts(name string, f func(*testing.T, *node)) map[string]func(*testing.T, *node) {
	return map[string]func(*testing.T, *node){name: f}
}

var _ = harness.KekdOptions{}

// scenes are the harm for each page.
func scenes() []*scene {
	return []*scene{
		{
			page: "hsm-down", injected: "the token is taken away",
			inject: takenAway, acts: acts("the HSM is brought back", putBack),
			broken: func(t *testing.T, n *node) { n.mustCreateSecret(t) }, // from the seed in memory
		},
		{
			page: "pin-latched", injected: "a wrong PIN in the file; a new worker tries it",
			inject: func(t *testing.T, n *node) {
				n.token.WritePIN(t, "0000")
				n.kekd.KillWorker(t)
			},
			broken: func(t *testing.T, n *node) { n.kekd.WaitUnready(t, soon) },
			typed: map[string]func(*node) string{
				"cat >/etc/kekd/pin": func(n *node) string { return n.token.PIN() + "\n\x04" },
			},
		},
		{
			page: "decommission-encryption", injected: "nothing is broken: encryption is to go", planned: true,
			inject: func(*testing.T, *node) {},
			broken: func(t *testing.T, n *node) {
				if got := n.encrypted(t); got != n.secrets {
					t.Errorf("%d of %d Secrets are encrypted", got, n.secrets)
				}
			},
			acts: acts("kube-apiserver restarts without the flag", func(t *testing.T, n *node) {
				n.apiserver.Stop(t)
				n.apiserver.Configure(t, "")
				n.apiserver.StartReady(t)
			}),
			well: func(t *testing.T, n *node) {
				n.apiserver.WaitStatus(t, "/readyz", http.StatusOK, soon)
				n.mustCreateSecret(t)
				harness.Eventually(t, soon, "every Secret is read", n.readSecrets)
				if got := n.encrypted(t); got != 0 || n.kekd.Running() {
					t.Errorf("%d Secrets are encrypted, kekd runs: %v", got, n.kekd.Running())
				}
				if _, err := os.Stat(n.encryptionConfig()); err == nil {
					t.Error("the EncryptionConfiguration is left")
				}
			},
		},
	}
}
