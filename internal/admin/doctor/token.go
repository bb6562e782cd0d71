package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"kekd/hsm"
	"kekd/internal/kek"
	"kekd/internal/keypolicy"
	"kekd/internal/rotation"
	"kekd/internal/secret"
	"kekd/internal/setup"
	"kekd/internal/state"
)

// errNoLogin marks a login that the doctor does not try.
var errNoLogin = errors.New("no login")

// noLogin is the latch of a login that must not be tried. hsm asks for a writable one
// before it uses a PIN.
type noLogin struct{ why error }

// Load implements hsm.LatchStore.
func (noLogin) Load(string, any) (bool, error) { return false, nil }

// Save implements hsm.LatchStore.
func (l noLogin) Save(string, any) error { return l.Writable() }

// Remove implements hsm.LatchStore.
func (l noLogin) Remove(string) error { return l.Writable() }

// Writable implements hsm.LatchStore.
func (l noLogin) Writable() error { return fmt.Errorf("%w: %w", errNoLogin, l.why) }

// noPIN is the source of a PIN that is not used.
type noPIN struct{}

// Read implements hsm.PINSource.
func (noPIN) Read() (secret.Bytes, error) { return secret.Bytes("unused"), nil }

// String implements hsm.PINSource.
func (noPIN) String() string { return "nowhere" }

// token looks at module, token, login, ring and mechanism. Where obstacle is set, all is
// looked at that takes no login. store may be nil then.
func (e *examination) token(ctx context.Context, store *state.Dir, obstacle error) {
	var latch hsm.LatchStore = store
	var pin hsm.PINSource
	if obstacle != nil {
		latch, pin = noLogin{obstacle}, noPIN{}
	}
	token, err := e.Open(e.cfg, latch, pin)
	if e.fail("module and token", err, "") {
		return
	}
	defer token.Close()
	info, err := token.Info(ctx)
	switch {
	case errors.Is(err, errNoLogin):
		e.ok("module and token", "%s", e.cfg.HSM.Module)
		e.add("login", Skip, strings.Join(strings.Split(obstacle.Error(), "\n"), "; ")+": neither the login was tried nor what needs it", "")
		return
	case isAny(err, kek.ErrPIN, kek.ErrState):
		e.ok("module and token", "%s", e.cfg.HSM.Module)
		e.fail("login", err, "")
		return
	case e.fail("module and token", err, "see that the HSM's client is set up and reaches it"):
		return
	}
	e.ok("module", "%s (%s)", e.cfg.HSM.Module, info.Library)
	e.ok("token", "%q, serial %s, model %s, slot 0x%x", info.Label, info.Serial, info.Model, info.Slot)
	login := "logged in"
	if !info.LoginRequired {
		login = "the token wants no login"
	}
	e.ok("login", "%s, %d sessions", login, info.Sessions)
	if info.Sessions < e.cfg.HSM.Sessions {
		e.add("sessions", Warn, fmt.Sprintf("the token allows %d of hsm.sessions=%d beside the login", info.Sessions, e.cfg.HSM.Sessions),
			"raise the token's limit, or lower hsm.sessions")
	}
	e.audit(ctx, token)
	e.ring(ctx, token, store)
}

// audit looks for the key that signs the audit trail, where there is one.
func (e *examination) audit(ctx context.Context, token Token) {
	const check = "audit trail"
	if e.cfg.Audit.Dir == "" {
		return
	}
	keys, err := token.AuditKeys(ctx)
	switch {
	case e.fail(check, err, ""):
	case len(keys) == 0:
		e.add(check, Warn, "the token has no audit key, so nothing is signed", "kekctl audit key create makes one")
	default:
		key := keys[len(keys)-1]
		e.ok(check, "%s, signed by %s (%s)", e.cfg.Audit.Dir, kek.ID(key.ID), key.Algorithm)
	}
}

// ring looks at the key ring. store is nil where what kekd published cannot be read.
func (e *examination) ring(ctx context.Context, token Token, store *state.Dir) {
	const check = "key ring"
	var published hsm.Published
	found := false
	if store != nil {
		var err error
		if found, err = store.Load(rotation.MemoryName, &published); e.fail("published key", err, "") {
			return // no state of a key can be trusted without it
		}
	}
	keys, err := token.Keys(ctx)
	if e.fail(check, err, "") {
		return
	}
	configured, _ := setup.Primary(e.cfg.KeyRing) // checked with the configuration
	label := e.cfg.KeyRing.Label
	ring, err := hsm.BuildRing(label, keys, hsm.RingOptions{Now: e.Clock(), Published: published, Primary: configured})
	if err != nil {
		remedy := "kekctl key list shows the ring"
		switch {
		case errors.Is(err, kek.ErrNoKey):
			remedy = "kekctl key create makes the first key"
		case errors.Is(err, kek.ErrRevoked):
			remedy = "make that key usable again, or create another with kekctl key create"
		}
		if errors.Is(err, kek.ErrNoKey) && len(keys) == 0 {
			err = hsm.ExplainEmpty(ctx, token, label, err)
		}
		e.fail(check, err, remedy)
		return
	}
	primary, _ := ring.Primary()
	e.ok(check, "%d key(s), primary %s", len(keys), primary.KeyID())
	e.attributes(primary)
	e.mechanism(ctx, token, primary)
	e.published(found, published, primary)
	e.policy(ring)
}

func (e *examination) attributes(primary kek.Info) {
	const check, remedy = "key attributes", "create a key with kekctl key create, which makes AES-256 keys that cannot be extracted"
	bad := false
	if x := primary.Attributes.Extractable; x != nil && *x {
		e.add(check, Warn, "the primary is extractable: it can leave the HSM", remedy)
		bad = true
	}
	if bits := primary.Attributes.Bits; bits != 0 && bits != 256 {
		e.add(check, Warn, fmt.Sprintf("the primary has %d bits", bits), remedy)
		bad = true
	}
	if !bad {
		e.ok(check, "%s", primary.Attributes.Summary())
	}
}

// mechanism uses the primary.
func (e *examination) mechanism(ctx context.Context, token Token, primary kek.Info) {
	mechanism, passedOver, err := token.Prove(ctx, primary.ID)
	if e.fail("mechanism", err, "") {
		return
	}
	tested := append([]string{mechanism.String() + " proven on the primary"}, passedOver...)
	e.ok("mechanism", "%s", strings.Join(tested, "; not "))
	begun := e.Clock()
	if e.fail("round trip", token.Probe(ctx, primary.ID, mechanism), "") {
		return
	}
	e.ok("round trip", "encrypt and decrypt in %s", e.Clock().Sub(begun).Round(10*time.Microsecond))
}

// published compares what kekd published last with the ring.
func (e *examination) published(found bool, p hsm.Published, primary kek.Info) {
	const check = "published key"
	switch {
	case !found:
		e.ok(check, "none yet on this node")
	case p.Last != primary.ID:
		e.add(check, Warn, fmt.Sprintf("kekd published %s last, the ring's primary is %s", p.Last, primary.ID),
			"kekd takes it up within keyRing.refresh; if it does not, its log says why")
	default:
		e.ok(check, "%s, %d before it", p.Last, len(p.Before))
	}
}

// policy compares the ring with keyRing.policy.
func (e *examination) policy(ring *kek.Ring) {
	policy := e.cfg.KeyRing.Policy
	violations := keypolicy.Evaluate(ring, policy, e.Clock())
	for _, v := range violations {
		e.add(PolicyCheck, Fail, v.String(), v.Remedy)
	}
	if len(violations) > 0 {
		return
	}
	_, why := keypolicy.Due(ring, policy, e.Clock())
	e.ok(PolicyCheck, "the primary %s; %d required attribute(s)", why, len(policy.Require))
}

// isAny reports whether err is of one of the classes.
func isAny(err error, classes ...error) bool {
	for _, c := range classes {
		if errors.Is(err, c) {
			return true
		}
	}
	return false
}
