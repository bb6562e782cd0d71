package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"kekd/hsm"
	"kekd/internal/admin/text"
	"kekd/internal/config"
	"kekd/internal/kek"
	"kekd/internal/logging"
	"kekd/internal/rotation"
	"kekd/internal/secret"
	"kekd/internal/setup"
	"kekd/internal/state"
)

// app is what all commands share.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	// Flags.
	configPath string
	adminPIN   string
	output     string
	verbose    bool

	// began: the command line was understood and the command runs.
	began bool
	// command is how the command was called, without its arguments.
	command string
}

// note prints to stderr, so that stdout holds data only.
func (a *app) note(format string, args ...any) {
	_, _ = fmt.Fprintln(a.stderr, visible(fmt.Sprintf(format, args...)))
}

// print writes v as JSON, or what table writes as a table with aligned columns.
func (a *app) print(v any, table func(w io.Writer)) error {
	if a.output == "json" {
		return a.printJSON(v)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	table(w)
	return w.Flush()
}

// printJSON writes v as JSON, whatever the output flag says.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// row writes one row of a table.
func row(w io.Writer, cells ...string) {
	_, _ = fmt.Fprintln(w, visible(strings.Join(cells, "\t")))
}

// visible replaces what a terminal would act on instead of showing it. Nodes,
// API servers and tokens have a say in what is printed.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || r == '\n' || r == '\t' {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// logger logs to stderr when asked for, and nowhere otherwise: errors are printed.
func (a *app) logger() (*zap.Logger, error) {
	if !a.verbose {
		return zap.NewNop(), nil
	}
	l, err := logging.New("debug", "console", zapcore.Lock(zapcore.AddSync(a.stderr)))
	return l.Log, err
}

// hsmTimeout bounds what a command waits for the HSM.
const hsmTimeout = 90 * time.Second

// session is the token and what stands beside it. Close it.
type session struct {
	cfg     config.Config
	store   *state.Dir
	token   adminToken
	primary kek.ID
	// published is what kekd on this node has published, once ring was called.
	published hsm.Published
}

// open loads the configuration and prepares the token for a command that changes
// nothing on it; the HSM is not touched yet.
func (a *app) open() (*session, error) { return a.openAs(func(*hsm.Config) {}) }

// openAdmin is open for a command that changes something on the token: it logs in
// as the administrator, if a PIN file of his is given.
func (a *app) openAdmin() (*session, error) {
	if a.adminPIN == "" {
		return a.open()
	}
	path, err := filepath.Abs(a.adminPIN)
	if err != nil {
		return nil, err
	}
	return a.openAs(func(c *hsm.Config) {
		c.PIN = secret.FileSource{Path: path, Field: "--admin-pin-file"}
		c.Latch = adminLatch{c.Latch}
	})
}

// adminLatchName is where the latch of the administrator's PIN is kept. It stands
// apart, since a login of kekd with its own PIN would clear it.
const adminLatchName = "admin-" + hsm.LatchName

// adminLatch keeps the latch of the administrator's PIN under its own name.
type adminLatch struct{ hsm.LatchStore }

// Load implements hsm.LatchStore.
func (l adminLatch) Load(_ string, v any) (bool, error) { return l.LatchStore.Load(adminLatchName, v) }

// Save implements hsm.LatchStore.
func (l adminLatch) Save(_ string, v any) error { return l.LatchStore.Save(adminLatchName, v) }

// Remove implements hsm.LatchStore.
func (l adminLatch) Remove(string) error { return l.LatchStore.Remove(adminLatchName) }

func (a *app) openAs(change func(*hsm.Config)) (*session, error) {
	cfg, err := config.Load(a.configPath)
	if err != nil {
		return nil, err
	}
	store, err := state.Open(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	log, err := a.logger()
	if err != nil {
		return nil, err
	}
	tokenConfig, err := setup.Token(cfg, store, log, nil)
	if err != nil {
		return nil, err
	}
	primary, err := setup.Primary(cfg.KeyRing)
	if err != nil {
		return nil, err
	}
	change(&tokenConfig)
	token := hsm.New(tokenConfig)
	trail := &adminTrail{app: a, cfg: cfg, store: store, token: token, log: log}
	return &session{cfg: cfg, store: store, token: adminToken{token, trail}, primary: primary}, nil
}

func (s *session) close() { s.token.Close() }

// ring reads the ring as kekd on this node sees it. As with hsm.BuildRing there
// may be a ring beside an error, but not with kek.ErrAmbiguous, and the keys are
// there even without a ring.
func (s *session) ring(ctx context.Context) (*kek.Ring, []kek.Info, error) {
	keys, err := s.token.Keys(ctx)
	if err != nil {
		return nil, nil, err
	}
	s.published = hsm.Published{}
	if _, err := s.store.Load(rotation.MemoryName, &s.published); err != nil {
		return nil, keys, err
	}
	ring, err := hsm.BuildRing(s.cfg.KeyRing.Label, keys, hsm.RingOptions{Now: time.Now(), Published: s.published, Primary: s.primary})
	if errors.Is(err, kek.ErrNoKey) && len(keys) == 0 {
		err = hsm.ExplainEmpty(ctx, s.token, s.cfg.KeyRing.Label, err)
	}
	if errors.Is(err, kek.ErrAmbiguous) {
		// A kekd that runs may use any of the candidates, so no state is told of them.
		ring = nil
	}
	return ring, keys, err
}

// oneLine folds an error of several lines.
func oneLine(err error) string { return text.Of(err) }

// isAny reports whether err is of one of the classes.
func isAny(err error, classes ...error) bool {
	for _, c := range classes {
		if errors.Is(err, c) {
			return true
		}
	}
	return false
}
