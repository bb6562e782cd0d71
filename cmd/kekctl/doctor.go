package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"

	"kekd/hsm"
	"kekd/internal/config"
	"kekd/internal/kek"
	"kekd/internal/keypolicy"
	"kekd/internal/rotation"
	"kekd/internal/setup"
	"kekd/internal/sockpath"
)

func newDoctor(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check everything that kekd needs on this node, one line each",
		Long: `Check the configuration, the module, the token, the PIN, the key ring, the
mechanism (by using it on the real KEK), the state directory and the socket. What
depends on a failed check is not run. A wrong PIN is tried once and latched, as
kekd does.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd.Context()) },
	}
}

// finding is one line of the doctor.
type finding struct {
	Check  string `json:"check"`
	Result string `json:"result"` // ok, warn, fail
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

// examination collects findings.
type examination struct{ findings []finding }

func (e *examination) ok(check, format string, args ...any) {
	e.findings = append(e.findings, finding{Check: check, Result: "ok", Detail: fmt.Sprintf(format, args...)})
}

func (e *examination) warn(check, detail, remedy string) {
	e.findings = append(e.findings, finding{check, "warn", detail, remedy})
}

// fail notes an error and says whether there was one.
func (e *examination) fail(check string, err error, remedy string) bool {
	if err == nil {
		return false
	}
	if hint := hsm.Hint(err); hint != "" {
		remedy = hint
	}
	e.findings = append(e.findings, finding{check, "fail", oneLine(err), remedy})
	return true
}

func (e *examination) failed() bool {
	for _, f := range e.findings {
		if f.Result == "fail" {
			return true
		}
	}
	return false
}

func (a *app) doctor(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*hsmTimeout)
	defer cancel()
	e := new(examination)
	a.examine(ctx, e)
	err := a.print(e.findings, func(w io.Writer) {
		for _, f := range e.findings {
			row(w, f.Result, f.Check, f.Detail)
			if f.Remedy != "" {
				row(w, "", "", "-> "+f.Remedy)
			}
		}
	})
	if err != nil {
		return err
	}
	if e.failed() {
		return codeError{code: exitFailed}
	}
	return nil
}

func (a *app) examine(ctx context.Context, e *examination) {
	cfg, err := config.Load(a.configPath)
	if e.fail("configuration", err, "correct the fields that are named; docs/configuration.md describes them") {
		return
	}
	e.ok("configuration", "%s", a.configPath)
	a.examineHost(ctx, cfg, e)
	pin, err := setup.PINSource(cfg.HSM).Read()
	if !e.fail("PIN source", err, "") {
		pin.Wipe()
		e.ok("PIN source", "%s", setup.PINSource(cfg.HSM))
	}
	s, err := a.open()
	if e.fail("state directory", err, "") {
		return
	}
	defer s.close()
	e.ok("state directory", "%s", cfg.StateDir)
	if !e.failed() {
		s.examineToken(ctx, e)
	}
}

// examineHost looks at what needs no HSM.
func (a *app) examineHost(ctx context.Context, cfg config.Config, e *examination) {
	// kekd may run as another user: the one that its state belongs to.
	uid := os.Geteuid()
	if info, err := os.Stat(cfg.StateDir); err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			uid = int(stat.Uid)
		}
	}
	unsafePath := cmp.Or(sockpath.CheckPath(cfg.Socket.Path), sockpath.CheckDirectory(filepath.Dir(cfg.Socket.Path), uid))
	if !e.fail("socket directory", unsafePath, "") {
		e.ok("socket directory", "safe for %s", cfg.Socket.Path)
	}
	if _, err := os.Lstat(cfg.Socket.Path); errors.Is(err, os.ErrNotExist) {
		e.warn("socket", "nobody listens at "+cfg.Socket.Path, "start kekd")
		return
	}
	answer, err := askSocket(ctx, cfg.Socket.Path)
	switch {
	case err != nil:
		remedy := outsider(cfg)
		if remedy == "" {
			remedy = "the lines below, or kekd's log, say why"
		}
		e.warn("socket", "Status fails: "+status.Convert(err).Message(), remedy)
	case answer.GetHealthz() != "ok":
		e.warn("socket", "Status says "+answer.GetHealthz(), "the lines below, or kekd's log, say why")
	default:
		e.ok("socket", "Status is ok, key_id %s", answer.GetKeyId())
	}
}

// examineToken looks at module, token, login, ring and mechanism.
func (s *session) examineToken(ctx context.Context, e *examination) {
	info, err := s.token.Info(ctx)
	if err != nil {
		check := "module and token"
		if errors.Is(err, kek.ErrPIN) {
			e.ok("module and token", "%s", s.cfg.HSM.Module)
			check = "login"
		}
		e.fail(check, err, "see that the HSM's client is set up and reaches it")
		return
	}
	e.ok("module", "%s (%s)", s.cfg.HSM.Module, info.Library)
	e.ok("token", "%q, serial %s, model %s, slot 0x%x", info.Label, info.Serial, info.Model, info.Slot)
	login := "logged in"
	if !info.LoginRequired {
		login = "the token wants no login"
	}
	e.ok("login", "%s, %d sessions", login, info.Sessions)
	if info.Sessions < s.cfg.HSM.Sessions {
		e.warn("sessions", fmt.Sprintf("the token allows %d of hsm.sessions=%d beside the login", info.Sessions, s.cfg.HSM.Sessions), "")
	}
	s.examineAudit(ctx, e)
	s.examineRing(ctx, e)
}

// examineAudit looks for the key that signs the audit trail, where there is one.
func (s *session) examineAudit(ctx context.Context, e *examination) {
	const check = "audit trail"
	if s.cfg.Audit.Dir == "" {
		return
	}
	keys, err := s.token.AuditKeys(ctx)
	switch {
	case e.fail(check, err, ""):
	case len(keys) == 0:
		e.warn(check, "the token has no audit key, so nothing is signed", "kekctl audit key create makes one")
	default:
		key := keys[len(keys)-1]
		e.ok(check, "%s, signed by %s (%s)", s.cfg.Audit.Dir, kek.ID(key.ID), key.Algorithm)
	}
}

func (s *session) examineRing(ctx context.Context, e *examination) {
	ring, keys, err := s.ring(ctx)
	if err != nil {
		remedy := "kekctl key list shows the ring"
		switch {
		case errors.Is(err, kek.ErrNoKey):
			remedy = "kekctl key create makes the first key"
		case errors.Is(err, kek.ErrRevoked):
			remedy = "make that key usable again, or create another with kekctl key create"
		}
		e.fail("key ring", err, remedy)
		return
	}
	primary, _ := ring.Primary()
	e.ok("key ring", "%d key(s), primary %s", len(keys), primary.KeyID())
	if x := primary.Attributes.Extractable; x != nil && *x {
		e.warn("key attributes", "the primary is extractable: it can leave the HSM", "create a key with kekctl key create")
	} else if at := primary.Attributes; at.Bits != 0 && at.Bits != 256 {
		e.warn("key attributes", fmt.Sprintf("the primary has %d bits", at.Bits), "create a key with kekctl key create, which makes AES-256 keys")
	} else {
		e.ok("key attributes", "%s", attributes(primary.Attributes))
	}
	mechanism, passedOver, err := s.token.Prove(ctx, primary.ID)
	if e.fail("mechanism", err, "") {
		return
	}
	proven := append([]string{mechanism.String() + " proven on the primary"}, passedOver...)
	e.ok("mechanism", "%s", strings.Join(proven, "; not "))
	begun := time.Now()
	if e.fail("round trip", s.token.Probe(ctx, primary.ID, mechanism), "") {
		return
	}
	e.ok("round trip", "encrypt and decrypt in %s", time.Since(begun).Round(10*time.Microsecond))
	s.examineMemory(e, primary)
	s.examinePolicy(e, ring)
}

// policyCheck is the name of the doctor's check of keyRing.policy.
const policyCheck = "policy"

// examinePolicy compares the ring with keyRing.policy.
func (s *session) examinePolicy(e *examination, ring *kek.Ring) {
	policy := s.cfg.KeyRing.Policy
	violations := keypolicy.Evaluate(ring, policy, time.Now())
	for _, v := range violations {
		e.findings = append(e.findings, finding{policyCheck, "fail", v.String(), v.Remedy})
	}
	if len(violations) > 0 {
		return
	}
	_, why := keypolicy.Due(ring, policy, time.Now())
	e.ok(policyCheck, "the primary %s; %d required attribute(s)", why, len(policy.Require))
}

// examineMemory compares what kekd published last with the ring.
func (s *session) examineMemory(e *examination, primary kek.Info) {
	var published hsm.Published
	found, err := s.store.Load(rotation.MemoryName, &published)
	switch {
	case e.fail("published key", err, ""):
	case !found:
		e.ok("published key", "none yet on this node")
	case published.Last != primary.ID:
		e.warn("published key", fmt.Sprintf("kekd published %s last, the ring's primary is %s", published.Last, primary.ID),
			"kekd takes it up within keyRing.refresh; if it does not, its log says why")
	default:
		e.ok("published key", "%s, %d before it", published.Last, len(published.Before))
	}
}
