package page

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// soon bounds what takes seconds on an idle machine.
const soon = 45 * time.Second

const plaintext = "0123456789abcdef0123456789abcdef"

// call has the daemon seal and open as often as asked.
func call(t *testing.T, k *harness.Kekd, times int) harness.Sealed {
	t.Helper()
	kms := k.KMS(t)
	var s harness.Sealed
	harness.Eventually(t, soon, "the daemon seals", func(ctx context.Context) (err error) {
		s, err = kms.Encrypt(ctx, []byte(plaintext))
		return err
	})
	for range times {
		open(t, k, s)
	}
	return s
}

func open(t *testing.T, k *harness.Kekd, s harness.Sealed) {
	t.Helper()
	kms := k.KMS(t)
	harness.Eventually(t, soon, "the daemon opens", func(ctx context.Context) error {
		got, err := kms.Decrypt(ctx, s)
		if err == nil && !bytes.Equal(got, []byte(plaintext)) {
			t.Fatal("decrypt gave something else than what was encrypted")
		}
		return err
	})
}

// shows waits until the page has all of the texts.
func shows(t *testing.T, k *harness.Kekd, texts ...string) {
	t.Helper()
	harness.Eventually(t, soon, "the page tells", func(ctx context.Context) error {
		_, body := fetch(ctx, t, k, "text/html")
		for _, text := range texts {
			if !strings.Contains(body, text) {
				return fmt.Errorf("there is no %q on the page", text)
			}
		}
		return nil
	})
}

// fetch asks for / as a client with this Accept header does.
func fetch(ctx context.Context, t *testing.T, k *harness.Kekd, accept string) (http.Header, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, k.URL+"/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", accept)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err.Error()
	}
	defer func() { _ = answer.Body.Close() }()
	var body bytes.Buffer
	if _, err := body.ReadFrom(answer.Body); err != nil {
		return nil, err.Error()
	}
	return answer.Header, body.String()
}

// check looks at the page in all ways, and for secrets.
func check(t *testing.T, chromium context.Context, k *harness.Kekd, name, title string, texts ...string) {
	t.Helper()
	pin, err := os.ReadFile(k.Token.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range looks() {
		s := visit(t, chromium, k.URL+"/", name, l)
		if !strings.HasPrefix(s.Title, title+" ") {
			t.Errorf("%s, %v: the title is %q, want %s first", name, l, s.Title, title)
		}
		for _, text := range texts {
			if !strings.Contains(s.Text, text) {
				t.Errorf("%s, %v: there is no %q on the page", name, l, text)
			}
		}
	}
	_, body := fetch(t.Context(), t, k, "text/html")
	if bytes.Contains([]byte(body), pin) || strings.Contains(body, plaintext) {
		t.Errorf("%s: the page has the PIN or a plaintext", name)
	}
	s, err := k.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	known := ""
	for _, key := range s.KeyRing.Keys {
		known += " " + key.KeyID
	}
	// Keys, seeds and ciphertexts would be such.
	for _, long := range regexp.MustCompile(`\b[0-9a-f]{32,}\b`).FindAllString(body, -1) {
		if !strings.Contains(known, long) && !strings.Contains(s.RingProblem, long) {
			t.Errorf("%s: the page has %s, which belongs to no key_id", name, long)
		}
	}
}

func TestReadyCoastingRevoked(t *testing.T) {
	t.Parallel()
	chromium := browser(t)
	k := harness.NewKekd(t, harness.NewToken(t), harness.KekdOptions{Audit: "continue", MaxAge: time.Hour})
	k.StartReady(t)
	k.Command(t, "audit", "key", "create", "--yes")
	old := call(t, k, 40)
	k.Stop(t) // so that what was sealed before is cold
	k.StartReady(t)
	open(t, k, old)
	k.CreateKey(t, time.Second)
	shows(t, k, ">retired<")
	k.CreateKey(t, 30*time.Minute)
	shows(t, k, ">pending<", "aes-gcm/caller-iv", "is new on the ring: pending")
	call(t, k, 60)

	header, body := fetch(t.Context(), t, k, "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")
	if csp := header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; style-src 'sha256-") {
		t.Errorf("the Content-Security-Policy is %q", csp)
	}
	if strings.Contains(body, "<script") {
		t.Error("the page has a script")
	}
	if _, list := fetch(t.Context(), t, k, "*/*"); !strings.HasPrefix(list, "kekd\n/ ") {
		t.Errorf("curl gets %.40q", list)
	}
	check(t, chromium, k, "daemon-ready", "Ready", "Encrypt, Decrypt and Status are served.", "starting to ready", "retired", "pending", "Cold unwraps")
	if s := visit(t, chromium, k.URL+"/?refresh=60", "daemon-ready-reloads", looks()[2]); s.Title == "" {
		t.Error("a page that reloads has no title")
	}

	k.KillWorker(t) // while there surely is one
	k.Token.TakeAway(t)
	shows(t, k, "<title>Coasting", "ready to coasting: the HSM is unavailable", "did not come up")
	check(t, chromium, k, "daemon-coasting", "Coasting", "Time left", "docs/runbooks/hsm-down.md", "came to its end (died)")

	k.Token.PutBack(t)
	shows(t, k, "<title>Ready", "coasting to ready")
	destroyPrimary(t, k)
	shows(t, k, "<title>Revoked", " to revoked: the KEK is disabled, scheduled for destruction or gone")
	check(t, chromium, k, "daemon-revoked", "Revoked", "the KEK is disabled, scheduled for destruction or gone", "docs/runbooks/key-revoked.md", "which was primary, is gone from the token")
	k.Stop(t)
}

// destroyPrimary does what kekctl refuses: it destroys the primary with another tool.
func destroyPrimary(t *testing.T, k *harness.Kekd) {
	t.Helper()
	tool, err := exec.LookPath("pkcs11-tool")
	if err != nil {
		t.Fatalf("%v: install opensc", err)
	}
	s, err := k.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pin, err := os.ReadFile(k.Token.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range s.KeyRing.Keys {
		if key.State != "primary" {
			continue
		}
		destroy := exec.CommandContext(t.Context(), tool, "--module", k.Token.Module, "--token-label", k.Token.Label,
			"--login", "--pin", string(pin), "--delete-object", "--type", "secrkey", "--id", strings.Split(key.KeyID, "/")[1])
		destroy.Env = append(os.Environ(), "SOFTHSM2_CONF="+k.Token.Conf)
		if out, err := destroy.CombinedOutput(); err != nil {
			t.Fatalf("destroy the primary: %v\n%s", err, out)
		}
		return
	}
	t.Fatal("the ring has no primary")
}

func TestUnready(t *testing.T) {
	t.Parallel()
	chromium := browser(t)
	k := harness.NewKekd(t, harness.NewToken(t), harness.KekdOptions{OutageGrace: 2 * time.Second})
	k.StartReady(t)
	call(t, k, 5)
	k.Token.TakeAway(t)
	k.KillWorker(t)
	shows(t, k, "<title>Not ready", "coasting to unready: the HSM is unavailable")
	check(t, chromium, k, "daemon-unready", "Not ready", "kube-apiserver stops writing within three minutes", "docs/runbooks/unready.md")
	k.Stop(t)
}

func TestStarting(t *testing.T) {
	t.Parallel()
	chromium := browser(t)
	k := harness.NewKekd(t, harness.NewToken(t), harness.KekdOptions{})
	k.Token.TakeAway(t)
	k.Start(t)
	shows(t, k, "<title>Starting", "the HSM is unavailable", "did not come up")
	check(t, chromium, k, "daemon-starting", "Starting", "No key is proven yet", "The ring was not read yet")
	k.Stop(t)
}

func TestPINLatchedAtTheStart(t *testing.T) {
	t.Parallel()
	chromium := browser(t)
	k := harness.NewKekd(t, harness.NewToken(t), harness.KekdOptions{})
	if err := os.WriteFile(k.Token.PINFile, []byte("not-the-pin"), 0o600); err != nil {
		t.Fatal(err)
	}
	k.Start(t)
	shows(t, k, "<title>Not ready", "starting to unready: the token refused the PIN")
	check(t, chromium, k, "daemon-pin", "Not ready", "docs/runbooks/pin-latched.md", "refused, latched")
	k.Stop(t)
}
