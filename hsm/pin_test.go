package hsm_test

import (
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"kekd/hsm"
	"kekd/hsm/hsmtest"
	"kekd/internal/kek"
	"kekd/internal/secret"
)

const wrongPIN = "654321"

// ask makes some calls that need a login, and checks that none gets one.
func ask(t *testing.T, token *hsm.Token) {
	t.Helper()
	for range 3 {
		if _, err := token.Keys(t.Context()); !errors.Is(err, kek.ErrPIN) || errors.Is(err, kek.ErrUnavailable) {
			t.Errorf("got %v, want ErrPIN", err)
		}
	}
}

func TestWrongPINCostsOneTry(t *testing.T) {
	t.Parallel()
	f := hsmtest.NewFake(t, nil)
	right, _ := f.PIN.Read()
	f.PIN.Set(wrongPIN)
	watch := &recorder{results: map[string]int{}}
	for range 4 { // each as after a restart of kekd
		token := f.Open(t, func(c *hsm.Config) { c.Observer = watch })
		ask(t, token)
		token.Close()
	}
	if n := logins(t, f); n != 1 {
		t.Errorf("%d calls of C_Login with a wrong PIN, want 1", n)
	}
	if !watch.isLatched() {
		t.Error("the latch is not reported")
	}
	if failed := watch.starts(); len(failed) == 0 || slices.ContainsFunc(failed, func(reason string) bool { return reason != "pin" }) {
		t.Errorf("the starts that failed are reported as %q, want pin", failed)
	}
	f.PIN.Set(string(right))
	token := f.Open(t, func(c *hsm.Config) { c.Observer = watch })
	_, err := token.Keys(t.Context())
	must(t, err)
	if f.Latch.Set() || watch.isLatched() {
		t.Error("the latch holds after a login")
	}
	if n := logins(t, f); n != 2 {
		t.Errorf("%d calls of C_Login, want 2", n)
	}
}

// The source may get a right PIN, or another wrong one, which is one try again.
func TestChangedPINIsTriedOnce(t *testing.T) {
	t.Parallel()
	f := hsmtest.NewFake(t, nil)
	token := f.Open(t)
	for i, pin := range []string{"000000", "111111"} {
		f.PIN.Set(pin)
		eventually(t, "the latch is on this PIN", func() bool { // starts are paced
			_, err := token.Keys(t.Context())
			return errors.Is(err, kek.ErrPIN) && logins(t, f) == i+1
		})
		ask(t, f.Open(t))
	}
	if n := logins(t, f); n != 2 {
		t.Errorf("%d calls of C_Login for two PINs, want 2", n)
	}
}

// An operator's removal of the latch is one more try.
func TestClearedLatch(t *testing.T) {
	t.Parallel()
	f := hsmtest.NewFake(t, nil)
	f.PIN.Set(wrongPIN)
	ask(t, f.Open(t))
	must(t, f.Latch.Remove(hsm.LatchName))
	ask(t, f.Open(t))
	if n := logins(t, f); n != 2 {
		t.Errorf("%d calls of C_Login, want 2", n)
	}
}

func TestTokenIsNotTouched(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		left int
		hint string
	}{
		"PIN locked": {0, "unlock"}, "final try": {1, "allowFinalPinTry"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := hsmtest.NewFake(t, func(token *hsmtest.FakeToken) { token.TriesLeft = c.left })
			token := f.Open(t)
			ask(t, token)
			_, err := token.Keys(t.Context())
			if !strings.Contains(hsm.Hint(err), c.hint) {
				t.Errorf("hint %q, want one with %q", hsm.Hint(err), c.hint)
			}
			if n := logins(t, f); n != 0 {
				t.Errorf("%d calls of C_Login, want none", n)
			}
			if f.Latch.Set() {
				t.Error("a latch is stored although nothing was tried")
			}
		})
	}
}

// A token that says that it has no PIN has not looked at ours: nothing is latched, and
// the next try may succeed. SoftHSM says so while another process logs in.
func TestPINNotInitializedIsNoRefusal(t *testing.T) {
	t.Parallel()
	f := hsmtest.NewFake(t, nil)
	must(t, hsmtest.SetFaults(f.Config.Module, "C_Login rv=0x102 n=1"))
	if _, err := f.Open(t).Keys(t.Context()); err != nil {
		t.Errorf("after one such answer: %v", err)
	}
	must(t, hsmtest.SetFaults(f.Config.Module, "C_Login rv=0x102"))
	_, err := f.Open(t).Keys(t.Context())
	if errors.Is(err, kek.ErrPIN) || !errors.Is(err, kek.ErrUnavailable) || hsm.Hint(err) == "" {
		t.Errorf("got %v (hint %q), want ErrUnavailable with a hint", err, hsm.Hint(err))
	}
	if f.Latch.Set() {
		t.Error("a PIN is latched that nobody refused")
	}
}

func TestAllowFinalPINTry(t *testing.T) {
	t.Parallel()
	f := hsmtest.NewFake(t, func(token *hsmtest.FakeToken) { token.TriesLeft = 1 })
	token := f.Open(t, func(c *hsm.Config) { c.AllowFinalPINTry = true })
	_, err := token.Keys(t.Context())
	must(t, err)
	if n := logins(t, f); n != 1 {
		t.Errorf("%d calls of C_Login, want 1", n)
	}
}

// A latch that can't be stored holds as long as the process.
func TestLatchThatIsNotStored(t *testing.T) {
	t.Parallel()
	f := hsmtest.NewFake(t, nil)
	f.PIN.Set(wrongPIN)
	core, logs := observer.New(zap.ErrorLevel)
	token := f.Open(t, func(c *hsm.Config) { c.Latch, c.Logger = &readOnlyLatch{f.Latch}, zap.New(core) })
	ask(t, token)
	ask(t, token)
	if n := logins(t, f); n != 1 {
		t.Errorf("%d calls of C_Login, want 1", n)
	}
	if logs.FilterMessageSnippet("not stored").Len() != 1 {
		t.Error("it is not logged once that a restart will try again")
	}
}

// Without knowing what was refused before, no PIN is tried.
func TestLatchThatIsNotReadable(t *testing.T) {
	t.Parallel()
	f := hsmtest.NewFake(t, nil)
	ask(t, f.Open(t, func(c *hsm.Config) { c.Latch = unreadableLatch{f.Latch} }))
	if n := logins(t, f); n != 0 {
		t.Errorf("%d calls of C_Login, want none", n)
	}
}

type readOnlyLatch struct{ *hsmtest.Latch }

func (*readOnlyLatch) Save(string, any) error { return errors.New("read-only file system") }

type unreadableLatch struct{ *hsmtest.Latch }

func (unreadableLatch) Load(string, any) (bool, error) { return false, errors.New("damaged file") }

// A source that can't be read costs no try and no latch.
func TestUnreadablePIN(t *testing.T) {
	t.Parallel()
	f := hsmtest.NewFake(t, nil)
	token := f.Open(t, func(c *hsm.Config) { c.PIN = noPIN{f.PIN} })
	if _, err := token.Keys(t.Context()); !errors.Is(err, kek.ErrUnavailable) || errors.Is(err, kek.ErrPIN) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	if n := logins(t, f); n != 0 || f.Latch.Set() {
		t.Errorf("%d calls of C_Login, latched %t; want none", n, f.Latch.Set())
	}
}

type noPIN struct{ *hsmtest.PIN }

func (noPIN) Read() (secret.Bytes, error) { return nil, errors.New("hsm.pinFile: it has mode 0644") }

// Some modules print what they are called with.
func TestPrintedPINIsNotLogged(t *testing.T) {
	t.Parallel()
	const pin = "s3cret-PIN"
	encoded := hex.EncodeToString([]byte(pin))
	f := hsmtest.NewFake(t, func(token *hsmtest.FakeToken) { token.PIN = pin })
	must(t, hsmtest.SetFaults(f.Config.Module,
		"C_Initialize print=harmless",
		"C_Login print=pin:"+pin+";",
		"C_OpenSession print="+encoded,
		"C_FindObjects print=0x"+strings.ToUpper(encoded)+",",
	))
	core, logs := observer.New(zap.DebugLevel)
	token := f.Open(t, func(c *hsm.Config) { c.Logger = zap.New(core) })
	_, err := token.Keys(t.Context())
	must(t, err)
	token.Close() // by then all output was read
	redacted := 0
	for _, e := range logs.All() {
		line := text(t, e)
		if low := strings.ToLower(line); strings.Contains(line, pin) || strings.Contains(low, encoded) {
			t.Errorf("the PIN is in the log: %s", line)
		}
		if strings.Contains(line, "a line that holds the PIN") {
			redacted++
		}
	}
	if redacted < 3 {
		t.Errorf("%d lines are redacted, want one for each way to print the PIN", redacted)
	}
	if logs.FilterField(zap.String("line", "harmless")).Len() != 1 {
		t.Error("a line without the PIN is missing")
	}
}
