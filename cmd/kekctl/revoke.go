package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"kekd/hsm"
	"kekd/internal/admin/nodes"
	"kekd/internal/kek"
)

func newRevoke(a *app) *cobra.Command {
	var yes bool
	var where nodeFlags
	var kube kubeFlags
	etcd := etcdFlags{kube: &kube}
	c := &cobra.Command{
		Use:   "revoke ID",
		Short: "Stop every use of a KEK within seconds, after a compromise",
		Long: `Take a key out of use at once, whatever stands under it. If it is the primary, a
new key is created first and takes over; then the key is disabled, and every kekd
wipes its seeds and refuses to use it. The time until the last node refuses is
printed.

What still stands under the key cannot be read any more, except by a kube-apiserver
that runs: it keeps what it has unwrapped until it is restarted. So run kekctl
rewrap before any kube-apiserver restarts, and restart them all afterwards.
kekctl key enable takes it back.`,
		Args: exactlyOne("the key's CKA_ID or key_id; kekctl key list shows both"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.revoke(cmd.Context(), args[0], yes, where, kube, etcd)
		},
	}
	addYes(c, &yes)
	addAdminPIN(a, c.Flags())
	where.add(c.Flags())
	kube.add(c.Flags())
	etcd.add(c.Flags())
	return c
}

// nodeRefusal is when a node was seen to refuse a key, in seconds from the command.
type nodeRefusal struct {
	Node    string  `json:"node"`
	Seconds float64 `json:"seconds,omitempty"`
	// Problem is why nobody saw the node refuse it; empty if somebody did.
	Problem string `json:"problem,omitempty"`
}

// revocation is what kekctl revoke prints as JSON.
type revocation struct {
	Revoked string `json:"revoked"`
	// Successor is the key that took over; empty if the key was not the primary.
	Successor string        `json:"successor,omitempty"`
	Nodes     []nodeRefusal `json:"nodes"`
	// Seconds is the time from the command to the last node's refusal.
	Seconds float64 `json:"seconds"`
}

func (a *app) revoke(ctx context.Context, name string, yes bool, where nodeFlags, kube kubeFlags, etcd etcdFlags) error {
	begun := time.Now()
	s, err := a.openAdmin()
	if err != nil {
		return err
	}
	defer s.close()
	key, err := s.target(ctx, name)
	if err != nil {
		return err
	}
	switch key.State {
	case kek.Primary, kek.Retired:
	case kek.Pending:
		return codeError{exitFailed, fmt.Sprintf("key %s is pending and encrypts nothing yet; remove it with kekctl key cancel %s", key.ID, key.ID)}
	default:
		return codeError{exitFailed, fmt.Sprintf("key %s is %s, so no kekd uses it", key.ID, key.State)}
	}
	watched, err := a.watchedNodes(ctx, s, where, kube)
	if err != nil {
		return err
	}
	a.note("REVOKES key %s (%s).", key.KeyID(), key.State)
	if !yes {
		// Counting takes time that an emergency does not have.
		a.noteObjects(ctx, key, &etcd)
		if err := a.confirm(ctx, false); err != nil {
			return err
		}
		begun = time.Now()
	}
	out := revocation{Revoked: key.KeyID()}
	if key.State == kek.Primary {
		next, _, err := a.createKey(ctx, s, true, func(_ *session, _ *kek.Ring, _ error, keys []kek.Info, now time.Time) (time.Time, error) {
			return planNow(keys, now), nil
		})
		if err != nil {
			return fmt.Errorf("%w; nothing is disabled yet", err)
		}
		out.Successor = next.KeyID()
		a.awaitSuccessor(ctx, watched, next, s.cfg.KeyRing.Refresh)
	}
	disabled, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	if _, err := s.token.SetUse(disabled, key, hsm.Disabled()); err != nil {
		return err
	}
	out.Nodes = a.awaitRefusal(ctx, watched, key, begun, s.cfg.KeyRing.Refresh)
	return a.printRevocation(out)
}

// watchedNodes finds the nodes. A cluster that does not answer, or is none, must not
// hold up a revocation: then this node alone is watched, and the others look at the
// ring by themselves.
func (a *app) watchedNodes(ctx context.Context, s *session, where nodeFlags, kube kubeFlags) ([]nodes.Node, error) {
	if len(where.named(s.cfg)) > 0 {
		return all(where.find(ctx, s.cfg, nil))
	}
	c, err := kube.connect()
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		var found []nodes.Node
		if found, err = all(where.find(limited, s.cfg, c)); err == nil {
			return found, nil
		}
	}
	a.note("kekctl: warning: no cluster to find the nodes in, so only this one is watched; name them with --node (%s)", oneLine(err))
	return all(where.find(ctx, s.cfg, nil))
}

// all are the nodes as what can be asked.
func all(found []nodes.HTTP, err error) ([]nodes.Node, error) {
	var list []nodes.Node
	for _, n := range found {
		list = append(list, n)
	}
	return list, err
}

// noteObjects says how much will be unreadable.
func (a *app) noteObjects(ctx context.Context, key kek.Info, etcd *etcdFlags) {
	switch objects, err := objectsUnder(ctx, key, etcd); {
	case err != nil:
		a.note("etcd was not consulted, so nobody knows what stands under it: %s", oneLine(err))
	case objects == "":
		a.note("No object in etcd stands under it.")
	default:
		a.note("%s; they become unreadable.", objects)
	}
}

// successorGrace is the least time that the nodes have to take up a successor. They
// look at the ring when they are asked to, once a second at most.
const successorGrace = 2 * time.Second

// awaitSuccessor waits until every node that answers and sees the token encrypts
// under the new key, but no longer than a node may take to notice it by itself: the
// old key must go.
func (a *app) awaitSuccessor(ctx context.Context, watched []nodes.Node, next kek.Info, refresh time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, max(refresh, successorGrace))
	defer cancel()
	behind := make(map[string]string) // why, by node
	_ = poll(ctx, pollPause, func() bool {
		waiting := false
		for _, r := range nodes.AskAll(ctx, watched) {
			delete(behind, r.Node.Name())
			if r.Err != nil || r.Status.Health.KeyID != next.KeyID() {
				behind[r.Node.Name()] = r.Trouble()
				waiting = waiting || r.Err == nil && r.Status.RingProblem == ""
			}
		}
		return !waiting
	})
	for name, why := range behind {
		a.note("kekctl: warning: %s was not seen to encrypt under the new key: %s", name, why)
	}
	a.note("Key %s takes over.", next.KeyID())
}

// refusalGrace is how long past keyRing.refresh a node may take to report that it
// refuses a key, before it is given up.
const refusalGrace = 10 * time.Second

// awaitRefusal watches until every node refuses the key.
func (a *app) awaitRefusal(ctx context.Context, watched []nodes.Node, key kek.Info, begun time.Time, refresh time.Duration) []nodeRefusal {
	ctx, cancel := context.WithTimeout(ctx, refresh+refusalGrace)
	defer cancel()
	seen := make([]nodeRefusal, len(watched))
	_ = poll(ctx, pollPause, func() bool {
		done := true
		for i, r := range nodes.AskAll(ctx, watched) {
			if seen[i].Seconds > 0 {
				continue
			}
			seen[i] = nodeRefusal{Node: r.Node.Name(), Problem: stillUses(r, key)}
			if seen[i].Problem == "" {
				seen[i].Seconds = time.Since(begun).Seconds()
				a.note("%s refuses the key after %.1f s.", r.Node.Name(), seen[i].Seconds)
			}
			done = done && seen[i].Problem == ""
		}
		return done
	})
	return seen
}

// stillUses says why a node can't be said to refuse a key; empty if it refuses it.
func stillUses(r nodes.Report, key kek.Info) string {
	if r.Err != nil || r.Status.KeyRing == nil {
		return "it does not answer: " + r.Trouble()
	}
	for _, k := range r.Status.KeyRing.Keys {
		if k.ID == key.ID.String() && k.State != kek.Disabled.String() && k.State != kek.Scheduled.String() {
			return fmt.Sprintf("the key is %s there; %s", k.State, r.Trouble())
		}
	}
	return ""
}

func (a *app) printRevocation(out revocation) error {
	missing := 0
	for _, n := range out.Nodes {
		out.Seconds = max(out.Seconds, n.Seconds)
		if n.Problem != "" {
			missing++
			a.note("kekctl: error: %s was not seen to refuse the key: %s", n.Node, n.Problem)
		}
	}
	err := a.print(out, func(w io.Writer) {
		row(w, "revoked", out.Revoked)
		if out.Successor != "" {
			row(w, "successor", out.Successor)
		}
		row(w, "refused by", fmt.Sprintf("%d of %d nodes", len(out.Nodes)-missing, len(out.Nodes)))
		row(w, "seconds", fmt.Sprintf("%.1f", out.Seconds))
	})
	if err != nil {
		return err
	}
	a.note(`A kube-apiserver that runs keeps what it has unwrapped until it is restarted, and can
still read what stands under the key. Run kekctl rewrap now, then restart every
kube-apiserver.`)
	if missing > 0 {
		return codeError{code: exitFailed}
	}
	return nil
}
