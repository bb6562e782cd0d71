package rotate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"kekd/internal/admin/newkey"
	"kekd/internal/admin/nodes"
	"kekd/internal/admin/wait"
	"kekd/internal/kek"
	"kekd/internal/keypolicy"
)

// doctor checks this node.
func (r *run) doctor(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*r.Timeout)
	defer cancel()
	checks, failed := r.Doctor(ctx)
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	for _, f := range failed {
		r.say("%s", f)
	}
	if len(failed) > 0 {
		return errors.New("a check of this node failed, so no key was created; kekctl doctor shows every check, with the remedies")
	}
	r.say("%d checks, none failed", checks)
	return nil
}

const (
	// reachLimit is how long each node, API server and member of etcd may take to answer.
	reachLimit = 30 * time.Second
	// askLimit bounds one question, so that one that hangs does not use up reachLimit.
	askLimit = 10 * time.Second
	// reachPause is the pause between two questions.
	reachPause = time.Second
)

// reach contacts everything that a later step needs.
func (r *run) reach(ctx context.Context) error {
	if len(r.Nodes) < len(r.Servers) {
		return r.fewKekds(len(r.Nodes))
	}
	var parties []wait.Party
	answers := make([]nodes.Report, len(r.Nodes))
	for i, n := range r.Nodes {
		parties = append(parties, r.party(n.Name(), func(ctx context.Context) (string, string) {
			a := nodes.Ask(ctx, n)
			if missing := unfit(a); missing != "" {
				return "", missing
			}
			answers[i] = a
			return "answers" + skew(a), ""
		}))
	}
	for _, s := range r.Servers {
		parties = append(parties, r.party(s.Name(), func(ctx context.Context) (string, string) {
			use, err := s.KeyInUse(ctx)
			switch {
			case err != nil:
				return "", oneLine(err)
			case use.Problem != "":
				return "", "it is not healthy: " + use.Problem
			}
			return "answers", ""
		}))
	}
	for _, m := range r.Members {
		parties = append(parties, r.party(m.Name(), func(ctx context.Context) (string, string) {
			if err := m.Reach(ctx); err != nil {
				return "", oneLine(err)
			}
			return "answers", ""
		}))
	}
	w := r.wait("to answer", reachPause, reachLimit)
	w.Sticky = true
	if err := r.await(ctx, w, parties); err != nil {
		return r.because(ctx, err, "not everything that a rotation needs could be reached, so no key was created; the lines above name what is missing")
	}
	// One that was named twice, or by two addresses, counts once.
	if kekds := nodes.Distinct(answers); kekds < len(r.Servers) {
		return r.fewKekds(kekds)
	}
	for _, a := range answers {
		r.learn(a)
	}
	return nil
}

// fewKekds is the error of a cluster in which not every API server has a kekd that is
// known.
func (r *run) fewKekds(known int) error {
	return fmt.Errorf("%d kube-apiservers and only %d kekd(s) are known, and each needs one that has seen the new key; name every kekd with --node or cluster.nodes",
		len(r.Servers), known)
}

// party is one that is asked in askLimit.
func (r *run) party(name string, look func(context.Context) (seen, missing string)) wait.Party {
	return wait.Party{Name: name, Look: func(ctx context.Context) (string, string) {
		ctx, cancel := context.WithTimeout(ctx, askLimit)
		defer cancel()
		return look(ctx)
	}}
}

// learn takes note of a node's clock and key.
func (r *run) learn(a nodes.Report) {
	r.ahead = max(r.ahead, a.Ahead+a.Uncertainty)
	if r.fastest.Node == nil || a.Ahead > r.fastest.Ahead {
		r.fastest = a
	}
	r.behind = max(r.behind, -a.Ahead+a.Uncertainty)
	if _, id, err := kek.ParseKeyID(a.Status.Health.KeyID); err == nil {
		r.published = append(r.published, id)
	}
}

// writersTime is how long a check of the writers may take. Their key must not change
// while they are checked.
const writersTime = 2 * time.Minute

// writers finds out how far an earlier run came, and checks that every API server
// writes what belongs to the ring under the current primary.
func (r *run) writers(ctx context.Context) error {
	if err := r.find(ctx); err != nil {
		return err
	}
	primary, hasPrimary := r.view.Ring.Primary()
	switch {
	case r.finishing:
		r.say("checked in step 8, before objects are rewritten: an earlier run has made the key")
		return nil
	case r.key.ID != "" && r.key.Activation.Sub(r.Clock()) < writersTime:
		r.say("checked in step 8, before objects are rewritten: %s takes over shortly", r.key.KeyID())
		return nil
	case !hasPrimary:
		r.say("checked in step 8, before objects are rewritten: the ring has no primary to write under")
		return nil
	}
	// A key may have taken over a moment ago.
	if err := r.serversUnder(ctx, primary, "the primary", writersTime); err != nil {
		return r.because(ctx, err, "not all kube-apiservers have taken up the primary %s, so no key was created; kekctl apiserver check and kekctl status tell why", primary.KeyID())
	}
	due, why := true, ""
	if r.IfDue && r.key.ID == "" {
		due, why = keypolicy.Due(r.view.Ring, r.Policy, r.Clock())
	}
	check := r.Objects.CheckWriters
	if !due {
		check = r.Objects.Check // every night, so nothing is written
	}
	checked, err := check(ctx, primary.KeyID())
	if err != nil {
		return err
	}
	if checked.Objects == 0 {
		return fmt.Errorf("no object in etcd is under a key of the ring %q, so nothing would be rotated; see with kekctl apiserver check whether kube-apiserver encrypts with kekd", r.view.Label)
	}
	if !due {
		r.say("nothing written; %d object(s) of %s are under the ring's keys", checked.Objects, strings.Join(checked.Resources, ", "))
		r.say("the primary %s", why)
		return ErrNotDue
	}
	r.say("%d object(s) written and read back, all under %s; %d object(s) of %s are under the ring's keys",
		checked.Writes, primary.KeyID(), checked.Objects, strings.Join(checked.Resources, ", "))
	if len(checked.Unchecked) > 0 {
		r.say("not checked, since no object of it could be written: %s", strings.Join(checked.Unchecked, ", "))
	}
	return nil
}

// find reads the ring, and finds the key of a rotation that was begun earlier.
func (r *run) find(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	var err error
	if r.view, err = r.Token.View(limited); err != nil {
		return err
	}
	if r.view.Ring == nil {
		return r.view.Err
	}
	unfinished, err := r.Memory.Load(MemoryName, &r.begun)
	if err != nil {
		return err
	}
	for _, k := range r.view.Ring.Keys {
		if k.State == kek.Pending {
			r.key, r.created = k, r.begun.Created && r.begun.Key == k.ID.String()
			return nil
		}
	}
	id, _ := kek.ParseID(r.begun.Key)
	_, made := r.view.Ring.Lookup(id)
	if primary, ok := r.view.Ring.Primary(); ok && unfinished && made {
		// Whatever was begun ends with all objects under the primary.
		r.key, r.finishing, r.result.Resumed = primary, true, r.begun.Begun
	}
	return nil
}

// cancelMargin is how long before its activation, beside keyRing.refresh and the
// difference of the clocks, a key can be cancelled at the latest.
const cancelMargin = 5 * time.Second

// margin is how long before the activation a node may already use the key.
func (r *run) margin() time.Duration { return r.Refresh + cancelMargin + r.ahead }

// newKey creates the key, unless an earlier run did.
func (r *run) newKey(ctx context.Context) error {
	switch {
	case r.finishing:
		r.say("a rotation of %s is not finished; %s is the primary", r.begun.Begun.Format(time.RFC3339), r.key.KeyID())
		return nil
	case r.key.ID != "":
		r.say("%s is pending already, and this rotation continues with it", r.key.KeyID())
		return r.keep(r.key.ID)
	}
	if r.IfDue {
		due, why := keypolicy.Due(r.view.Ring, r.Policy, r.Clock())
		r.say("the primary %s", why)
		if !due {
			return ErrNotDue
		}
	}
	made, err := newkey.Maker{
		Token: newkey.Seen{Token: r.Token, Published: r.published},
		Plan:  r.plan,
		What:  "Creates an AES-256 key", Confirm: r.Confirm, Create: r.Token.Create,
		Begun: func(id kek.ID) error {
			// Before the key is there: interrupted now, the next run knows whose it is.
			r.created = true
			return r.keep(id)
		},
		Timeout: r.Timeout, Lead: r.margin(), Clock: r.Clock,
	}.Make(ctx)
	if err != nil {
		return err
	}
	r.key = made.Key
	r.say("created %s", r.key.KeyID())
	return nil
}

// plan decides when the key activates: by no node's clock before the other nodes have
// seen it.
func (r *run) plan(v newkey.View, now time.Time) (time.Time, error) {
	at, err := newkey.Delayed(r.Delay, r.DelayGiven, r.Policy.MinActivationDelay)(v, now)
	if _, hasPrimary := v.Ring.Primary(); err != nil || !hasPrimary || r.fastest.Ahead <= skewShown {
		return at, err
	}
	if ahead := r.fastest.Ahead + r.Refresh; at.Sub(now) <= ahead {
		return time.Time{}, fmt.Errorf("the clock of %s is %s ahead, so it would encrypt under a key that activates in %s before every node has seen it; set the clock right, or choose --activate-in longer than %s",
			r.fastest.Node.Name(), r.fastest.Ahead.Round(time.Second), at.Sub(now).Round(time.Second), ahead.Round(time.Second))
	}
	return at, nil
}
