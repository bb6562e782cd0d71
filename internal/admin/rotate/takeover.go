package rotate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"kekd/internal/admin/nodes"
	"kekd/internal/admin/text"
	"kekd/internal/admin/wait"
	"kekd/internal/kek"
)

// unfit says why a node is of no use to a rotation; empty if it is.
func unfit(a nodes.Report) string {
	switch {
	case a.Err != nil:
		return a.Trouble()
	case a.Status.KeyRing == nil:
		return cmp.Or(a.Trouble(), "it has not read the ring yet")
	}
	return a.Status.RingProblem
}

// skewShown is the difference of clocks that is worth a word.
const skewShown = time.Second

// skew is a word on a node's clock. The node makes its answer at the end of the time
// that the question took.
func skew(a nodes.Report) string {
	switch ahead := a.Ahead - a.Uncertainty; {
	case ahead > skewShown:
		return fmt.Sprintf("; its clock is %s ahead of this one", ahead.Round(100*time.Millisecond))
	case ahead < -skewShown:
		return fmt.Sprintf("; its clock is %s behind this one", (-ahead).Round(100*time.Millisecond))
	}
	return ""
}

// wait is a wait of the step in progress.
func (r *run) wait(what string, pause, limit time.Duration) wait.Wait {
	return wait.Wait{
		What: what, Pause: pause, Limit: limit,
		Found: func(s wait.Sighting) { r.say("%s %s", s.Name, s.Seen) },
		Note:  func(line string) { r.say("%s", line) },
	}
}

// await waits, and says at the end who is missing.
func (r *run) await(ctx context.Context, w wait.Wait, parties []wait.Party) error {
	all, err := w.All(ctx, parties)
	if err == nil || ctx.Err() != nil {
		return err
	}
	for _, s := range all {
		if s.Seen == "" {
			r.say("%s: %s", s.Name, s.Missing)
		}
	}
	return err
}

// because is the error of a wait that ended without success.
func (r *run) because(ctx context.Context, err error, format string, args ...any) error {
	if ctx.Err() != nil {
		return err
	}
	return fmt.Errorf(format, args...)
}

// pollPause is the pause between two questions to a node.
const pollPause = 250 * time.Millisecond

// cancelTime is the least time that is left for cancelling the key, with two rounds of
// evidence, when its nodes are given up. cancelShare of the delay is left if that is more.
const (
	cancelTime    = 3 * time.Second
	cancelTimeMax = 30 * time.Second
	cancelShare   = 10
)

// answerTime is the least time that a node has for an answer: a shorter one would give
// up a key of which nobody was asked.
const answerTime = time.Second

// nodes waits until every node has tested the key, which must be while the key can
// still be cancelled.
func (r *run) nodes(ctx context.Context) error {
	left := r.key.Activation.Sub(r.Clock())
	limit := max(left-r.margin()-min(max(cancelTime, left/cancelShare), cancelTimeMax), answerTime)
	if limit > left-r.margin() {
		// It is active or about to be, and nothing is gained by giving up.
		limit = 4 * r.margin()
	}
	var parties []wait.Party
	for _, n := range r.Nodes {
		parties = append(parties, r.party(n.Name(), func(ctx context.Context) (string, string) {
			a := nodes.Ask(ctx, n)
			switch k, known := a.Key(r.key.ID.String()); {
			case !known:
				return "", "does not see it: " + a.Trouble()
			case k.KeyID != r.key.KeyID():
				return "", "has another key under its id: " + k.KeyID
			case !k.Proven:
				return "", "could not use it: " + cmp.Or(k.Problem, a.Trouble())
			case a.Status.RingProblem != "":
				return "", "had tested it before: " + a.Trouble()
			}
			return "has tested the key" + skew(a), ""
		}))
	}
	err := r.await(ctx, r.wait("to test the key", pollPause, limit), parties)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return r.giveUp(ctx)
}

// giveUp cancels a key that not all nodes have tested, if this rotation made it and no
// witness disagrees: a node that lacks it cannot read what the others write.
func (r *run) giveUp(ctx context.Context) error {
	left := r.key.Activation.Sub(r.Clock())
	const mend = "fix the nodes that are named above and run kekctl rotate again"
	switch {
	case left <= r.margin():
		return fmt.Errorf("not all nodes have tested key %s, and it is active or about to be: it cannot be cancelled any more; %s", r.key.ID, mend)
	case !r.created:
		return fmt.Errorf("not all nodes have tested key %s, which activates in %s; %s, or remove the key with kekctl key cancel %s",
			r.key.ID, left.Round(time.Second), mend, r.key.ID)
	}
	// The decision is valid until a node may use the key.
	ctx, cancel := context.WithTimeout(ctx, min(r.Timeout, left-r.margin()))
	defer cancel()
	if err := r.Cancel(ctx, r.key, r.begun.Begun); err != nil {
		return fmt.Errorf("not all nodes have tested key %s, and it was not cancelled: %w; it activates in %s: %s, or remove the key with kekctl key cancel %s",
			r.key.ID, err, r.key.Activation.Sub(r.Clock()).Round(time.Second), mend, r.key.ID)
	}
	if err := r.Memory.Remove(MemoryName); err != nil {
		return err
	}
	return fmt.Errorf("not all nodes have tested key %s in time, so it was cancelled; nothing was encrypted under it, and the primary is what it was", r.key.ID)
}

// activationGrace is how long after the activation a node may take to publish the
// key, beside keyRing.refresh and what its clock is behind.
const activationGrace = time.Minute

// activation waits until every node encrypts under the key.
func (r *run) activation(ctx context.Context) error {
	if left := r.key.Activation.Sub(r.Clock()); left > 0 {
		r.say("in %s, at %s", left.Round(time.Second), r.key.Activation.Format(time.RFC3339))
		err := wait.Until(ctx, time.Now().Add(left), func(left time.Duration) {
			r.say("waiting for the activation: another %s", left.Round(time.Second))
		})
		if err != nil {
			return err
		}
	}
	var parties []wait.Party
	for _, n := range r.Nodes {
		parties = append(parties, r.party(n.Name(), func(ctx context.Context) (string, string) {
			a := nodes.Ask(ctx, n)
			switch {
			case a.Trouble() != "" && (a.Err != nil || a.Status.Health.KeyID != r.key.KeyID()):
				return "", "does not encrypt under it: " + a.Trouble()
			case a.Status.Health.KeyID != r.key.KeyID():
				return "", "does not encrypt under it: " + instead(a, r.key)
			}
			return "encrypts under the key", ""
		}))
	}
	err := r.await(ctx, r.wait("to encrypt under the key", pollPause, r.Refresh+activationGrace+r.behind), parties)
	if err != nil {
		return r.because(ctx, err, "not all nodes encrypt under key %s; they keep the key that they had: fix them and run kekctl rotate again", r.key.ID)
	}
	return nil
}

// instead says what a node without trouble does that does not encrypt under the key.
func instead(a nodes.Report, key kek.Info) string {
	what := "it encrypts under " + a.Status.Health.KeyID
	if left := key.Activation.Sub(a.Status.Time); left > 0 {
		what += fmt.Sprintf("; by its clock the key activates in %s", left.Round(time.Second))
	}
	return what
}

// kube-apiserver asks for the key_id at least once a minute, and every 20 seconds
// when it is asked for its health.
const (
	serversPause = 3 * time.Second
	serversLimit = 5 * time.Minute
)

// apiServers waits until every API server has taken up the key.
func (r *run) apiServers(ctx context.Context) error {
	if err := r.serversUnder(ctx, r.key, "the key", serversLimit); err != nil {
		return r.because(ctx, err, "not all kube-apiservers have taken up the key; run kekctl rotate again when they have")
	}
	return nil
}

// serversUnder waits until every API server has taken up a key: its metrics tell that,
// and not whether kekd is the first provider, which takes a write to see.
func (r *run) serversUnder(ctx context.Context, key kek.Info, name string, limit time.Duration) error {
	var parties []wait.Party
	for _, s := range r.Servers {
		parties = append(parties, wait.Party{Name: s.Name(), Look: func(ctx context.Context) (string, string) {
			use, err := s.KeyInUse(ctx)
			if err != nil {
				return "", oneLine(err)
			}
			if why := use.Lacks(key.KeyID()); why != "" {
				return "", "has not: " + why
			}
			return "has taken up " + name, ""
		}})
	}
	return r.await(ctx, r.wait("to take up "+name, serversPause, limit), parties)
}

// oneLine folds an error of several lines.
func oneLine(err error) string {
	if errors.Is(err, context.DeadlineExceeded) && strings.TrimSpace(err.Error()) == context.DeadlineExceeded.Error() {
		return "it did not answer in time"
	}
	return text.Of(err)
}
