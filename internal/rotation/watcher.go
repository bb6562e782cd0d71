// Package rotation watches the key ring on the token and acts on what it finds:
// it publishes the newest activated key with a fresh seed, renews the seed when
// its time comes, and withdraws a key that was disabled or destroyed.
package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"kekd/hsm"
	"kekd/internal/config"
	"kekd/internal/kek"
	"kekd/internal/keypolicy"
	"kekd/internal/tracing"
	"kekd/keycache"
)

// MemoryName is the name under which the Memory keeps what was published.
const MemoryName = "published"

// Token is the HSM as the watcher needs it.
type Token interface {
	Keys(ctx context.Context) ([]kek.Info, error)
	Prove(ctx context.Context, id kek.ID) (m kek.Mechanism, passedOver []string, err error)
	// Try is Prove for a key that is not in use yet.
	Try(ctx context.Context, id kek.ID) (kek.Mechanism, error)
}

// Sealer is the seed cache as the watcher needs it.
type Sealer interface {
	SetRing(r *kek.Ring)
	Use(ctx context.Context, key kek.Info, m kek.Mechanism) error
	Unpublish()
	Current() (keycache.Current, bool)
	RenewalDue() bool
	// Late returns when keys encrypted last that had been replaced by then.
	Late() map[kek.ID]time.Time
}

// Health hears what the watcher finds out.
type Health interface {
	Published(keyID string)
	Failed(err error)
	Revoked(err error)
}

// Memory keeps what was published across restarts.
type Memory interface {
	Load(name string, v any) (bool, error)
	Save(name string, v any) error
}

// Observer is told what happens, for metrics.
type Observer interface {
	SetRing(r *kek.Ring)
	// RingLooked: the ring was looked at; err is why no primary came of it.
	RingLooked(err error)
	// SetPolicy: how the ring differs from what is demanded of it.
	SetPolicy(violations []keypolicy.Violation)
	// Rotated: another key than before was made primary, or could not be. The first
	// key of a node, and the last one after a restart, replace no other.
	Rotated(err error)
	// Renewed: the seed was renewed, or could not be.
	Renewed(err error)
}

// Config is what a Watcher needs. All fields but Primary, Policy and Tracer are required.
type Config struct {
	// Ring is the ring's label.
	Ring string
	// Primary names the primary among keys that other tools made.
	Primary kek.ID
	// Policy is what is demanded of the ring.
	Policy config.KeyPolicy
	// Refresh is the time between two looks at the ring. Before the first key is
	// published the ring is read every second, or more often if Refresh is shorter.
	Refresh time.Duration
	// Timeout bounds what one look may wait for the HSM.
	Timeout  time.Duration
	Token    Token
	Sealer   Sealer
	Health   Health
	Memory   Memory
	Observer Observer
	Clock    func() time.Time
	Logger   *zap.Logger
	// Tracer is nil for none.
	Tracer *tracing.Tracer
	// Audit hears of every key that is published or withdrawn.
	Audit *zap.Logger
}

// Watcher keeps what is published in step with the ring.
type Watcher struct {
	cfg Config
	// published is what this node has told Kubernetes about. Only Refresh uses it.
	published hsm.Published
	// encrypts is the key that this node encrypts under, or last did, in an earlier
	// run too; empty before the first. Only Refresh uses it.
	encrypts kek.ID
	// use is which keys were used when.
	use *useRecord
	// proofs are what came of trying the keys, by id; replaced, never changed. Only
	// Refresh uses it.
	proofs map[kek.ID]Proof
	// first is closed when a key is published for the first time.
	first chan struct{}
	once  sync.Once

	// kick asks Run for a look before its time.
	kick chan struct{}

	mu sync.Mutex
	// snapshot is what the last look found. Guarded by mu.
	snapshot Snapshot
	// begun and done count looks. Guarded by mu.
	begun, done uint64
	// unread is why the last look could not read the ring; nil if it could. Guarded
	// by mu.
	unread error
	// ended is closed at the end of a look, and replaced. Guarded by mu.
	ended chan struct{}
}

// Proof is what came of trying a key on this node.
type Proof struct {
	// CheckValue is the check value of the key that was tried.
	CheckValue kek.CheckValue
	// Mechanism is the one that works; 0 if none does.
	Mechanism kek.Mechanism
	// Err is why none works, or none was found out; else nil.
	Err error

	at time.Time // when it was tried
}

// Snapshot is what the last look at the ring found. It is not changed any more.
type Snapshot struct {
	// Ring is nil before the first successful look.
	Ring *kek.Ring
	// Refreshed is when the ring was last read.
	Refreshed time.Time
	// Err is why the last look did not end with a primary in use; nil if it did.
	Err error
	// Proofs are what came of trying the keys that are or will be primary, by id.
	Proofs map[kek.ID]Proof
	// Policy are the ways in which the ring is not as it should be.
	Policy []keypolicy.Violation
}

// New makes a Watcher and reads what was published before. An unreadable memory
// is an error: going on without it could bring back a key that was revoked. An
// unreadable record of when keys were used is none: a new one begins, which claims
// nothing about the time before.
func New(cfg Config) (*Watcher, error) {
	w := &Watcher{cfg: cfg, first: make(chan struct{}), kick: make(chan struct{}, 1), ended: make(chan struct{})}
	if _, err := cfg.Memory.Load(MemoryName, &w.published); err != nil {
		return nil, fmt.Errorf("read what was published before: %w", err)
	}
	w.encrypts = w.published.Last
	use, err := openUseRecord(cfg.Memory, cfg.Clock, w.published)
	if err != nil {
		cfg.Logger.Warn("record of key use not readable, a new one begins", zap.Error(err))
	}
	w.use = use
	return w, nil
}

// First is closed when a key is published for the first time.
func (w *Watcher) First() <-chan struct{} { return w.first }

// Snapshot returns what the last look found.
func (w *Watcher) Snapshot() Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.snapshot
}

// Run looks at the ring again and again until ctx ends.
func (w *Watcher) Run(ctx context.Context) {
	for ctx.Err() == nil {
		begun := time.Now()
		w.Refresh(ctx)
		pause := w.nextLook()
		due := time.Now().Add(pause)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-w.kick:
			// Whoever asks for looks does not set their pace, and puts off none.
			timer.Reset(min(time.Until(begun.Add(lookSpacing)), time.Until(due)))
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
		}
		timer.Stop()
	}
}

// lookSpacing is the least time from one look to the next that somebody asked for.
const lookSpacing = time.Second

// Look asks for a look at the ring and returns when one that began after the call
// has ended, or ctx has. The error is why the ring could not be read; what else is
// wrong with it shows in the Snapshot. Callers share looks, and there is one a second for them at
// most. It is safe for concurrent use, and needs Run to run.
func (w *Watcher) Look(ctx context.Context) error {
	w.mu.Lock()
	wanted := w.begun + 1
	w.mu.Unlock()
	select {
	case w.kick <- struct{}{}:
	default: // somebody has asked already
	}
	for {
		w.mu.Lock()
		done, ended, unread := w.done >= wanted, w.ended, w.unread
		w.mu.Unlock()
		if done {
			return unread
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// impatience is the pause between looks while nothing is published yet. The
// supervisor of the HSM worker paces what really reaches the HSM.
const impatience = time.Second

// nextLook is the pause until the next look: the refresh, less where a pending
// key activates sooner, so that all nodes switch at the same time.
func (w *Watcher) nextLook() time.Duration {
	pause := w.cfg.Refresh
	if _, ok := w.cfg.Sealer.Current(); !ok {
		pause = min(pause, impatience)
	}
	ring := w.Snapshot().Ring
	if ring == nil {
		return pause
	}
	now := w.cfg.Clock()
	for _, k := range ring.Keys {
		if k.State != kek.Pending {
			continue
		}
		ahead := k.Activation.Sub(now)
		if ahead <= 0 {
			// Its time came and the ring could not be read since.
			ahead = impatience
		}
		pause = min(pause, ahead)
	}
	return pause
}

// Refresh looks at the ring once. It must not be called concurrently.
func (w *Watcher) Refresh(ctx context.Context) {
	w.mu.Lock()
	w.begun++
	last := w.snapshot
	w.mu.Unlock()
	limited, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	limited, span := w.cfg.Tracer.Root(limited, ctx, tracing.RingLook)
	ring, err := w.look(limited)
	next := Snapshot{Ring: last.Ring, Refreshed: last.Refreshed, Err: err, Policy: last.Policy}
	if ring != nil {
		next.Ring, next.Refreshed = ring, w.cfg.Clock()
		w.tryPending(limited, ring)
	}
	span.End(kek.Class(err))
	next.Proofs = w.proofs
	if ctx.Err() != nil {
		return // kekd stops, which is nobody's failure
	}
	unread := err
	err = errors.Join(err, w.recordUse())
	next.Err = err
	if next.Ring != nil {
		next.Policy = keypolicy.Evaluate(next.Ring, w.cfg.Policy, w.cfg.Clock())
		w.logPolicy(last.Policy, next.Policy)
		w.cfg.Observer.SetPolicy(next.Policy)
	}
	w.cfg.Observer.RingLooked(err)
	w.mu.Lock()
	w.snapshot = next
	w.done, w.unread = w.begun, nil
	if ring == nil {
		w.unread = unread
	}
	close(w.ended)
	w.ended = make(chan struct{})
	w.mu.Unlock()
	w.logChange(last.Err, err)
}

// tryPause is how soon a key that failed is tried again. Looks can be asked for much
// more often, and a key that makes the module fail costs the key in use its worker.
const tryPause = 5 * time.Second

// tryPending tries the keys that will be the primary, so that it is known before
// their time whether this node can use them. It changes nothing.
func (w *Watcher) tryPending(ctx context.Context, ring *kek.Ring) {
	for _, k := range ring.Keys {
		if k.State != kek.Pending {
			continue
		}
		before, tried := w.proofs[k.ID]
		if tried && before.CheckValue == k.CheckValue && (before.Err == nil || w.cfg.Clock().Sub(before.at).Abs() < tryPause) {
			continue
		}
		trying, span := w.cfg.Tracer.Root(ctx, ctx, tracing.RingProve, tracing.KeyID.String(k.KeyID()))
		m, err := w.cfg.Token.Try(trying, k.ID)
		endProof(span, m, err)
		if errors.Is(err, context.Canceled) {
			return // kekd stops
		}
		w.setProof(ring, k, m, err)
		switch {
		case err == nil:
			w.cfg.Logger.Info("pending key works", tracing.Fields(trying, zap.String("key_id", k.KeyID()),
				zap.Stringer("mechanism", m), zap.Time("activation", k.Activation))...)
		case !tried || before.Err == nil:
			w.cfg.Logger.Warn("pending key does not work", tracing.Fields(trying, zap.String("key_id", k.KeyID()),
				zap.Time("activation", k.Activation), zap.Error(err), zap.String("hint", hsm.Hint(err)))...)
		}
	}
}

// setProof keeps what came of trying a key, and forgets keys that are gone.
func (w *Watcher) setProof(ring *kek.Ring, k kek.Info, m kek.Mechanism, err error) {
	next := make(map[kek.ID]Proof, len(ring.Keys))
	for _, other := range ring.Keys {
		if p, ok := w.proofs[other.ID]; ok {
			next[other.ID] = p
		}
	}
	next[k.ID] = Proof{CheckValue: k.CheckValue, Mechanism: m, Err: err, at: w.cfg.Clock()}
	w.proofs = next
}

// logPolicy warns of violations that are new, and tells when one ends. Their texts
// change as keys age.
func (w *Watcher) logPolicy(last, now []keypolicy.Violation) {
	known := func(all []keypolicy.Violation, v keypolicy.Violation) bool {
		return slices.ContainsFunc(all, func(o keypolicy.Violation) bool { return o.Rule == v.Rule && o.KeyID == v.KeyID })
	}
	for _, v := range now {
		if !known(last, v) {
			w.cfg.Logger.Warn("key out of policy", zap.String("key_id", v.KeyID), zap.String("rule", string(v.Rule)),
				zap.Stringer("violation", v), zap.String("hint", v.Remedy))
		}
	}
	for _, v := range last {
		if !known(now, v) {
			w.cfg.Logger.Info("key within policy again", zap.String("key_id", v.KeyID), zap.String("rule", string(v.Rule)))
		}
	}
}

// logChange logs an error when it is new, and its end, not every repetition.
func (w *Watcher) logChange(last, now error) {
	switch {
	case now != nil && (last == nil || !errors.Is(classOf(last), classOf(now))):
		w.cfg.Logger.Error("key ring not usable", zap.Error(now), zap.String("hint", hsm.Hint(now)))
	case now != nil:
		w.cfg.Logger.Debug("key ring still not usable", zap.Error(now))
	case last != nil:
		w.cfg.Logger.Info("key ring usable again")
	}
}

// classOf is the kek error that err belongs to: texts differ from try to try.
func classOf(err error) error {
	for _, class := range []error{kek.ErrState, kek.ErrPIN, kek.ErrRevoked, kek.ErrRefused, kek.ErrNoKey, kek.ErrAmbiguous, kek.ErrUnknownKey, kek.ErrUnavailable} {
		if errors.Is(err, class) {
			return class
		}
	}
	return nil
}

// look reads the ring and acts on it. The ring is nil if it could not be read, or
// its keys could not be told apart.
func (w *Watcher) look(ctx context.Context) (*kek.Ring, error) {
	keys, err := w.cfg.Token.Keys(ctx)
	if err != nil {
		w.failed(err)
		return nil, err
	}
	ring, err := hsm.BuildRing(w.cfg.Ring, keys, hsm.RingOptions{
		Now: w.cfg.Clock(), Published: w.published, Primary: w.cfg.Primary,
	})
	before, inUse := w.cfg.Sealer.Current() // which SetRing may take back
	if ring != nil {
		w.cfg.Sealer.SetRing(ring)
		w.cfg.Observer.SetRing(ring)
	}
	if errors.Is(err, kek.ErrAmbiguous) {
		// What is in use stays in use: a stray key beside it is no reason to stop.
		if !inUse {
			w.failed(err)
		}
		return ring, err
	}
	primary, ok := ring.Primary()
	if !ok {
		w.withdraw(err)
	}
	if _, still := w.cfg.Sealer.Current(); inUse && !still {
		w.cfg.Audit.Error("key withdrawn", zap.String("key_id", before.KeyID), zap.Error(err))
	}
	if !ok {
		return ring, err
	}
	return ring, w.publish(ctx, ring, primary)
}

// failed tells of a failure, unless it is only that kekd stops.
func (w *Watcher) failed(err error) {
	if !errors.Is(err, context.Canceled) {
		w.cfg.Health.Failed(err)
	}
}

// withdraw stops sealing, where anything was ever sealed.
func (w *Watcher) withdraw(why error) {
	if w.published.Last == "" {
		w.cfg.Health.Failed(why)
		return
	}
	w.cfg.Sealer.Unpublish()
	w.cfg.Health.Revoked(why)
}

// publish makes the primary the key in use, or renews its seed when that is due.
func (w *Watcher) publish(ctx context.Context, ring *kek.Ring, primary kek.Info) error {
	current, inUse := w.cfg.Sealer.Current()
	if inUse && current.KeyID == primary.KeyID() {
		return errors.Join(w.renew(ctx, primary, current.Mechanism), w.keepMemory())
	}
	ctx, span := w.cfg.Tracer.Root(ctx, ctx, tracing.RingSwitch, tracing.KeyID.String(primary.KeyID()))
	m, err := w.rotate(ctx, primary)
	endProof(span, m, err)
	w.setProof(ring, primary, m, err)
	if w.encrypts != "" && w.encrypts != primary.ID {
		w.cfg.Observer.Rotated(err)
	}
	if err == nil {
		w.encrypts = primary.ID
	}
	if err != nil && !inUse {
		w.failed(err)
	}
	return err
}

// endProof ends a span in which a key was proven, by m if err is nil.
func endProof(span tracing.Span, m kek.Mechanism, err error) {
	if err == nil && span.Recorded() {
		span.Set(tracing.Mechanism.String(m.String()))
	}
	span.End(kek.Class(err))
}

// renew gives the key in use a fresh seed when the old one nears its end. Failing
// is no harm yet: the old one goes on until its hard limit.
func (w *Watcher) renew(ctx context.Context, key kek.Info, m kek.Mechanism) error {
	if !w.cfg.Sealer.RenewalDue() {
		return nil
	}
	ctx, span := w.cfg.Tracer.Root(ctx, ctx, tracing.SeedRenew, tracing.KeyID.String(key.KeyID()))
	err := w.cfg.Sealer.Use(ctx, key, m)
	span.End(kek.Class(err))
	w.cfg.Observer.Renewed(err)
	if err != nil {
		return fmt.Errorf("renew the seed: %w", err)
	}
	w.cfg.Logger.Info("seed renewed", tracing.Fields(ctx, zap.String("key_id", key.KeyID()))...)
	return nil
}

// keepMemory writes what was published once more where the memory has lost it: the
// state directory went and came back, and the next start would know nothing.
func (w *Watcher) keepMemory() error {
	kept, err := w.cfg.Memory.Load(MemoryName, new(hsm.Published))
	if err == nil && !kept {
		err = w.cfg.Memory.Save(MemoryName, w.published)
	}
	if err != nil {
		return fmt.Errorf("remember key %s, which is published: %w", w.published.Last, err)
	}
	return nil
}

// rotate proves the key, remembers it, and publishes it with a fresh seed, in
// this order: a key that Kubernetes hears of is known to work, and is never
// forgotten.
func (w *Watcher) rotate(ctx context.Context, key kek.Info) (kek.Mechanism, error) {
	m, passedOver, err := w.cfg.Token.Prove(ctx, key.ID)
	if err != nil {
		return 0, err
	}
	next, changed := w.published.Advance(key)
	if changed {
		if err := w.cfg.Memory.Save(MemoryName, next); err != nil {
			return 0, fmt.Errorf("remember key %s before it is published: %w", key.ID, err)
		}
		w.published = next
	}
	if err := w.use.begin(key.ID, !changed, w.cfg.Sealer.Late()); err != nil {
		return 0, fmt.Errorf("record the use of key %s before it is published: %w", key.ID, err)
	}
	if err := w.cfg.Sealer.Use(ctx, key, m); err != nil {
		return 0, err
	}
	w.cfg.Audit.Info("key published", tracing.Fields(ctx, zap.String("key_id", key.KeyID()), zap.Stringer("mechanism", m),
		zap.Time("activation", key.Activation), zap.Strings("passed_over", passedOver))...)
	w.cfg.Health.Published(key.KeyID())
	w.once.Do(func() { close(w.first) })
	return m, nil
}
