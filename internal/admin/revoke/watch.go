package revoke

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"kekd/internal/admin/nodes"
	"kekd/internal/admin/wait"
	"kekd/internal/kek"
)

const (
	// pollPause is the pause between two questions to a node.
	pollPause = 250 * time.Millisecond
	// heirGrace is the least time that the nodes have to take up a successor. They look
	// at the ring when they are asked to, once a second at most.
	heirGrace = 2 * time.Second
	// refusalGrace is how long past keyRing.refresh a node may take to report that it
	// refuses a key, before it is given up.
	refusalGrace = 10 * time.Second
	// waitMost bounds how long a revocation waits for a clock.
	waitMost = 5 * time.Minute
)

// watched is what is known of one node. One goroutine at a time uses it.
type watched struct {
	node nodes.Node
	// last is its last good answer; Status is nil before the first.
	last nodes.Report
	// refused is when it was first seen to refuse the key; zero before.
	refused time.Time
	// done: it was seen to refuse the key and to encrypt under another.
	done bool
}

// ask asks the node, and keeps the answer if it is one: that the last question was cut
// off does not undo what the node said before.
func (w *watched) ask(ctx context.Context) (nodes.Report, bool) {
	a := nodes.Ask(ctx, w.node)
	if a.Err != nil {
		return a, false
	}
	w.last = a
	return a, true
}

// awaitHeir waits until the nodes that answer encrypt under another key, but no longer
// than a node may take to notice its successor: the revoked key must go. It says what
// will be missing.
func (r *run) awaitHeir(ctx context.Context) {
	limit := max(r.Refresh, heirGrace)
	begun := time.Now()
	var parties []wait.Party
	for _, a := range r.reports {
		if a.Err != nil {
			r.Note(fmt.Sprintf("kekctl: warning: %s was not seen to encrypt under %s: it does not answer: %s", a.Node.Name(), r.heir.KeyID(), a.Trouble()))
			continue
		}
		if encryptsUnder(a) != r.key.ID {
			continue // nothing is taken from it
		}
		if left := untilActive(a, r.heir); left > limit {
			r.Note(fmt.Sprintf("kekctl: warning: %s cannot encrypt for about %s once the key is disabled: by its clock %s activates then", a.Node.Name(), left.Round(time.Second), r.heir.KeyID()))
			continue
		}
		node := &watched{node: a.Node}
		parties = append(parties, wait.Party{Name: a.Node.Name(), Look: func(ctx context.Context) (string, string) {
			a, ok := node.ask(ctx)
			switch under := encryptsUnder(a); {
			case !ok:
				return "", "it does not answer: " + a.Trouble()
			case under != "" && under != r.key.ID:
				return "encrypts under " + a.Status.Health.KeyID, ""
			case a.Status.RingProblem != "" && time.Since(begun) > heirGrace:
				// Cut off from the token it will not see the successor soon.
				return "cannot take it up: " + a.Trouble(), ""
			}
			return "", cmp.Or(a.Trouble(), "it encrypts under the old key")
		}})
	}
	w := r.wait("to encrypt under the successor", limit)
	sightings, _ := w.All(ctx, parties)
	for _, s := range sightings {
		if s.Seen == "" {
			r.Note(fmt.Sprintf("kekctl: warning: %s was not seen to encrypt under %s: %s", s.Name, r.heir.KeyID(), s.Missing))
		}
	}
}

func (r *run) wait(what string, limit time.Duration) wait.Wait {
	return wait.Wait{
		What: what, Pause: pollPause, Limit: limit, Sticky: true,
		Found: func(s wait.Sighting) { r.Note(fmt.Sprintf("%s %s.", s.Name, s.Seen)) },
		Note:  r.Note,
	}
}

// untilActive is how long a key is still pending by a node's clock.
func untilActive(a nodes.Report, k kek.Info) time.Duration {
	if a.Status == nil {
		return 0
	}
	return max(k.Activation.Sub(a.Status.Time), 0)
}

// awaitRefusal watches until every node refuses the key and encrypts under another.
func (r *run) awaitRefusal(ctx context.Context) error {
	limit := r.Refresh + refusalGrace
	for _, a := range r.reports {
		if left := untilActive(a, r.heir); left <= waitMost {
			limit = max(limit, left+refusalGrace)
		}
	}
	all := make([]*watched, len(r.Nodes))
	parties := make([]wait.Party, len(r.Nodes))
	for i, n := range r.Nodes {
		all[i] = &watched{node: n}
		parties[i] = wait.Party{Name: n.Name(), Look: func(ctx context.Context) (string, string) { return r.refusal(ctx, all[i]) }}
	}
	sightings, err := r.wait("to refuse the key", limit).All(ctx, parties)
	if err == nil {
		// The last node may have taken long, and the others may have moved on since.
		for i, a := range nodes.AskAll(ctx, r.Nodes) {
			if a.Err == nil && r.stillUses(a) == "" && r.idle(a) == "" {
				all[i].last = a
			}
		}
	}
	return r.conclude(all, sightings)
}

// refusal asks a node whether it refuses the key and encrypts under another.
func (r *run) refusal(ctx context.Context, w *watched) (seen, missing string) {
	if w.done {
		return "encrypts under " + w.last.Status.Health.KeyID, ""
	}
	a, ok := w.ask(ctx)
	if !ok {
		return "", "it does not answer: " + a.Trouble()
	}
	if uses := r.stillUses(a); uses != "" {
		return "", uses
	}
	if w.refused.IsZero() {
		w.refused = r.Clock()
		r.Note(fmt.Sprintf("%s refuses the key after %.1f s.", w.node.Name(), w.refused.Sub(r.begun).Seconds()))
	}
	if idle := r.idle(a); idle != "" {
		return "", idle
	}
	w.done = true
	return "encrypts under " + a.Status.Health.KeyID, ""
}

// stillUses says why a node cannot be said to refuse the key; empty if it refuses it.
func (r *run) stillUses(a nodes.Report) string {
	if a.Status.KeyRing == nil {
		return strings.TrimSuffix("it has not read the ring: "+a.Trouble(), ": ")
	}
	k, known := a.Key(r.key.ID.String())
	if known && k.State != kek.Disabled.String() && k.State != kek.Scheduled.String() {
		return strings.TrimSuffix(fmt.Sprintf("the key is %s there; %s", k.State, a.Trouble()), "; ")
	}
	return ""
}

// idle says why a node that refuses the key does not encrypt under another; empty if
// it does.
func (r *run) idle(a nodes.Report) string {
	if under := encryptsUnder(a); under != "" && under != r.key.ID {
		left := untilActive(a, r.key)
		if activation, ok := under.Activation(); left == 0 || ok && activation.After(r.key.Activation) {
			return ""
		}
		// A node does not fall back: the key will be its newest, and is disabled.
		return fmt.Sprintf("it refuses the key and encrypts under %s, but for %s only: by its clock the key activates then, and %s in %s",
			a.Status.Health.KeyID, left.Round(time.Second), r.heir.KeyID(), untilActive(a, r.heir).Round(time.Second))
	}
	if left := untilActive(a, r.heir); left > 0 {
		return fmt.Sprintf("it refuses the key and cannot encrypt for another %s: by its clock %s activates then", left.Round(time.Second), r.heir.KeyID())
	}
	return "it refuses the key and cannot encrypt: " + cmp.Or(a.Trouble(), "it has no key in use")
}

// conclude says of each node what it was seen to do.
func (r *run) conclude(all []*watched, sightings []wait.Sighting) error {
	r.result.Nodes = make([]Node, 0, len(all))
	refusing, encrypting := 0, 0
	for i, w := range all {
		n := Node{Node: w.node.Name()}
		if !w.refused.IsZero() {
			refusing++
			n.Refuses, n.Seconds = true, w.refused.Sub(r.begun).Seconds()
			r.result.Seconds = max(r.result.Seconds, n.Seconds)
		}
		switch {
		case w.last.Status == nil:
			n.Problem = sightings[i].Missing
		case !n.Refuses:
			n.Problem = r.stillUses(w.last)
		default:
			n.Problem = r.idle(w.last)
		}
		if w.last.Status != nil {
			n.KeyID = w.last.Status.Health.KeyID
		}
		if n.Problem == "" {
			encrypting++
		}
		r.result.Nodes = append(r.result.Nodes, n)
	}
	if encrypting < len(all) {
		return fmt.Errorf("key %s is disabled on the token; %d of %d nodes were seen to refuse it, and %d to encrypt under another key",
			r.key.ID, refusing, len(all), encrypting)
	}
	reports := make([]nodes.Report, len(all))
	for i, w := range all {
		reports[i] = w.last
	}
	if n := nodes.Distinct(reports); n < r.Kekds {
		return fmt.Errorf("key %s is disabled on the token; %d node(s) refuse it, and the cluster runs %d, so the others were not watched; name every kekd with --node or cluster.nodes and look with kekctl status",
			r.key.ID, n, r.Kekds)
	}
	return nil
}

// reportNodes asks all nodes once more, to say what each does with a key that could
// not be taken out of use. The caller may have given up, and should know all the same.
func (r *run) reportNodes(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), nodes.AskTimeout)
	defer cancel()
	r.result.Nodes = make([]Node, 0, len(r.Nodes))
	for i, a := range nodes.AskAll(ctx, r.Nodes) {
		if a.Err != nil && r.reports[i].Err == nil {
			a = r.reports[i] // what it said before
		}
		n := Node{Node: a.Node.Name()}
		if a.Err != nil {
			n.Problem = "it does not answer: " + a.Trouble()
		} else {
			n.KeyID, n.Problem = a.Status.Health.KeyID, r.stillUses(a)
			n.Refuses = n.Problem == ""
			if n.Refuses {
				n.Problem = r.idle(a)
			}
		}
		r.result.Nodes = append(r.result.Nodes, n)
	}
}

// stillUsed sums up what the nodes do with a key that is not out of use.
func (r *run) stillUsed() string {
	uses := 0
	for _, n := range r.result.Nodes {
		if !n.Refuses {
			uses++
		}
	}
	return fmt.Sprintf("%d of %d nodes were not seen to refuse it, so what is under it still decrypts there; run kekctl revoke %s again when the HSM answers", uses, len(r.result.Nodes), r.key.ID)
}
