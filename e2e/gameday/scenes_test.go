package gameday

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kekd/e2e/internal/harness"
)

// acts is one act.
func acts(name string, f func(*testing.T, *node)) map[string]func(*testing.T, *node) {
	return map[string]func(*testing.T, *node){name: f}
}

// rotated makes a new primary and leaves all objects under the key before it, which it
// returns.
func rotated(t *testing.T, n *node) (old string) {
	t.Helper()
	old = n.primary(t)
	n.old = old
	n.kekd.Command(t, "key", "rotate", "--now", "--yes")
	harness.Eventually(t, soon, "kube-apiserver writes under the new key", func(ctx context.Context) error {
		if now := n.primary(t); now == old {
			return errors.New("kekd has the old one")
		}
		_, _, err := n.apiserver.Get(ctx, kmsReady) // which has it ask for Status
		return err
	})
	return old
}

// violated requires that kekd, too, sees the policy violated.
func violated(t *testing.T, n *node) {
	t.Helper()
	if n.kekd.Metrics(t).Sum("kekd_key_policy_violations", nil) == 0 {
		t.Error("kekd sees no violation")
	}
}

// underOld requires that all Secrets stand under the key before the primary.
func underOld(t *testing.T, n *node) {
	t.Helper()
	if got := n.under(t, n.old); got != n.secrets {
		t.Errorf("%d of %d Secrets stand under %s", got, n.secrets, n.old)
	}
}

// underPrimary is requireWell, and all Secrets stand under the primary, which is another
// key now.
func underPrimary(t *testing.T, n *node) {
	t.Helper()
	n.requireWell(t)
	now := n.primary(t)
	if got := n.under(t, now); got != n.secrets || now == n.old {
		t.Errorf("%d of %d Secrets stand under %s; the key was %s", got, n.secrets, now, n.old)
	}
}

// seal keeps a value that kekd has encrypted.
func seal(t *testing.T, n *node) {
	t.Helper()
	var err error
	if n.sealed, err = n.kekd.KMS(t).Encrypt(t.Context(), []byte("x")); err != nil {
		t.Fatalf("encrypt: %v", err)
	}
	n.old = n.primary(t)
}

// unreadable requires that a kube-apiserver with nothing in its memory can't read.
func unreadable(t *testing.T, n *node) {
	t.Helper()
	n.restartAPIServer(t)
	if err := n.readSecrets(t.Context()); err == nil {
		t.Fatal("every Secret can be read, and the harm is done")
	}
}

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
			page: "hsm-slow", injected: "each operation of the HSM takes 1.5 s", faults: true,
			inject: func(t *testing.T, n *node) { n.token.Faults(t, "C_Encrypt ms=1500", "C_Decrypt ms=1500") },
			acts:   acts("the HSM is as fast as before", func(t *testing.T, n *node) { n.token.Faults(t) }),
			broken: func(t *testing.T, n *node) {
				harness.Eventually(t, soon, "probes are slow", func(context.Context) error {
					m := n.kekd.Metrics(t)["kekd_hsm_operation_duration_seconds"]
					for _, op := range m.GetMetric() {
						if h := op.GetHistogram(); h.GetSampleSum() > 1 {
							return nil
						}
					}
					return errors.New("none was yet")
				})
			},
		},
		{
			page: "sessions-exhausted", injected: "the token gives one session, which the login has", faults: true,
			inject: func(t *testing.T, n *node) {
				n.token.Faults(t, "C_OpenSession limit=1")
				n.kekd.KillWorker(t)
			},
			broken: func(t *testing.T, n *node) {
				state, err := n.kekd.Status(t.Context())
				if err != nil || !strings.Contains(state.RingProblem, "CKR_SESSION_COUNT") {
					t.Errorf("kekd says %+v, %v", state, err)
				}
			},
			acts: acts("the token has sessions again", func(t *testing.T, n *node) { n.token.Faults(t) }),
		},
		{
			page: "worker-restarts", injected: "the module crashes in each C_Encrypt", faults: true,
			inject: func(t *testing.T, n *node) { n.token.Faults(t, "C_Encrypt crash") },
			broken: func(t *testing.T, n *node) { n.mustCreateSecret(t) }, // from the seed in memory
			acts:   acts("the module is replaced by one that does not crash", func(t *testing.T, n *node) { n.token.Faults(t) }),
		},
		{
			page: "audit-failing", injected: "the disk of the audit trail is full",
			options: harness.KekdOptions{Audit: "continue"},
			before:  auditDisk,
			inject:  fillAudit,
			broken: func(t *testing.T, n *node) {
				// A shorter record may still fit where a longer one did not, and the trail
				// works again for a moment.
				harness.Eventually(t, soon, "records are lost, one after the other", func(ctx context.Context) error {
					for range 8 {
						if err := n.createSecret(ctx); err != nil {
							return err
						}
						m := n.kekd.Metrics(t)
						if m.Sum("kekd_audit_records_lost_total", nil) == 0 || m.Sum("kekd_audit_failing", map[string]string{"part": "write"}) == 0 {
							return errors.New("the last one is not")
						}
					}
					return nil
				})
			},
			acts: acts("room is made on the disk", func(t *testing.T, n *node) {
				if err := os.Remove(ballast(n)); err != nil {
					t.Fatal(err)
				}
			}),
		},
		{
			page: "key-disabled-by-mistake", injected: "a retired key that objects are encrypted under is disabled by force",
			inject: func(t *testing.T, n *node) {
				old := rotated(t, n)
				n.kekd.Command(t, "key", "disable", old, "--yes", "--force", old)
				n.awaitState(t, old, "disabled")
			},
			broken: unreadable, fresh: true,
		},
		{
			page: "undecryptable-after-rotation", injected: "a retired key that objects are encrypted under is scheduled for destruction by force; kube-apiserver restarts",
			inject: func(t *testing.T, n *node) {
				old := rotated(t, n)
				n.kekd.Command(t, "key", "destroy", old, "--after", "30d", "--yes", "--force", old)
				n.awaitState(t, old, "scheduled-for-destruction")
				unreadable(t, n)
			},
			broken: underOld, well: underPrimary, fresh: true,
		},
		{
			page: "token-lost", injected: "the token is deleted; the HSM is there, and empty",
			inject: func(t *testing.T, n *node) {
				backup(t, n)
				emptied(t, n)
			},
			broken: func(t *testing.T, n *node) { n.mustCreateSecret(t) }, // from the seed in memory
			acts:   acts("the token is restored from its backup", restore),
			fresh:  true,
		},
		{
			page: "apiserver-will-not-start", injected: "kekd is stopped, then kube-apiserver restarts",
			inject: func(t *testing.T, n *node) {
				n.kekd.Stop(t)
				n.restartAPIServer(t)
			},
			broken: func(t *testing.T, n *node) {
				if err := n.readSecrets(t.Context()); err == nil {
					t.Error("every Secret can be read without kekd")
				}
			},
		},
		{
			page: "decommission-key", injected: "nothing is broken: a key was rotated, and the old one is to go",
			inject: func(t *testing.T, n *node) { rotated(t, n) },
			broken: underOld,
			well: func(t *testing.T, n *node) {
				underPrimary(t, n)
				harness.Eventually(t, soon, "kekd has one key", func(ctx context.Context) error {
					state, err := n.kekd.Status(ctx)
					if err == nil && len(state.KeyRing.Keys) != 1 {
						err = fmt.Errorf("the ring is %+v", state.KeyRing.Keys)
					}
					return err
				})
			},
			fresh: true,
		},
		{
			page: "key-compromise", injected: "nothing is broken: the primary must stop", planned: true,
			inject: seal,
			broken: func(t *testing.T, n *node) {
				if _, err := n.kekd.KMS(t).Decrypt(t.Context(), n.sealed); err != nil {
					t.Errorf("decrypt under the key: %v", err)
				}
			},
			well: func(t *testing.T, n *node) {
				underPrimary(t, n)
				if _, err := n.kekd.KMS(t).Decrypt(t.Context(), n.sealed); status.Code(err) != codes.FailedPrecondition {
					t.Errorf("decrypt under the revoked key: %v", err)
				}
			},
			fresh: true,
		},
		{
			page: "unready", injected: "the token is taken away for longer than the grace",
			options: harness.KekdOptions{OutageGrace: 2 * time.Second},
			inject:  takenAway, acts: acts("the HSM is brought back", putBack),
			broken: func(t *testing.T, n *node) {
				if err := n.readSecrets(t.Context()); err != nil {
					t.Errorf("a kube-apiserver that runs can't read: %v", err)
				}
			},
		},
		{
			page: "kekd-down", injected: "the socket's directory is opened to everybody, and kekd restarts",
			inject: func(t *testing.T, n *node) {
				if err := os.Chmod(filepath.Dir(n.kekd.Socket), 0o777); err != nil {
					t.Fatal(err)
				}
				n.kekd.Stop(t)
				n.kekd.Start(t)
				n.kekd.AwaitExit(t, soon)
			},
			broken: func(t *testing.T, n *node) {
				if n.kekd.Running() {
					t.Error("kekd runs")
				}
			},
		},
		{
			page: "availability", injected: "the token is taken away while seeds are read that are not cached",
			inject: func(t *testing.T, n *node) {
				n.kekd.Stop(t)
				n.kekd.StartReady(t) // with an empty cache
				n.token.TakeAway(t)
				n.restartAPIServer(t)
				_ = n.readSecrets(t.Context()) // which fails, or is tried later
			},
			broken: func(t *testing.T, n *node) {
				if err := n.readSecrets(t.Context()); err == nil {
					t.Error("every Secret can be read")
				}
			},
			acts: acts("the HSM is brought back", putBack),
		},
		{
			page: "latency", injected: "direct mode; each operation of the HSM takes 0.6 s", faults: true,
			options: harness.KekdOptions{Mode: "direct"},
			inject:  func(t *testing.T, n *node) { n.token.Faults(t, "C_Encrypt ms=600", "C_Decrypt ms=600") },
			broken: func(t *testing.T, n *node) {
				begun := time.Now()
				if _, err := n.kekd.KMS(t).Encrypt(t.Context(), []byte("x")); err != nil || time.Since(begun) < 600*time.Millisecond {
					t.Errorf("Encrypt takes %v: %v", time.Since(begun), err)
				}
			},
			acts: acts("the HSM is as fast as before", func(t *testing.T, n *node) { n.token.Faults(t) }),
		},
		{
			page: "key-revoked", injected: "twelve Secrets that sort next to each other are damaged, and kube-apiserver has no seed in memory that opens them; then another tool deletes the primary, of which there is no backup",
			inject: func(t *testing.T, n *node) {
				n.old = n.primary(t)
				damaged(t, n, 12)
				pkcs11Tool(t, n, "--delete-object", "--type", "secrkey", "--id", n.old)
			},
			well: underPrimary,
			broken: func(t *testing.T, n *node) {
				if _, err := n.kekd.KMS(t).Encrypt(t.Context(), []byte("x")); err == nil {
					t.Error("Encrypt works")
				}
			},
			fresh: true,
		},
		{
			page: "key-policy", injected: "the primary is a key of another tool that may leave the token; the policy forbids that", noKey: true,
			before: func(t *testing.T, n *node) { foreignKey(t, n, time.Hour) },
			inject: func(t *testing.T, n *node) {
				n.setConfig(t, "policy: {maxAge: 0s}", "policy: {require: [non-extractable, never-extractable]}")
				n.kekd.Stop(t)
				n.kekd.StartReady(t)
			},
			broken: violated, fresh: true,
		},
		{
			page: "rotation-overdue", injected: "the primary is 93 days old, and the policy allows 90", noKey: true,
			before: func(t *testing.T, n *node) { foreignKey(t, n, 93*24*time.Hour) },
			inject: func(t *testing.T, n *node) {
				n.setConfig(t, "policy: {maxAge: 0s}", "policy: {maxAge: 2160h}")
				n.kekd.Stop(t)
				n.kekd.StartReady(t)
			},
			broken: violated,
		},
		{
			page: "ring-problem", injected: "another tool makes a second key with the primary's id",
			inject: func(t *testing.T, n *node) {
				backup(t, n)
				pkcs11Tool(t, n, "--keygen", "--key-type", "AES:32", "--label", n.kekd.Ring, "--id", n.primary(t))
			},
			broken: func(t *testing.T, n *node) { n.mustCreateSecret(t) }, // with what it has
			acts:   acts("the second key is taken off with the tool that made it", withoutNewObjects),
		},
		{
			page: "retired-key-in-use", injected: "a key is rotated and nothing is rewritten; kube-apiserver restarts and reads",
			inject: func(t *testing.T, n *node) {
				rotated(t, n)
				n.restartAPIServer(t)
				harness.Eventually(t, soon, "every Secret is read", n.readSecrets)
			},
			broken: underOld, well: underPrimary,
		},
		{
			page: "nodes-diverge", injected: "one of two nodes does not reach the token when a new key activates",
			before: func(t *testing.T, n *node) {
				n.behind = harness.NewSibling(t, n.token.View(t), harness.KekdOptions{})
				n.behind.StartReady(t)
				n.places(t, n.behind) // the page's commands are typed there
				n.cluster(t, n.kekd, n.behind)
			},
			inject: func(t *testing.T, n *node) {
				n.behind.Token.TakeAway(t)
				rotated(t, n)
			},
			broken: func(t *testing.T, n *node) {
				if keyID, err := n.behind.KMS(t).Status(t.Context()); err != nil || strings.Contains(keyID, n.primary(t)) {
					t.Errorf("the node that is behind encrypts under %s: %v", keyID, err)
				}
			},
			acts: acts("the node reaches the token again", func(t *testing.T, n *node) { n.behind.Token.PutBack(t) }),
			well: underPrimary,
		},
		{
			page: "log-lines-lost", injected: "the reader of kekd's log is gone",
			before: readable, inject: unread,
			broken: func(t *testing.T, n *node) {
				if n.kekd.Metrics(t).Sum("kekd_log_lines_lost_total", nil) == 0 {
					t.Error("no line is lost")
				}
			},
			acts: acts("journald reads again", func(t *testing.T, n *node) {
				n.reader.start(t)
				if _, err := n.kekd.KMS(t).Encrypt(t.Context(), []byte("x")); err != nil { // which is logged
					t.Error(err)
				}
			}),
		},
		{
			page: "callers-refused", injected: "kube-apiserver's user is not on the list any more",
			inject: func(t *testing.T, n *node) {
				n.setConfig(t, fmt.Sprintf("allowedUIDs: [%d]", os.Getuid()), "allowedUIDs: [65534]")
				n.kekd.Stop(t)
				n.kekd.StartReady(t)
			},
			broken: func(t *testing.T, n *node) {
				if n.kekd.Metrics(t).Sum("kekd_callers_refused_total", nil) == 0 {
					t.Error("nobody was refused")
				}
			},
		},
		{
			page: "connections-refused", injected: "a client opens connections and keeps them",
			inject: func(t *testing.T, n *node) { stranger(t, n, "leaky-agent") },
			broken: func(t *testing.T, n *node) {
				if n.kekd.Metrics(t).Sum("kekd_connections_refused_total", nil) == 0 {
					t.Error("no connection was refused")
				}
			},
		},
		{
			page: "unusual-use", injected: "a process that is not kube-apiserver decrypts all the time",
			options: harness.KekdOptions{Audit: "continue"},
			inject:  func(t *testing.T, n *node) { stranger(t, n, "who-is-this") },
			broken: func(t *testing.T, n *node) {
				before := n.kekd.Metrics(t).Sum("kekd_decrypts_total", nil)
				harness.Eventually(t, soon, "many values are decrypted", func(context.Context) error {
					if now := n.kekd.Metrics(t).Sum("kekd_decrypts_total", nil); now < before+20 {
						return fmt.Errorf("%v were, and %v before", now, before)
					}
					return nil
				})
			},
		},
		{
			page: "direct-uses", injected: "direct mode; the count on disk is put to 2^31",
			options: harness.KekdOptions{Mode: "direct"},
			inject: func(t *testing.T, n *node) {
				id := n.primary(t)
				n.kekd.Stop(t)
				n.write(t, filepath.Join(n.kekd.StateDir(), "direct-uses.json"), fmt.Sprintf(`{"uses":{%q:%d}}`, id, int64(1)<<31))
				n.kekd.StartReady(t)
			},
			broken: func(t *testing.T, n *node) {
				if uses := n.kekd.Metrics(t).Sum("kekd_direct_uses", nil); uses < 1<<31 {
					t.Errorf("%v uses are counted", uses)
				}
			},
			fresh: true,
		},
		{
			page: "panics", played: true, injected: "none: a sound kekd can't be made to panic. The journal is a stand-in with the line of one",
			before: func(t *testing.T, n *node) {
				n.journal = filepath.Join(n.root, "journal")
				n.write(t, n.journal, "")
			},
			inject: func(t *testing.T, n *node) {
				n.write(t, n.journal, `{"level":"error","ts":"2026-11-26T00:23:35Z","logger":"plugin","msg":"request failed","uid":"0","method":"Decrypt","class":"panic","code":"Internal","elapsed":"1ms","error":"index out of range","stack":["kekd/keycache.open envelope.go:1"]}`+"\n")
			},
			acts: acts("the older kekd runs", func(t *testing.T, n *node) { n.write(t, n.journal, "") }),
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
