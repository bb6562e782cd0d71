package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"kekd/internal/admin/keychange"
	"kekd/internal/admin/nodes"
	"kekd/internal/cluster"
	"kekd/internal/kek"
	"kekd/internal/keypolicy"
	"kekd/internal/rewrap"
)

func newRotate(a *app) *cobra.Command {
	r := &rotator{app: a}
	r.etcd.kube = &r.kube
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Rotate the KEK, from the new key to the re-encrypted objects",
		Long: `The whole way to a new KEK, each step printed as it happens:

  1. doctor       this node is sound
  2. key          a new key is created on the token, pending
  3. nodes        every kekd has seen and proven it
  4. activation   it is the primary on every node
  5. apiservers   every kube-apiserver encrypts under it
  6. rewrap       every object is re-encrypted
  7. inventory    no object stands under an older key
  8. retire       which keys may go, and how

Run it again after an interruption: it goes on where it was. No key that anything
was encrypted under is ever destroyed by it. A key that it has just created is
cancelled again when a node does not see it in time: activated, it would make
objects that this node cannot read.

With --if-due nothing is done before the primary is as old as keyRing.policy.maxAge
says, so that a timer can run it every day.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.delayGiven = cmd.Flags().Changed("activate-in")
			if err := checkDelay(r.delay); err != nil {
				return err
			}
			if err := r.how.check(); err != nil {
				return err
			}
			return r.run(cmd.Context())
		},
	}
	addYes(c, &r.yes)
	addAdminPIN(a, c.Flags())
	c.Flags().DurationVar(&r.delay, "activate-in", 0, "when the key becomes the primary (default 5m, or keyRing.policy.minActivationDelay if that is longer)")
	c.Flags().BoolVar(&r.ifDue, "if-due", false, "do nothing before the primary is as old as keyRing.policy.maxAge")
	c.Flags().StringArrayVar(&r.serverURLs, "apiserver", nil, "`URL` of a kube-apiserver, once for each (default: those that the cluster lists)")
	r.nodeFlags.add(c.Flags())
	r.kube.add(c.Flags())
	r.etcd.add(c.Flags())
	r.how.add(c.Flags())
	return c
}

// rotator is one run of kekctl rotate.
type rotator struct {
	*app

	// Flags.
	yes, ifDue bool
	delay      time.Duration
	delayGiven bool
	serverURLs []string
	nodeFlags  nodeFlags
	kube       kubeFlags
	etcd       etcdFlags
	how        rewrapFlags

	session *session
	cluster *cluster.Cluster
	nodes   []nodes.Node
	servers []*cluster.APIServer

	// key is the one that takes over.
	key kek.Info
	// created: by this rotation, which may cancel it again.
	created bool
	// resumed is when the rotation was begun that this run goes on with; zero for a
	// new one.
	resumed time.Time
}

// journeyName is the name under which an unfinished rotation is remembered.
const journeyName = "rotation"

// journey is what is remembered of an unfinished rotation. All else shows on the
// token, the nodes and in etcd.
type journey struct {
	// Key is the CKA_ID, in hexadecimal, of the key that takes over.
	Key string `json:"key"`
	// Created: by the rotation, which may cancel it again.
	Created bool      `json:"created"`
	Begun   time.Time `json:"begun"`
}

// errNotDue ends a run with --if-due that has nothing to do.
var errNotDue = errors.New("the primary is not due")

func (r *rotator) step(n int, name, format string, args ...any) {
	r.note("%d %-10s  %s", n, name, fmt.Sprintf(format, args...))
}

func (r *rotator) run(ctx context.Context) error {
	var err error
	if r.session, err = r.openAdmin(); err != nil {
		return err
	}
	defer r.session.close()
	if r.ifDue && r.session.cfg.KeyRing.Policy.MaxAge == 0 {
		return codeError{exitUsage, "--if-due: needs a limit of age; set keyRing.policy.maxAge in the configuration"}
	}
	if err := r.connect(ctx); err != nil {
		return err
	}
	if err := r.doctorStep(ctx); err != nil {
		return err
	}
	err = r.keyStep(ctx)
	if errors.Is(err, errNotDue) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{r.nodesStep, r.activationStep, r.serversStep} {
		if err := step(ctx); err != nil {
			if ctx.Err() != nil {
				r.note("Interrupted. Nothing is lost: run kekctl rotate again to go on with key %s.", r.key.ID)
			}
			return err
		}
	}
	result, err := r.rewrapStep(ctx)
	if err != nil {
		return err
	}
	return r.retireStep(ctx, result)
}

// connect finds the nodes, the API servers and etcd.
func (r *rotator) connect(ctx context.Context) error {
	var err error
	if r.cluster, err = r.kube.connect(); err != nil {
		return err
	}
	if r.servers, err = apiServers(ctx, r.cluster, r.serverURLs); err != nil {
		return err
	}
	if r.nodes, err = all(r.nodeFlags.find(ctx, r.session.cfg, r.cluster)); err != nil {
		return err
	}
	// Not to be found out when half of the way is gone.
	if err := r.etcd.check(ctx); err != nil {
		return err
	}
	if len(r.nodes) < len(r.servers) {
		return codeError{exitFailed, fmt.Sprintf("%d kube-apiservers and only %d kekd(s) are known, and each needs one that has seen the new key; name every kekd with --node",
			len(r.servers), len(r.nodes))}
	}
	return nil
}

func (r *rotator) doctorStep(ctx context.Context) error {
	e := new(examination)
	ctx, cancel := context.WithTimeout(ctx, 2*hsmTimeout)
	defer cancel()
	r.examine(ctx, e)
	for _, f := range e.findings {
		// A key that is too old is why this runs.
		if f.Result == "fail" && f.Check != policyCheck {
			r.step(1, "doctor", "%s: %s", f.Check, f.Detail)
			return codeError{exitFailed, "the doctor found something; kekctl doctor shows all, with the remedies"}
		}
	}
	r.step(1, "doctor", "%d checks, none failed", len(e.findings))
	return nil
}

// keyStep finds the key of a rotation that was begun earlier, or creates one.
func (r *rotator) keyStep(ctx context.Context) error {
	looked, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	ring, _, err := r.session.ring(looked)
	if ring == nil {
		return err
	}
	var begun journey
	unfinished, err := r.session.store.Load(journeyName, &begun)
	if err != nil {
		return err
	}
	primary, hasPrimary := ring.Primary()
	for _, k := range ring.Keys {
		if k.State == kek.Pending {
			r.key, r.created = k, begun.Created && begun.Key == k.ID.String()
			r.step(2, "key", "%s is pending already, and is taken up", k.KeyID())
			return r.remember()
		}
	}
	if unfinished && hasPrimary {
		// Whatever was begun ends with all objects under the primary.
		r.key, r.resumed = primary, begun.Begun
		r.step(2, "key", "a rotation of %s is not finished; %s is the primary", begun.Begun.Format(time.RFC3339), primary.KeyID())
		return nil
	}
	if r.ifDue {
		due, why := keypolicy.Due(ring, r.session.cfg.KeyRing.Policy, time.Now())
		r.step(2, "key", "the primary %s", why)
		if !due {
			return errNotDue
		}
	}
	r.key, _, err = r.createKey(ctx, r.session, r.yes, func(s *session, ring *kek.Ring, ringErr error, keys []kek.Info, now time.Time) (time.Time, error) {
		return s.planActivation(ring, ringErr, keys, r.delay, r.delayGiven, now)
	})
	if err != nil {
		return err
	}
	r.created = true
	r.step(2, "key", "created %s", r.key.KeyID())
	return r.remember()
}

func (r *rotator) remember() error {
	return r.session.store.Save(journeyName, journey{Key: r.key.ID.String(), Created: r.created, Begun: time.Now().UTC().Truncate(time.Second)})
}

// sighting is what is known of one node or API server that is waited for.
type sighting struct {
	// name is its own, which no other has.
	name string
	// seen says that it is there; empty while it is not.
	seen string
	// missing says why it is not there yet.
	missing string
}

// await looks again and again until all are there, and prints each as it comes.
// When ctx ends before, it prints what is missing and returns ctx's error.
func (r *rotator) await(ctx context.Context, n int, step string, pause time.Duration, look func() []sighting) error {
	told := make(map[string]bool)
	var all []sighting
	err := poll(ctx, pause, func() bool {
		all = look()
		done := true
		for _, s := range all {
			if s.seen != "" && !told[s.name] {
				told[s.name] = true
				r.step(n, step, "%s %s", s.name, s.seen)
			}
			done = done && s.seen != ""
		}
		return done
	})
	if err == nil {
		return nil
	}
	for _, s := range all {
		if s.seen == "" {
			r.step(n, step, "%s %s", s.name, s.missing)
		}
	}
	return err
}

// sightings has all nodes look at the ring, and judge what they say.
func (r *rotator) sightings(ctx context.Context, judge func(nodes.Report) (seen, missing string)) []sighting {
	var all []sighting
	for _, n := range nodes.AskAll(ctx, r.nodes) {
		s := sighting{name: n.Node.Name()}
		s.seen, s.missing = judge(n)
		all = append(all, s)
	}
	return all
}

// cancelTime is what is left for cancelling the key, which takes the token a moment,
// when its nodes are given up.
const cancelTime = 3 * time.Second

// nodesStep waits until every node has seen and proven the key, which must be
// while the key can still be cancelled.
func (r *rotator) nodesStep(ctx context.Context) error {
	margin := r.session.cfg.KeyRing.Refresh + cancelMargin
	deadline := r.key.Activation.Add(-margin - cancelTime)
	if now := time.Now(); deadline.Before(now) {
		// It is active or about to be, and nothing is gained by giving up.
		deadline = now.Add(4 * margin)
	}
	limited, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	err := r.await(limited, 3, "nodes", pollPause, func() []sighting {
		return r.sightings(limited, func(n nodes.Report) (string, string) {
			switch k, known := n.Key(r.key.ID.String()); {
			case !known:
				return "", "does not see it: " + n.Trouble()
			case !k.Proven:
				return "", "could not use it: " + cmp.Or(k.Problem, n.Trouble())
			case n.Status.RingProblem != "":
				return "", "had proven it before: " + n.Trouble()
			}
			return "has proven the key" + skew(n.Ahead), ""
		})
	})
	if err == nil || ctx.Err() != nil {
		return err
	}
	return r.giveUpKey(ctx)
}

// skewShown is the difference of clocks that is worth a word.
const skewShown = time.Second

func skew(ahead time.Duration) string {
	switch {
	case ahead > skewShown:
		return fmt.Sprintf("; its clock is %s ahead of this one", ahead.Round(100*time.Millisecond))
	case ahead < -skewShown:
		return fmt.Sprintf("; its clock is %s behind this one", (-ahead).Round(100*time.Millisecond))
	}
	return ""
}

// giveUpKey cancels a key that not all nodes have seen, if this run made it: a
// node that lacks it could not read what the others write.
func (r *rotator) giveUpKey(ctx context.Context) error {
	still := fmt.Sprintf("not all nodes have proven key %s, which activates at %s; mend them, or cancel it with kekctl key cancel %s",
		r.key.ID, r.key.Activation.Format(time.RFC3339), r.key.ID)
	if !r.created {
		return codeError{exitFailed, still}
	}
	flags := &witnessFlags{nodes: r.nodeFlags, servers: r.serverURLs, kube: r.kube, etcd: r.etcd}
	cancelling := keychange.Change{Verb: keychange.Cancel, Find: func(ring *kek.Ring) (kek.Info, error) { return findKey(ring, r.key.ID.String()) }}
	if _, err := keychange.Run(ctx, r.changeDeps(r.session, true, flags), cancelling); err != nil {
		return fmt.Errorf("%s (not cancelled: %w)", still, err)
	}
	if err := r.session.store.Remove(journeyName); err != nil {
		return err
	}
	return codeError{exitFailed, fmt.Sprintf("not all nodes have proven key %s in time, so it was cancelled; nothing was encrypted under it, and the primary is what it was", r.key.ID)}
}

// activationGrace is how long after the activation a node may take to publish the
// key, beside keyRing.refresh.
const activationGrace = time.Minute

// activationStep waits until every node encrypts under the key.
func (r *rotator) activationStep(ctx context.Context) error {
	if left := time.Until(r.key.Activation); left > 0 {
		r.step(4, "activation", "in %s, at %s", left.Round(time.Second), r.key.Activation.Format(time.RFC3339))
		if err := pause(ctx, left); err != nil {
			return err
		}
	}
	limited, cancel := context.WithTimeout(ctx, r.session.cfg.KeyRing.Refresh+activationGrace)
	defer cancel()
	err := r.await(limited, 4, "activation", pollPause, func() []sighting {
		return r.sightings(limited, func(n nodes.Report) (string, string) {
			if n.Err != nil || n.Status.Health.KeyID != r.key.KeyID() {
				return "", "does not encrypt under it: " + n.Trouble()
			}
			return "encrypts under the key", ""
		})
	})
	if err == nil || ctx.Err() != nil {
		return err
	}
	return codeError{exitFailed, fmt.Sprintf("not all nodes encrypt under key %s; they keep the key that they had. Mend them and run kekctl rotate again", r.key.ID)}
}

// kube-apiserver asks for the key_id at least once a minute, and every 20 seconds
// when it is asked for its health.
const (
	serversPause   = 3 * time.Second
	serversTimeout = 5 * time.Minute
)

// serversStep waits until every API server encrypts under the key.
func (r *rotator) serversStep(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, serversTimeout)
	defer cancel()
	err := r.await(limited, 5, "apiservers", serversPause, func() []sighting {
		var all []sighting
		for _, server := range r.servers {
			s := sighting{name: server.URL, seen: "encrypts under the key"}
			use, err := server.KeyInUse(limited)
			if err != nil {
				s.seen, s.missing = "", oneLine(err)
			} else if why := use.Lacks(r.key.KeyID()); why != "" {
				s.seen, s.missing = "", "does not: "+why
			}
			all = append(all, s)
		}
		return all
	})
	if err == nil || ctx.Err() != nil {
		return err
	}
	return codeError{exitFailed, "not all kube-apiservers encrypt under the key; run kekctl rotate again when they do"}
}

// rewrapStep re-encrypts, with the final inventory. It does not ask again.
func (r *rotator) rewrapStep(ctx context.Context) (rewrap.Result, error) {
	work := rewrapping{app: r.app, cluster: r.cluster, servers: r.servers, how: r.how, etcd: &r.etcd, yes: true, keyID: r.key.KeyID()}
	result, err := work.run(ctx)
	if err != nil {
		return result, err
	}
	r.step(6, "rewrap", "%d of %d objects re-encrypted", result.Found-result.Left, result.Found)
	if result.Left > 0 {
		for _, o := range result.Objects {
			r.step(7, "inventory", "%s: %s", plain(o.Key), o.Reason)
		}
		return result, codeError{exitFailed, fmt.Sprintf("%d objects are not under the primary; the old key must stay. Mend them and run kekctl rotate again", result.Left)}
	}
	r.step(7, "inventory", "no object stands under an older key")
	return result, nil
}

// retirable is a key that nothing in etcd needs any more.
type retirable struct {
	ID    string `json:"id"`
	KeyID string `json:"keyID"`
}

// rotationResult is what kekctl rotate prints as JSON.
type rotationResult struct {
	KeyID     string        `json:"keyID"`
	Rewrap    rewrap.Result `json:"rewrap"`
	Retirable []retirable   `json:"retirable"`
}

// retireStep says which keys nothing needs any more, and forgets the journey.
func (r *rotator) retireStep(ctx context.Context, result rewrap.Result) error {
	out := rotationResult{KeyID: r.key.KeyID(), Rewrap: result, Retirable: []retirable{}}
	report, err := r.etcd.take(ctx)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	ring, _, err := r.session.ring(limited)
	if ring == nil {
		return err
	}
	for _, k := range ring.Keys {
		if n, _ := report.Under(k.Ring, k.ID); n == 0 && k.State == kek.Retired {
			out.Retirable = append(out.Retirable, retirable{ID: k.ID.String(), KeyID: k.KeyID()})
			r.step(8, "retire", "nothing in etcd needs %s; when no backup does: kekctl key destroy %s --after 30d", k.KeyID(), k.ID)
		}
	}
	if err := r.session.store.Remove(journeyName); err != nil {
		return err
	}
	if !r.resumed.IsZero() {
		r.note("This finished the rotation of %s; no new key was made. To rotate once more, run it again.", r.resumed.Format(time.RFC3339))
	}
	return r.print(out, func(w io.Writer) {
		row(w, "primary", out.KeyID)
		for _, k := range out.Retirable {
			row(w, "retirable", k.KeyID)
		}
	})
}
