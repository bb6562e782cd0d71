// Package doctor checks everything that kekd needs on a node. It changes nothing, with
// one exception: a PIN that the token refuses is latched, as kekd does, so that nobody
// spends another try on it.
//
// Each check runs whatever became of the others, unless it depends on one that failed.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	kmsapi "k8s.io/kms/apis/v2"

	"kekd/hsm"
	"kekd/hsm/wire"
	"kekd/internal/config"
	"kekd/internal/httpapi"
	"kekd/internal/kek"
	"kekd/internal/setup"
)

// Result is how a check ended.
type Result string

// The results. Skip is a check that could not be made, or does not apply here.
const (
	OK   Result = "ok"
	Warn Result = "warn"
	Fail Result = "fail"
	Skip Result = "skip"
)

// Finding is one line of the report.
type Finding struct {
	Check  string `json:"check"`
	Result Result `json:"result"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

// Report is all findings, in the order of the checks.
type Report []Finding

// Failed returns the first check that failed, but for those that the caller accepts;
// nil if there is none.
func (r Report) Failed(accepted ...string) *Finding {
	for i, f := range r {
		if f.Result == Fail && !slices.Contains(accepted, f.Check) {
			return &r[i]
		}
	}
	return nil
}

// PolicyCheck is the name of the check of keyRing.policy.
const PolicyCheck = "policy"

// Token is what the doctor asks of the HSM's token. Close ends the worker process.
type Token interface {
	Info(ctx context.Context) (wire.TokenInfo, error)
	Keys(ctx context.Context) ([]kek.Info, error)
	OtherLabels(ctx context.Context) (labels []string, more int, err error)
	AuditKeys(ctx context.Context) ([]wire.AuditKey, error)
	Prove(ctx context.Context, id kek.ID) (kek.Mechanism, []string, error)
	Probe(ctx context.Context, id kek.ID, m kek.Mechanism) error
	Close()
}

// Options is what the doctor needs. Every field without a remark is required.
type Options struct {
	// Config is the path of kekd's configuration.
	Config string
	// EncryptionConfig is kube-apiserver's file; empty to look for it.
	EncryptionConfig string
	// Root is put before the paths of other programs' files; empty but in tests.
	Root string
	// Open prepares the token. The PIN is the configuration's if pin is nil.
	Open func(cfg config.Config, latch hsm.LatchStore, pin hsm.PINSource) (Token, error)
	// Socket makes the call that kube-apiserver makes.
	Socket func(ctx context.Context, path string) (*kmsapi.StatusResponse, error)
	// HTTP reads /status at an address.
	HTTP func(ctx context.Context, address string) (*httpapi.Status, error)
	// User returns the id of a user of this system, by name.
	User func(name string) (uid int, ok bool)
	// Outsider says what to do where kekd refuses the calling user; empty where it does
	// not.
	Outsider func(cfg config.Config) string
	Clock    func() time.Time
}

// examination is the doctor at work.
type examination struct {
	Options

	cfg    config.Config
	report Report
	// user is whom kekd runs as.
	user user
}

func (e *examination) add(check string, result Result, detail, remedy string) {
	e.report = append(e.report, Finding{check, result, strings.Join(strings.Fields(detail), " "), remedy})
}

func (e *examination) ok(check, format string, args ...any) {
	e.add(check, OK, fmt.Sprintf(format, args...), "")
}

// fail notes an error, with the remedy that it carries if it has one, and says whether
// there was one.
func (e *examination) fail(check string, err error, remedy string) bool {
	if err == nil {
		return false
	}
	if hint := hsm.Hint(err); hint != "" {
		remedy = hint
	}
	e.add(check, Fail, err.Error(), remedy)
	return true
}

// Examine makes all checks.
func Examine(ctx context.Context, o Options) Report {
	e := &examination{Options: o}
	if !e.configuration() {
		return e.report
	}
	e.user = e.findUser()
	e.kekdUser()
	e.socketDirectory()
	serves := e.socket(ctx)
	e.http(ctx, serves)
	pinErr := e.pin()
	store, storeErr := e.stateDirectory()
	e.token(ctx, store, errors.Join(storeErr, pinErr))
	e.apiserver()
	return e.report
}

// configuration loads the configuration. Each thing wrong with it is a finding.
func (e *examination) configuration() bool {
	const check, remedy = "configuration", "docs/configuration.md describes the fields"
	var err error
	e.cfg, err = config.Load(e.Config)
	if problems, ok := errors.AsType[config.Problems](err); ok {
		for _, p := range problems {
			text := remedy
			if p.Remedy != "" {
				text, p.Remedy = p.Remedy, ""
			}
			e.add(check, Fail, e.Config+": "+p.String(), text)
		}
		return false
	}
	if e.fail(check, err, remedy) {
		return false
	}
	_, tokenErr := setup.Selector(e.cfg.HSM.Token)
	_, primaryErr := setup.Primary(e.cfg.KeyRing)
	bad := e.fail(check, tokenErr, remedy)
	if e.fail(check, primaryErr, remedy) || bad {
		return false
	}
	e.ok(check, "%s", e.Config)
	return true
}

// pin reads the PIN's source.
func (e *examination) pin() error {
	const check = "PIN source"
	source := setup.PINSource(e.cfg.HSM)
	pin, err := source.Read()
	if e.fail(check, err, "") {
		return errors.New("the PIN cannot be read")
	}
	pin.Wipe()
	e.ok(check, "%s", source)
	return nil
}
