package setup_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"kekd/hsm"
	"kekd/hsm/wire"
	"kekd/internal/config"
	"kekd/internal/kek"
	"kekd/internal/secret"
	"kekd/internal/setup"
)

type store struct{}

func (store) Load(string, any) (bool, error) { return false, nil }
func (store) Save(string, any) error         { return nil }
func (store) Remove(string) error            { return nil }
func (store) Writable() error                { return nil }

type watch struct{}

func (watch) HSMOperation(string, string, time.Duration, string) {}
func (watch) HSMWorkerRestart(string)                            {}
func (watch) HSMWorkerStartFailed(string)                        {}
func (watch) HSMSessions(int, int, int)                          {}
func (watch) HSMLatched(bool)                                    {}

// Every field of the configuration that package hsm has arrives there.
func TestToken(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	cfg.HSM = config.HSM{
		Module: "/usr/lib/vendor.so", Token: config.Token{Label: "kekd"}, PINFile: "/etc/kekd/pin",
		AllowFinalPINTry: true, Sessions: 7, CallTimeout: 3 * time.Second, Mechanism: config.MechanismKWP,
		InitArgs: "args", Env: config.Env{"A": "b"},
	}
	cfg.KeyRing.Label = "k8s-kek"
	log := zap.NewNop()
	got, err := setup.Token(cfg, store{}, log, watch{})
	if err != nil {
		t.Fatal(err)
	}
	want := hsm.Config{
		Module: "/usr/lib/vendor.so", InitArgs: "args", Env: map[string]string{"A": "b"},
		Token: wire.Selector{Label: "kekd"}, PIN: secret.FileSource{Path: "/etc/kekd/pin"},
		Sessions: 7, CallTimeout: 3 * time.Second, Mechanism: "aes-kwp", AllowFinalPINTry: true,
		Ring: "k8s-kek", Latch: store{}, Observer: watch{},
	}
	if got.Logger == nil || got.Command != nil {
		t.Errorf("logger %v, a command %t; want a logger and the default command", got.Logger, got.Command != nil)
	}
	got.Logger = nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTokenMechanism(t *testing.T) {
	t.Parallel()
	for mechanism, want := range map[config.Mechanism]string{
		config.MechanismAuto: "", config.MechanismGCM: "aes-gcm", config.MechanismKWP: "aes-kwp", config.MechanismCBCHMAC: "aes-cbc-hmac",
	} {
		cfg := config.Default()
		cfg.HSM.Token.Label, cfg.HSM.Mechanism = "kekd", mechanism
		got, err := setup.Token(cfg, store{}, zap.NewNop(), nil)
		if err != nil || got.Mechanism != want || got.Observer != nil {
			t.Errorf("%s: pinned %q, observer %v, %v; want %q and none", mechanism, got.Mechanism, got.Observer, err, want)
		}
	}
}

func TestTokenWithBadURI(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	cfg.HSM.Token.URI = "pkcs11:object=kek"
	if _, err := setup.Token(cfg, store{}, zap.NewNop(), nil); err == nil || !strings.HasPrefix(err.Error(), "hsm.token.uri: ") || !strings.Contains(err.Error(), "for example pkcs11:token=") {
		t.Errorf("got %v, want an error of hsm.token.uri with an example", err)
	}
}

func TestSelector(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		token config.Token
		want  wire.Selector
	}{
		"label":  {config.Token{Label: "kekd"}, wire.Selector{Label: "kekd"}},
		"serial": {config.Token{Serial: "0123"}, wire.Selector{Serial: "0123"}},
		"uri":    {config.Token{URI: "pkcs11:token=my%20token;model=v2"}, wire.Selector{Label: "my token", Model: "v2"}},
	} {
		if got, err := setup.Selector(c.token); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, c.want)
		}
	}
}

func TestPINSource(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		hsm  config.HSM
		want hsm.PINSource
	}{
		"file":       {config.HSM{PINFile: "/etc/kekd/pin"}, secret.FileSource{Path: "/etc/kekd/pin"}},
		"open file":  {config.HSM{PINFile: "/etc/kekd/pin", AllowOpenPINFile: true}, secret.FileSource{Path: "/etc/kekd/pin", AllowOpen: true}},
		"credential": {config.HSM{PINCredential: "pin"}, secret.CredentialSource{Name: "pin"}},
	} {
		if got := setup.PINSource(c.hsm); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestPrimary(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]kek.ID{"": "", "01": "\x01", "A0ff": "\xa0\xff"} {
		if got, err := setup.Primary(config.KeyRing{Primary: text}); err != nil || got != want {
			t.Errorf("%q: %s, %v; want %s", text, got, err, want)
		}
	}
	for _, bad := range []string{"1", "xy", strings.Repeat("00", 65)} {
		if got, err := setup.Primary(config.KeyRing{Primary: bad}); err == nil || got != "" || !strings.HasPrefix(err.Error(), "keyRing.primary: ") || !strings.Contains(err.Error(), "kekctl key list") {
			t.Errorf("%q: %s, %v; want an error of keyRing.primary with the remedy", bad, got, err)
		}
	}
}
