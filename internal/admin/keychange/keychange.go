// Package keychange changes the state of one key: cancel, disable, enable, destroy,
// restore and purge.
//
// A change that takes a key out of use needs evidence that nobody uses it (package
// evidence), twice: before the administrator is asked, and again right before the
// token is called, when the change has its turn and nothing waits any more. The token
// is called on condition that the key is as it was then, and not after the moment at
// which the evidence expires. A change counts as made when the token shows it.
package keychange

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kekd/hsm"
	"kekd/internal/admin/evidence"
	"kekd/internal/admin/wait"
	"kekd/internal/kek"
)

// Token changes keys.
type Token interface {
	evidence.Token

	SetUse(ctx context.Context, seen kek.Info, use hsm.Use) (kek.Info, error)
	Destroy(ctx context.Context, seen kek.Info) error
}

// Trail lets one change at a time through, and puts each on record.
type Trail interface {
	// Do calls change once it is its turn, and records before and after it. detail
	// goes into the first record. change returns the detail of the second.
	Do(ctx context.Context, operation, keyID, detail string, change func(context.Context) (detail string, err error)) error
}

// Asker asks the administrator.
type Asker interface {
	// Confirm returns nil if the administrator agrees.
	Confirm(ctx context.Context) error
	// Repeat returns nil if the administrator enters the text again.
	Repeat(ctx context.Context, text string) error
	// Note shows a message.
	Note(text string)
}

// Change is what is to be done to a key.
type Change struct {
	Verb Verb
	// Find picks the key from the ring.
	Find func(*kek.Ring) (kek.Info, error)
	// Days is how many days a key stays restorable, for Destroy.
	Days int
	// Force overrules the witnesses that disagree. The administrator
	// has named the key a second time.
	Force bool
	// Wait is how long to wait for witnesses that only lag.
	Wait time.Duration
	// Made is when the key was made, for Cancel; zero if that is not known.
	Made time.Time
}

// Deps are what a change works with.
type Deps struct {
	Token Token
	Trail Trail
	Asker Asker
	// Witnesses returns who is to be asked, for changes that need evidence.
	Witnesses func(context.Context) evidence.Witnesses
	// MinDestroyDelay is keyRing.policy.minDestroyDelay.
	MinDestroyDelay time.Duration
	// TokenTimeout bounds each use of the token.
	TokenTimeout time.Duration
	Clock        func() time.Time
}

// Result is a change that was made.
type Result struct {
	Verb   Verb
	Before kek.State
	// Key is the key as the token shows it now, or as it was if it is gone.
	Key kek.Info
	// Evidence is what the change was made on; nil where none is needed.
	Evidence *evidence.Evidence
	// Overruled are the witnesses that disagreed.
	Overruled []evidence.Finding
}

// Refused is a change that was not made. Nothing was done.
type Refused struct {
	Text string
	// Against are the witnesses that disagree, and Evidence is all that was
	// gathered; nil where none was.
	Against  []evidence.Finding
	Evidence *evidence.Evidence
	hint     string
}

// Error implements error: the witnesses follow, one to a line.
func (r *Refused) Error() string { return r.Text + lines(r.Against) }

// Hint is the remedy.
func (r *Refused) Hint() string { return r.hint }

func lines(findings []evidence.Finding) string {
	var b strings.Builder
	for _, f := range findings {
		fmt.Fprintf(&b, "\n  %s", f)
	}
	return b.String()
}

// ErrInterrupted: the administrator gave up before anything was done.
var ErrInterrupted = errors.New("interrupted; nothing was done")

// Run makes a change. With an error nothing was done, unless the error says otherwise.
func Run(ctx context.Context, d Deps, c Change) (Result, error) {
	m := &machine{Deps: d, Change: c, begun: d.Clock()}
	m.result.Verb = c.Verb
	for next := m.look; next != nil; {
		if ctx.Err() != nil && !m.called {
			return Result{}, ended(ctx)
		}
		var err error
		if next, err = next(ctx); err != nil {
			if ctx.Err() != nil && !m.called {
				return Result{}, ended(ctx)
			}
			return Result{}, err
		}
	}
	return m.result, nil
}

// ended is why nothing was done before ctx ended.
func ended(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%w; nothing was done", context.Cause(ctx))
	}
	return ErrInterrupted
}

// machine is a change on its way. Its steps are look, weigh, agree and commit, which
// goes through recheck, call and readBack when it is the change's turn.
type machine struct {
	Deps
	Change

	begun     time.Time
	day       time.Time // of the destruction
	witnesses evidence.Witnesses
	evidence  evidence.Evidence
	key       kek.Info
	// repeat: something is overruled, so the administrator must name the key again.
	repeat bool
	// called: the token was asked to change the key.
	called bool
	result Result
}

type step func(context.Context) (step, error)

// look reads the ring and checks what needs no evidence.
func (m *machine) look(ctx context.Context) (step, error) {
	ring, err := m.ring(ctx)
	if err != nil {
		return nil, err
	}
	if m.key, err = m.Find(ring); err != nil {
		return nil, err
	}
	if why := m.Verb.allowed(m.key, m.Clock()); why != "" {
		return nil, &Refused{Text: why}
	}
	if m.Verb == Destroy {
		if err := m.schedule(); err != nil {
			return nil, err
		}
	}
	m.result.Before = m.key.State
	if !m.Verb.guarded() {
		return m.agree, nil
	}
	m.findWitnesses(ctx)
	return m.weigh, nil
}

// schedule finds the day of the destruction. The day is part of the key's label, so
// it is a whole one, and a key stays restorable for at least as long as was asked for.
func (m *machine) schedule() error {
	const day = 24 * time.Hour
	asked := time.Duration(m.Days) * day
	now := m.Clock().UTC()
	m.day = now.Truncate(day)
	if m.Days > 0 {
		m.day = now.Add(asked + day - 1).Truncate(day)
	}
	if asked >= m.MinDestroyDelay {
		return nil
	}
	why := fmt.Sprintf("--after: must be at least %dd (keyRing.policy.minDestroyDelay), got %dd", (m.MinDestroyDelay+day-1)/day, m.Days)
	if !m.Force {
		return &Refused{Text: why, hint: fmt.Sprintf("--force %s overrules that", m.key.ID)}
	}
	m.repeat = true
	m.Asker.Note("kekctl: warning: --force overrules: " + why)
	return nil
}

// weigh gathers evidence, for as long as waiting helps.
func (m *machine) weigh(ctx context.Context) (step, error) {
	told := ""
	for {
		e, err := m.gather(ctx)
		if err != nil {
			return nil, err
		}
		m.evidence = e
		against := e.Against()
		if len(against) == 0 {
			return m.agree, nil
		}
		if left := m.begun.Add(m.Wait).Sub(m.Clock()); !m.Force && e.Wait > 0 && left > 0 {
			if who := witnesses(against); who != told {
				told = who
				m.Asker.Note(fmt.Sprintf("Waits up to %s until key %s is out of use everywhere:%s", left.Round(time.Second), m.key.ID, lines(against)))
			}
			if err := wait.Pause(ctx, min(e.Wait, left)); err != nil {
				return nil, err
			}
			continue
		}
		if !m.Force {
			return nil, m.refuse(e)
		}
		m.Asker.Note(fmt.Sprintf("kekctl: warning: --force overrules:%s", lines(against)))
		m.result.Overruled, m.repeat = against, true
		return m.agree, nil
	}
}

func witnesses(findings []evidence.Finding) string {
	names := make([]string, 0, len(findings))
	for _, f := range findings {
		names = append(names, f.Witness)
	}
	return strings.Join(names, ", ")
}

func (m *machine) findWitnesses(ctx context.Context) {
	m.witnesses = m.Witnesses(ctx)
	m.witnesses.Token, m.witnesses.Clock = boundedToken{m}, m.Clock
}

func (m *machine) gather(ctx context.Context) (evidence.Evidence, error) {
	return evidence.Gather(ctx, m.witnesses, evidence.Question{Key: m.key, Pending: m.Verb == Cancel, Made: m.Made})
}

// refuse says which witnesses disagree, and what helps.
func (m *machine) refuse(e evidence.Evidence) error {
	against := e.Against()
	var hints []string
	if e.Wait > 0 {
		hints = append(hints, fmt.Sprintf("--wait %s waits for that", (e.Wait+10*time.Second).Truncate(time.Second)))
	} else {
		if slices.ContainsFunc(against, func(f evidence.Finding) bool { return f.Verdict == evidence.Unknown }) {
			hints = append(hints, "--node, --apiserver, --kubeconfig and --etcd-endpoints name who could not be asked")
		}
		switch {
		case e.Verdict == evidence.Unknown:
		case m.Verb == Cancel:
			hints = append(hints, "let it activate and rotate again with kekctl rotate")
		default:
			hints = append(hints, "kekctl rewrap re-encrypts every object under the primary")
		}
	}
	hints = append(hints, fmt.Sprintf("--force %s overrules these witnesses", m.key.ID))
	return &Refused{
		Text:    fmt.Sprintf("key %s stays as it is, since to %s it may make objects unreadable:", m.key.ID, m.Verb),
		Against: against, Evidence: &e, hint: strings.Join(hints, "; "),
	}
}

// agree tells the administrator what will be done, and asks.
func (m *machine) agree(ctx context.Context) (step, error) {
	m.Asker.Note(m.Verb.plan(m.key, m.day))
	ask := m.Asker.Confirm
	if m.repeat {
		ask = func(ctx context.Context) error { return m.Asker.Repeat(ctx, m.key.ID.String()) }
	}
	if err := ask(ctx); err != nil {
		return nil, err
	}
	return m.commit, nil
}

// commit makes the change when it is its turn.
func (m *machine) commit(ctx context.Context) (step, error) {
	detail := ""
	if m.Verb.guarded() {
		detail = m.evidence.Summary()
	}
	return nil, m.Trail.Do(ctx, string(m.Verb), m.key.KeyID(), detail, func(ctx context.Context) (string, error) {
		seen, err := m.recheck(ctx)
		detail := ""
		if m.Verb.guarded() {
			detail = m.evidence.Summary()
		}
		if err == nil {
			err = m.call(ctx, seen)
		}
		return detail, err
	})
}

// recheck looks at everything once more: the answer may have taken long, and somebody
// else may have had a turn. It returns the key as the token holds it.
func (m *machine) recheck(ctx context.Context) (kek.Info, error) {
	before := m.key
	if m.Verb.guarded() {
		m.findWitnesses(ctx) // there may be more of them now
		e, err := m.gather(ctx)
		if err != nil {
			return kek.Info{}, err
		}
		m.evidence, m.key = e, e.Key
		m.result.Evidence = &m.evidence
		if err := m.worse(e, before); err != nil {
			return kek.Info{}, err
		}
	} else {
		ring, err := m.ring(ctx)
		if err != nil {
			return kek.Info{}, err
		}
		key, ok := ring.Lookup(before.ID)
		if !ok {
			return kek.Info{}, meanwhile(before, kek.Info{}, false)
		}
		m.key = key
	}
	if !same(m.key, before) {
		return kek.Info{}, meanwhile(before, m.key, true)
	}
	if why := m.Verb.allowed(m.key, m.Clock()); why != "" {
		return kek.Info{}, &Refused{Text: why}
	}
	return m.key, nil
}

// worse refuses what the evidence does not allow, and with --force what it did not
// say when the administrator overruled it.
func (m *machine) worse(e evidence.Evidence, before kek.Info) error {
	if !same(e.Key, before) {
		return meanwhile(before, e.Key, true)
	}
	overruled := map[string]evidence.Verdict{}
	for _, f := range m.result.Overruled {
		overruled[f.Witness] = f.Verdict
	}
	for _, f := range e.Against() {
		if was, ok := overruled[f.Witness]; !ok || was == evidence.Unknown && f.Verdict == evidence.Used {
			return m.refuse(e)
		}
	}
	return nil
}

// same reports whether two looks at a key show the same.
func same(a, b kek.Info) bool {
	return a.ID == b.ID && a.State == b.State && a.CheckValue == b.CheckValue && a.DestroyAfter.Equal(b.DestroyAfter) && a.Attributes.Label == b.Attributes.Label
}

// meanwhile is the error of a key that is not as it was.
func meanwhile(before, now kek.Info, found bool) error {
	is := "gone"
	if found {
		is = now.State.String()
	}
	return &Refused{Text: fmt.Sprintf("somebody else changed key %s meanwhile: it was %s and is %s now", before.ID, before.State, is)}
}

// call has the token make the change, and reads back what became of it.
func (m *machine) call(ctx context.Context, seen kek.Info) error {
	limited, cancel := context.WithTimeout(ctx, m.TokenTimeout)
	defer cancel()
	if until := m.expires(); !until.IsZero() {
		// Clocks of tests and of the machine may differ, so it is a duration.
		limited, cancel = context.WithTimeoutCause(limited, until.Sub(m.Clock()), fmt.Errorf("the activation of key %s is too near", seen.ID))
		defer cancel()
	}
	if limited.Err() != nil {
		return context.Cause(limited)
	}
	m.called = true
	var err error
	switch {
	case m.Verb.removes():
		err = m.Token.Destroy(limited, seen)
	case m.Verb == Disable:
		_, err = m.Token.SetUse(limited, seen, hsm.Disabled())
	case m.Verb == Destroy:
		_, err = m.Token.SetUse(limited, seen, hsm.DestroyAfter(m.day))
	default:
		_, err = m.Token.SetUse(limited, seen, hsm.Enabled())
	}
	return m.readBack(ctx, seen, err)
}

// expires is when the decision becomes wrong; zero for never. A pending key whose
// witnesses were overruled is not touched after its activation either.
func (m *machine) expires() time.Time {
	if m.Verb != Cancel {
		return time.Time{}
	}
	if len(m.result.Overruled) > 0 {
		return m.key.Activation
	}
	return m.evidence.Until
}

// readBack looks at what the token shows, whatever the call returned, and although
// the administrator may have given up.
func (m *machine) readBack(ctx context.Context, seen kek.Info, called error) error {
	ring, err := m.ring(context.WithoutCancel(ctx))
	if err != nil {
		if called != nil {
			return fmt.Errorf("%w; what became of the key could not be read back: %w; look with kekctl key list", called, err)
		}
		return fmt.Errorf("the change was made and could not be read back: %w; look with kekctl key list", err)
	}
	now, found := ring.Lookup(seen.ID)
	is := "gone"
	if found {
		is = now.State.String()
	}
	switch {
	case errors.Is(called, kek.ErrChanged):
		return fmt.Errorf("somebody else changed key %s meanwhile: it was %s and is %s now: %w", seen.ID, seen.State, is, called)
	case called != nil:
		return fmt.Errorf("%w; the token shows key %s as %s", called, seen.ID, is)
	case !m.Verb.shown(now, found, m.day):
		return fmt.Errorf("the token took the change, and yet shows key %s as %s; look with kekctl key list", seen.ID, is)
	}
	m.result.Key = seen
	if found {
		m.result.Key = now
	}
	return nil
}

// ring reads the ring within the token's timeout.
func (m *machine) ring(ctx context.Context) (*kek.Ring, error) {
	ctx, cancel := context.WithTimeout(ctx, m.TokenTimeout)
	defer cancel()
	return m.Token.Ring(ctx)
}

// boundedToken is the token as a witness.
type boundedToken struct{ m *machine }

// Ring implements evidence.Token.
func (t boundedToken) Ring(ctx context.Context) (*kek.Ring, error) { return t.m.ring(ctx) }
