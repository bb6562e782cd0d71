package worker_test

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
	"go.uber.org/goleak"

	"kekd/hsm/hsmtest"
	"kekd/hsm/p11"
	"kekd/hsm/wire"
	"kekd/hsm/worker"
	"kekd/internal/kek"
	"kekd/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// odd is a fake whose calls a test can replace.
type odd struct {
	*hsmtest.Fake
	findObjects  func() ([]pkcs11.ObjectHandle, error)
	getTokenInfo func() (pkcs11.TokenInfo, error)
	login        func() error
}

func (o *odd) FindObjects(s pkcs11.SessionHandle, template []*pkcs11.Attribute, limit int) ([]pkcs11.ObjectHandle, error) {
	if o.findObjects != nil {
		return o.findObjects()
	}
	return o.Fake.FindObjects(s, template, limit)
}

func (o *odd) GetTokenInfo(slot uint) (pkcs11.TokenInfo, error) {
	if o.getTokenInfo != nil && slot == 3 {
		return o.getTokenInfo()
	}
	return o.Fake.GetTokenInfo(slot)
}

func (o *odd) Login(s pkcs11.SessionHandle, pin secret.Bytes) error {
	if err := o.Fake.Login(s, pin); err != nil || o.login == nil {
		return err
	}
	return o.login()
}

// parent is kekd's end of a worker that serves in this process.
type parent struct {
	t    *testing.T
	conn *wire.Conn
	raw  net.Conn
	next uint64
	done chan error
	odd  *odd
	path string
}

func serve(t *testing.T) *parent {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token"+hsmtest.FakeSuffix)
	must(t, hsmtest.WriteFake(path, &hsmtest.FakeToken{Label: "kekd", Serial: "4711", PIN: "123456", TriesLeft: 3, Mechanisms: hsmtest.AllMechanisms()}))
	ours, theirs := net.Pipe()
	p := &parent{t: t, conn: wire.NewConn(ours), raw: ours, done: make(chan error, 1), odd: &odd{}, path: path}
	w := worker.New(func(path string) (p11.Cryptoki, error) {
		fake, err := hsmtest.OpenFake(path)
		p.odd.Fake = fake
		return p.odd, err
	})
	go func() { p.done <- worker.Serve(theirs, w) }()
	t.Cleanup(func() { _ = ours.Close() })
	return p
}

// ask makes one call.
func (p *parent) ask(kind wire.Kind, meta any, sec secret.Bytes, reply any) error {
	p.t.Helper()
	p.next++
	must(p.t, p.conn.Send(p.next, kind, meta, sec))
	f, err := p.conn.Receive()
	must(p.t, err)
	if f.ID != p.next {
		p.t.Errorf("answer to call %d, want %d", f.ID, p.next)
	}
	if f.Kind == wire.ReplyError {
		e := new(wire.Error)
		must(p.t, f.Decode(e))
		return e
	}
	if reply != nil {
		must(p.t, f.Decode(reply))
	}
	return nil
}

func (p *parent) load() error {
	return p.ask(wire.OpLoad, wire.LoadRequest{Module: p.path, Token: wire.Selector{Label: "kekd"}, Ring: "ring", Sessions: 2}, nil, nil)
}

func (p *parent) login() error {
	return p.ask(wire.OpLogin, wire.LoginRequest{Required: true}, secret.Bytes("123456"), nil)
}

func (p *parent) up() {
	p.t.Helper()
	must(p.t, p.load())
	must(p.t, p.login())
}

func TestOrderOfCalls(t *testing.T) {
	t.Parallel()
	p := serve(t)
	for _, kind := range []wire.Kind{wire.OpLogin, wire.OpKeys, wire.OpCreate, wire.OpProve, wire.OpWrap, wire.OpUnwrap, wire.ReplyOK, wire.ReplyError} {
		if err := p.ask(kind, struct{}{}, nil, nil); !errors.Is(err, kek.ErrUnavailable) {
			t.Errorf("%s before load: %v, want an error of the token's class", kind, err)
		}
	}
	must(t, p.load())
	if err := p.ask(wire.OpKeys, nil, nil, nil); !errors.Is(err, kek.ErrUnavailable) {
		t.Errorf("keys before login: %v", err)
	}
	must(t, p.login())
	must(t, p.ask(wire.OpKeys, nil, nil, nil))
	if err := p.ask(wire.ReplyOK, nil, nil, nil); err == nil || !strings.Contains(err.Error(), "no request") {
		t.Errorf("a reply as a request: %v", err)
	}
	if err := p.ask(wire.OpWrap, []int{1}, nil, nil); err == nil || !strings.Contains(err.Error(), "metadata") {
		t.Errorf("metadata of another type: %v", err)
	}
	must(t, p.ask(wire.OpClose, nil, nil, nil))
	if err := <-p.done; err != nil {
		t.Errorf("closed with %v", err)
	}
}

func TestParentIsGone(t *testing.T) {
	t.Parallel()
	p := serve(t)
	p.up()
	must(t, p.raw.Close())
	if err := <-p.done; err != nil {
		t.Errorf("ended with %v, want nil: there is nobody to tell", err)
	}
}

func TestGarbageFromTheParent(t *testing.T) {
	t.Parallel()
	p := serve(t)
	_, err := p.raw.Write([]byte{0, 0, 0, 1})
	must(t, err)
	if err := <-p.done; !errors.Is(err, wire.ErrFrame) {
		t.Errorf("ended with %v, want ErrFrame", err)
	}
}

func TestPanicIsTheTokensFault(t *testing.T) {
	t.Parallel()
	p := serve(t)
	p.up()
	p.odd.findObjects = func() ([]pkcs11.ObjectHandle, error) { panic("garbage from the module") }
	if err := p.ask(wire.OpKeys, nil, nil, nil); !errors.Is(err, kek.ErrUnavailable) || !strings.Contains(err.Error(), "panicked") {
		t.Errorf("got %v, want an error of the token's class", err)
	}
}

func TestNoModule(t *testing.T) {
	t.Parallel()
	p := serve(t)
	p.path = filepath.Join(t.TempDir(), "missing.so")
	err := p.load()
	if e, ok := errors.AsType[*wire.Error](err); !ok || e.Class != wire.ClassSetup || e.Hint == "" || !strings.Contains(e.Text, p.path) {
		t.Errorf("got %+v, want the class setup, the path and a hint", err)
	}
	if _, err := worker.OpenModule("libsofthsm2.so"); err == nil || !strings.Contains(err.Error(), "absolute") {
		t.Errorf("a relative path: %v", err)
	}
}

// Another slot of the process may have logged in already.
func TestAlreadyLoggedIn(t *testing.T) {
	t.Parallel()
	p := serve(t)
	must(t, p.load())
	p.odd.login = func() error { return p11.Error{Call: "C_Login", RV: pkcs11.CKR_USER_ALREADY_LOGGED_IN} }
	must(t, p.login())
	must(t, p.ask(wire.OpKeys, nil, nil, nil))
}

// A token that shows no objects is asked whether it is there at all, and a key
// that was met before is not given up on this worker's word.
func TestEmptyToken(t *testing.T) {
	t.Parallel()
	gone := func() (pkcs11.TokenInfo, error) {
		return pkcs11.TokenInfo{}, p11.Error{Call: "C_GetTokenInfo", RV: pkcs11.CKR_TOKEN_NOT_PRESENT}
	}
	blank := func() (pkcs11.TokenInfo, error) { return pkcs11.TokenInfo{}, nil }
	swapped := func() (pkcs11.TokenInfo, error) { return pkcs11.TokenInfo{SerialNumber: "0815"}, nil }
	for name, c := range map[string]struct {
		met   bool // a key was met before
		info  func() (pkcs11.TokenInfo, error)
		empty bool // an empty ring is the right answer
		says  string
	}{
		"really empty":           {false, nil, true, ""},
		"gone":                   {false, gone, false, "C_GetTokenInfo"},
		"no serial":              {false, blank, false, "serial changed"},
		"another token":          {false, swapped, false, "serial changed"},
		"had a key":              {true, nil, false, "not found any more"},
		"had a key, gone":        {true, gone, false, "C_GetTokenInfo"},
		"had a key, other token": {true, swapped, false, "serial changed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := serve(t)
			p.up()
			if c.met {
				must(t, p.ask(wire.OpCreate, wire.CreateRequest{ID: []byte("a key")}, nil, nil))
			}
			p.odd.findObjects = func() ([]pkcs11.ObjectHandle, error) { return nil, nil }
			p.odd.getTokenInfo = c.info
			var reply wire.KeysReply
			err := p.ask(wire.OpKeys, nil, nil, &reply)
			if (err == nil) != c.empty || len(reply.Keys) != 0 {
				t.Errorf("listed %d keys, %v; an empty ring is right: %t", len(reply.Keys), err, c.empty)
			}
			if e, ok := errors.AsType[*wire.Error](err); err != nil && (!ok || e.Class != wire.ClassToken || !strings.Contains(e.Error(), c.says)) {
				t.Errorf("got %v, want the token's class and %q", err, c.says)
			}
		})
	}
}

// Other processes that log in, one after the other, each blank SoftHSM's token for a
// moment.
func TestBlankToken(t *testing.T) {
	t.Parallel()
	p := serve(t)
	p.up()
	well, err := p.odd.Fake.GetTokenInfo(3)
	must(t, err)
	asked := 0
	p.odd.getTokenInfo = func() (pkcs11.TokenInfo, error) {
		if asked++; asked <= 4 {
			return pkcs11.TokenInfo{}, nil
		}
		return well, nil
	}
	must(t, p.ask(wire.OpKeys, nil, nil, nil))
	if asked != 5 {
		t.Errorf("the token was asked %d times, want 5", asked)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
