package outages

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"

	"kekd/e2e/internal/harness"
)

const (
	// apiserverTimeout is kube-apiserver's deadline for one call.
	apiserverTimeout = 3 * time.Second
	// soon bounds what takes seconds on an idle machine.
	soon = 30 * time.Second
	// spareGoroutines and spareFiles are what may come and go without being a leak:
	// connections of clients, a probe under way.
	spareGoroutines, spareFiles = 20, 12
)

const plaintext = "0123456789abcdef0123456789abcdef"

// node is a daemon and the API server that calls it.
type node struct {
	*harness.Kekd
	kms *harness.KMS
	// warm was sealed from a seed that is in the cache. cold was sealed in direct mode,
	// so that the HSM is needed whenever it is opened.
	warm, cold harness.Sealed
	sealed     []harness.Sealed // all that must open at the end

	goroutines, files float64 // before the outage
}

// newNode makes a daemon with a KEK and a cold ciphertext, and does not start it.
// prepare is called before it runs for the first time.
func newNode(t *testing.T, token *harness.Token, o harness.KekdOptions, prepare ...func(*harness.Kekd)) *node {
	t.Helper()
	direct := o
	direct.Mode = "direct"
	k := harness.NewKekd(t, token, direct)
	for _, f := range prepare {
		f(k)
	}
	n := &node{Kekd: k, kms: k.KMS(t)}
	n.StartReady(t)
	n.cold = n.seal(t)
	n.Stop(t)
	n.Configure(t, o)
	return n
}

// started is newNode, started and ready.
func started(t *testing.T, token *harness.Token, o harness.KekdOptions, prepare ...func(*harness.Kekd)) *node {
	t.Helper()
	n := newNode(t, token, o, prepare...)
	n.StartReady(t)
	n.warmUp(t)
	return n
}

// warmUp seals and notes what the daemon needs when all is well.
func (n *node) warmUp(t *testing.T) {
	t.Helper()
	n.warm = n.seal(t)
	n.expect(t, healthy...)
	m := n.Metrics(t)
	n.goroutines, n.files = m.Sum("go_goroutines", nil), m.Sum("process_open_fds", nil)
	if n.goroutines == 0 || n.files == 0 {
		t.Fatalf("the metrics tell of %v goroutines and %v open files", n.goroutines, n.files)
	}
}

// seal encrypts what must open for ever after, whatever the daemon is up to: a client
// that has lost its connection takes a moment.
func (n *node) seal(t *testing.T) harness.Sealed {
	t.Helper()
	var s harness.Sealed
	harness.Eventually(t, soon, "kekd encrypts", func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, apiserverTimeout)
		defer cancel()
		s, err = n.kms.Encrypt(ctx, []byte(plaintext))
		return err
	})
	n.sealed = append(n.sealed, s)
	return s
}

func (n *node) open(ctx context.Context, s harness.Sealed) error {
	ctx, cancel := context.WithTimeout(ctx, apiserverTimeout)
	defer cancel()
	got, err := n.kms.Decrypt(ctx, s)
	if err == nil && !bytes.Equal(got, []byte(plaintext)) {
		err = fmt.Errorf("decrypted to something else")
	}
	return err
}

// answers are how the four kinds of calls end: "OK", or the code and the message.
func (n *node) answers(ctx context.Context) [4]string {
	short := func(f func(ctx context.Context) error) string {
		ctx, cancel := context.WithTimeout(ctx, apiserverTimeout)
		defer cancel()
		err := f(ctx)
		if err == nil {
			return "OK"
		}
		s := status.Convert(err)
		return s.Code().String() + ": " + s.Message()
	}
	return [4]string{
		short(func(ctx context.Context) error { _, err := n.kms.Status(ctx); return err }),
		short(func(ctx context.Context) error { _, err := n.kms.Encrypt(ctx, []byte(plaintext)); return err }),
		short(func(ctx context.Context) error { return n.open(ctx, n.warm) }),
		short(func(ctx context.Context) error { return n.open(ctx, n.cold) }),
	}
}

var calls = [4]string{"Status", "Encrypt", "warm Decrypt", "cold Decrypt"}

// healthy is what expect wants of a daemon that works.
var healthy = []string{"OK", "OK", "OK", "OK"}

// unlike compares answers with patterns.
func unlike(got [4]string, want []string) error {
	for i, pattern := range want {
		if !regexp.MustCompile("^(" + pattern + ")$").MatchString(got[i]) {
			return fmt.Errorf("%s answers %q, want %q", calls[i], got[i], pattern)
		}
	}
	return nil
}

// expect requires how Status, Encrypt, a warm Decrypt and a cold one end now.
func (n *node) expect(t *testing.T, want ...string) {
	t.Helper()
	if err := unlike(n.answers(t.Context()), want); err != nil {
		t.Error(err)
	}
}

// await waits until they end so.
func (n *node) await(t *testing.T, within time.Duration, want ...string) {
	t.Helper()
	harness.Eventually(t, within, "the answers change", func(ctx context.Context) error { return unlike(n.answers(ctx), want) })
}

// health is what /status tells.
type health struct {
	Health      struct{ State, Reason, KeyID string }
	RingProblem string
}

func (n *node) health(ctx context.Context) (h health, err error) {
	_, body, err := n.get(ctx, "/status")
	if err == nil {
		err = json.Unmarshal([]byte(body), &h)
	}
	return h, err
}

// get asks the HTTP endpoint.
func (n *node) get(ctx context.Context, path string) (code int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.URL+path, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// awaitState waits for a state with a reason that matches, and returns the time it took.
func (n *node) awaitState(t *testing.T, state, reason string) time.Duration {
	t.Helper()
	return harness.Eventually(t, soon, "kekd is "+state, func(ctx context.Context) error {
		if !n.Running() {
			return fmt.Errorf("kekd has ended: %w", harness.ErrHopeless)
		}
		h, err := n.health(ctx)
		if err == nil && (h.Health.State != state || !regexp.MustCompile(reason).MatchString(h.Health.Reason)) {
			err = fmt.Errorf("it is %s: %s; want %s: %s", h.Health.State, h.Health.Reason, state, reason)
		}
		return err
	})
}

// keyID is what the node encrypts under, of a daemon that is ready.
func (n *node) keyID(t *testing.T) string {
	t.Helper()
	h, err := n.health(t.Context())
	if err != nil || h.Health.KeyID == "" {
		t.Fatalf("no key_id: %+v, %v", h, err)
	}
	return h.Health.KeyID
}

// readyz requires what /readyz answers.
func (n *node) readyz(t *testing.T, code int, pattern string) {
	t.Helper()
	got, body, err := n.get(t.Context(), "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	if got != code || !regexp.MustCompile(pattern).MatchString(body) {
		t.Errorf("/readyz answers %d %q, want %d %q", got, body, code, pattern)
	}
}

// logged requires that the log has a line that matches.
func (n *node) logged(t *testing.T, pattern string) {
	t.Helper()
	// The log is written a moment later than the answer.
	harness.Eventually(t, soon, "the log says why", func(context.Context) error {
		if regexp.MustCompile(pattern).MatchString(n.Log(t)) {
			return nil
		}
		return fmt.Errorf("no line matches %q", pattern)
	})
}

// back requires that all is as before the outage, once the daemon is ready: the
// answers, what was sealed, one worker, no goroutines and no files left over.
func (n *node) back(t *testing.T) {
	t.Helper()
	n.awaitState(t, "ready", "")
	n.seal(t)
	n.await(t, soon, healthy...)
	for i, s := range n.sealed {
		if err := n.open(t.Context(), s); err != nil {
			t.Errorf("ciphertext %d of %d does not open any more: %v", i, len(n.sealed), err)
		}
	}
	harness.Eventually(t, soon, "nothing is left over", func(context.Context) error {
		m := n.Metrics(t)
		switch g, f := m.Sum("go_goroutines", nil), m.Sum("process_open_fds", nil); {
		case g > n.goroutines+spareGoroutines:
			return fmt.Errorf("%v goroutines, before the outage %v", g, n.goroutines)
		case f > n.files+spareFiles:
			return fmt.Errorf("%v open files, before the outage %v", f, n.files)
		case m.Sum("kekd_panics_total", nil) != 0:
			return fmt.Errorf("a request panicked")
		case m.Sum("kekd_healthy", nil) != 1:
			return fmt.Errorf("kekd_healthy is not 1")
		}
		if pids := n.Workers(); len(pids) != 1 {
			return fmt.Errorf("the workers are %v, want one", pids)
		}
		return nil
	})
}

// restart ends the daemon and starts it again, without waiting.
func (n *node) restart(t *testing.T) {
	t.Helper()
	n.Stop(t)
	n.Start(t)
	n.kms = n.KMS(t) // the old client may be in its backoff
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// tokenFiles is SoftHSM's directory of a token.
func tokenFiles(t *testing.T, token *harness.Token) string {
	t.Helper()
	for line := range strings.Lines(readFile(t, token.Conf)) {
		if dir, ok := strings.CutPrefix(strings.TrimSpace(line), "directories.tokendir = "); ok {
			return dir
		}
	}
	t.Fatal("no token directory in SoftHSM's configuration")
	return ""
}

// backup copies the token's files.
func backup(t *testing.T, token *harness.Token) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "backup")
	if err := os.CopyFS(dir, os.DirFS(tokenFiles(t, token))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// protect makes the token's own file read-only. SoftHSM writes it at each login, and a
// kill meanwhile can cut it short; what an HSM keeps inside survives its clients.
func protect(t *testing.T, token *harness.Token) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(tokenFiles(t, token), "*", "token.object"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the token's file: %v, %v", files, err)
	}
	err = unix.Mount(files[0], files[0], "", unix.MS_BIND, "")
	if err == nil {
		t.Cleanup(func() {
			if err := unix.Unmount(files[0], unix.MNT_DETACH); err != nil {
				t.Errorf("unmount the token's file: %v", err)
			}
		})
		err = unix.Mount("", files[0], "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
	}
	if err != nil {
		t.Fatalf("make the token's file read-only: %v; run this as root, who may", err)
	}
}

// restore puts a backup in the place of a token's directory.
func restore(t *testing.T, dir, from string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}
