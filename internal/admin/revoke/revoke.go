// Package revoke stops every use of a key within seconds. It finds out from the nodes
// and the token, not from states and clocks, who uses the key and what can take over,
// and says of each node what it saw the node do.
package revoke

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"kekd/internal/admin/newkey"
	"kekd/internal/admin/nodes"
	"kekd/internal/admin/text"
	"kekd/internal/kek"
)

// Token is the key ring on the token.
type Token interface {
	newkey.Token
	// Create makes a key with this CKA_ID and tests it.
	Create(ctx context.Context, id kek.ID) (kek.Info, kek.Mechanism, error)
	// Disable takes a key out of use, if it is still as it was seen.
	Disable(ctx context.Context, seen kek.Info) error
}

// Config is what a revocation needs.
type Config struct {
	// ID is the key's CKA_ID.
	ID    kek.ID
	Token Token
	Nodes []nodes.Node
	// Kekds is how many kekds the cluster must run, as far as is known.
	Kekds int
	// Refresh is this node's keyRing.refresh.
	Refresh time.Duration
	// Timeout bounds each wait for the HSM.
	Timeout time.Duration
	// Confirm asks, and may take as long as the administrator does; nil does not ask.
	Confirm func(ctx context.Context, key kek.Info) error
	// Note hears of what happens. Several goroutines may call it at once.
	Note  func(line string)
	Clock func() time.Time
}

// Node is what one node was seen to do.
type Node struct {
	Node string `json:"node"`
	// Refuses: it was seen to refuse the key, Seconds after the command.
	Refuses bool    `json:"refuses"`
	Seconds float64 `json:"seconds,omitempty"`
	// KeyID is what it was last seen to encrypt under; empty if it could not.
	KeyID string `json:"keyID,omitempty"`
	// Problem is what is missing: that it refuses the key, or that it encrypts under
	// another one.
	Problem string `json:"problem,omitempty"`
}

// Result is what a revocation did. It is valid beside an error.
type Result struct {
	// KeyID is the key's, and State the state that it had.
	KeyID string `json:"keyID"`
	State string `json:"state"`
	// Revoked is the key's key_id once it is out of use on the token; else empty.
	Revoked string `json:"revoked,omitempty"`
	// Successor is the key that was made to take over; empty if none was needed.
	Successor string `json:"successor,omitempty"`
	Nodes     []Node `json:"nodes"`
	// Seconds is the time from the command to the last node's refusal.
	Seconds float64 `json:"seconds"`
	// Problem is why the revocation is not complete; empty if it is.
	Problem string `json:"problem,omitempty"`
}

// run is a revocation in progress.
type run struct {
	Config

	begun time.Time
	view  newkey.View
	key   kek.Info
	// heir is the key that encrypts without the revoked one; without an ID if there is
	// none that works.
	heir kek.Info
	// reports are the last answers of the nodes that were good, in the nodes' order.
	reports []nodes.Report
	result  Result
}

// Run revokes the key. The result's Nodes are missing where it ended before it changed
// anything.
func Run(ctx context.Context, cfg Config) (Result, error) {
	r := &run{Config: cfg, begun: cfg.Clock()}
	if err := r.look(ctx); err != nil {
		return Result{}, err
	}
	r.Note(fmt.Sprintf("REVOKES key %s (%s).", r.key.KeyID(), r.state()))
	if r.Confirm != nil {
		if err := r.Confirm(ctx, r.key); err != nil {
			return Result{}, err
		}
		// The answer may have taken long.
		r.begun = r.Clock()
		if err := r.look(ctx); err != nil {
			return Result{}, err
		}
	}
	r.result = Result{KeyID: r.key.KeyID(), State: r.state()}
	err := r.revoke(ctx)
	if err != nil {
		r.result.Problem = err.Error()
	}
	return r.result, err
}

// revoke makes sure that something takes over, and takes the key out of use.
func (r *run) revoke(ctx context.Context) error {
	if r.heir.ID == "" {
		if err := r.succeed(ctx); err != nil {
			r.reportNodes(ctx)
			return fmt.Errorf("%w; key %s is not disabled: %s", err, r.key.ID, r.stillUsed())
		}
	}
	r.awaitHeir(ctx)
	if err := r.disable(ctx); err != nil {
		r.reportNodes(ctx)
		return fmt.Errorf("%w; key %s is not known to be disabled: %s", err, r.key.ID, r.stillUsed())
	}
	r.result.Revoked = r.key.KeyID()
	return r.awaitRefusal(ctx)
}

// state is the key's state as the ring tells it.
func (r *run) state() string {
	if r.key.State == 0 {
		return "in a state that the ring does not tell"
	}
	return r.key.State.String()
}

// look reads the ring, asks all nodes, and finds out what would take over.
func (r *run) look(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	var err error
	if r.view, err = r.Token.View(limited); err != nil {
		return err
	}
	if err := r.find(); err != nil {
		return err
	}
	r.reports = nodes.AskAll(limited, r.Nodes)
	for _, a := range r.reports {
		if id := encryptsUnder(a); id != "" {
			r.view.Published = append(r.view.Published, id)
		}
	}
	switch r.key.State {
	case kek.Disabled, kek.Scheduled:
		return fmt.Errorf("key %s is %s, so no kekd uses it", r.key.ID, r.key.State)
	case kek.Pending:
		if !r.usedByNodes() {
			return fmt.Errorf("key %s is pending and encrypts nothing yet%s; remove it with kekctl key cancel %s", r.key.ID, r.unasked(), r.key.ID)
		}
	}
	return r.findHeir(limited)
}

// find finds the key on the token. Its state is not needed: a ring in which nothing
// tells the primary has keys that must be stopped, too.
func (r *run) find() error {
	r.key = kek.Info{}
	for _, k := range r.view.Keys {
		if k.ID != r.ID {
			continue
		}
		if r.key.ID != "" {
			return fmt.Errorf("%w: the ring %q has several keys %s; give each an id of its own (pkcs11-tool --set-id)", kek.ErrAmbiguous, r.view.Label, r.ID)
		}
		r.key = k
	}
	if r.key.ID == "" {
		return fmt.Errorf("the ring %q has no key %s; kekctl key list shows its keys", r.view.Label, r.ID)
	}
	if k, ok := r.view.Ring.Lookup(r.ID); ok {
		r.key = k
	}
	return nil
}

// encryptsUnder is the id of the key that a node encrypts under; empty if it does not
// encrypt, or did not answer.
func encryptsUnder(a nodes.Report) kek.ID {
	if a.Status == nil {
		return ""
	}
	_, id, err := kek.ParseKeyID(a.Status.Health.KeyID)
	if err != nil {
		return ""
	}
	return id
}

func (r *run) usedByNodes() bool {
	for _, a := range r.reports {
		if encryptsUnder(a) == r.key.ID {
			return true
		}
	}
	return false
}

// unasked says which nodes could not be asked; empty if all could.
func (r *run) unasked() string {
	var missing []string
	for _, a := range r.reports {
		if a.Err != nil {
			missing = append(missing, fmt.Sprintf("%s could not be asked (%s)", a.Node.Name(), a.Trouble()))
		}
	}
	if len(missing) == 0 {
		return ""
	}
	return ", as far as is known: " + strings.Join(missing, ", ")
}

// findHeir finds the key that encrypts once this one is out of use. It must work: a
// node keeps an older key in use while the newest one does not.
func (r *run) findHeir(ctx context.Context) error {
	r.heir = kek.Info{}
	primary, ok := r.view.Ring.Primary()
	if !ok || primary.ID == r.key.ID || r.key.State == kek.Pending {
		return nil
	}
	if _, err := r.Token.Try(ctx, primary.ID); err != nil {
		if ctx.Err() != nil {
			return err
		}
		r.Note(fmt.Sprintf("kekctl: warning: the token cannot use the primary %s (%s), so a new key is made to take over", primary.KeyID(), text.Of(err)))
		return nil
	}
	for _, a := range r.reports {
		if k, known := a.Key(primary.ID.String()); known && encryptsUnder(a) == r.key.ID && k.Problem != "" {
			r.Note(fmt.Sprintf("kekctl: warning: %s cannot use the primary %s (%s), so a new key is made to take over", a.Node.Name(), primary.KeyID(), k.Problem))
			return nil
		}
	}
	r.heir = primary
	return nil
}

// succeed makes a key that takes over as soon as a node sees it.
func (r *run) succeed(ctx context.Context) error {
	made, err := newkey.Maker{
		Token: newkey.Seen{Token: r.Token, Published: r.view.Published}, Plan: r.plan, What: "Creates an AES-256 key",
		Confirm: func(plan string) error { r.Note(plan); return nil },
		Create:  r.Token.Create, Timeout: r.Timeout, Clock: r.Clock,
	}.Make(ctx)
	if err != nil {
		return err
	}
	r.heir = made.Key
	r.result.Successor = made.Key.KeyID()
	return nil
}

// plan decides when the successor activates: after every key that a node may encrypt
// under already, whatever the clocks say. A key that no node has published and that
// is pending by this clock takes over from the successor in its own time; waiting
// for it would leave the cluster without a key to encrypt under.
func (r *run) plan(v newkey.View, now time.Time) (time.Time, error) {
	published := make(map[kek.ID]bool)
	for _, id := range v.Published {
		published[id] = true
	}
	var before []kek.Info
	taken := make(map[int64]bool)
	for _, k := range append(v.Keys, infos(v.Published)...) {
		if !k.Activation.After(now) || published[k.ID] || k.ID == r.key.ID {
			before = append(before, k)
		}
		taken[k.Activation.Unix()] = true
	}
	at := newkey.After(before, now)
	for taken[at.Unix()] {
		at = at.Add(time.Second)
	}
	return at, nil
}

// infos are what ids alone tell of keys.
func infos(ids []kek.ID) []kek.Info {
	var all []kek.Info
	for _, id := range ids {
		k := kek.Info{ID: id}
		k.Activation, _ = id.Activation()
		all = append(all, k)
	}
	return all
}

// disable takes the key out of use on the token.
func (r *run) disable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	err := r.Token.Disable(ctx, r.key)
	if err == nil || !errors.Is(err, kek.ErrUnavailable) {
		return err
	}
	// The answer may be lost, and the key disabled.
	if view, seeErr := r.Token.View(ctx); seeErr == nil {
		if k, ok := view.Ring.Lookup(r.key.ID); ok && (k.State == kek.Disabled || k.State == kek.Scheduled) {
			return nil
		}
	}
	return err
}
