package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"

	"kekd/internal/admin/doctor"
	"kekd/internal/admin/evidence"
	"kekd/internal/admin/keychange"
	"kekd/internal/admin/rotate"
	"kekd/internal/cluster"
	"kekd/internal/kek"
)

func newRotate(a *app) *cobra.Command {
	r := &rotator{app: a}
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Rotate the KEK, from the new key to the re-encrypted objects",
		Long: `The whole way to a new KEK, each step printed as it happens:

  1. doctor       this node is sound
  2. reach        every node, kube-apiserver and etcd member answers
  3. writers      every kube-apiserver writes what belongs to the ring under the primary
  4. key          a new key is created on the token, pending
  5. nodes        every kekd has seen and tested it
  6. activation   it is the primary on every node
  7. apiservers   every kube-apiserver has taken it up
  8. rewrap       every object is re-encrypted, and read back
  9. inventory    no object is under an older key
  10. retire      which keys nothing needs any more

Nothing is created before everything that a rotation needs has answered. Run it again
after an interruption: it continues where it was. It destroys no key that anything was
encrypted under. If a node does not test a new key in time, it cancels the key again,
unless a witness says that the key may be in use already: once active, the key would
make objects that this node cannot read.

With --if-due it only reads (steps 1 to 3, without writing anything) until the primary
is as old as keyRing.policy.maxAge says, so that a timer can run it every day.`,
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
	c.Flags().BoolVar(&r.ifDue, "if-due", false, "create no key before the primary is as old as keyRing.policy.maxAge")
	r.witnesses.add(a, c.Flags())
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
	witnesses  witnessFlags
	how        rewrapFlags

	session *session
	cluster *cluster.Cluster
	servers []*cluster.APIServer
}

func (r *rotator) run(ctx context.Context) error {
	var err error
	if r.session, err = r.openAdmin(); err != nil {
		return err
	}
	defer r.session.close()
	policy := r.session.cfg.KeyRing.Policy
	if r.ifDue && policy.MaxAge == 0 {
		return codeError{exitUsage, "--if-due: needs a limit of age; set keyRing.policy.maxAge in the configuration"}
	}
	cfg := rotate.Config{
		IfDue: r.ifDue, Delay: r.delay, DelayGiven: r.delayGiven, Policy: policy,
		Refresh: r.session.cfg.KeyRing.Refresh, Timeout: hsmTimeout,
		Doctor: r.doctorStep, Token: ringToken{r.session}, Objects: rotated{r},
		Evidence: r.evidence, Cancel: r.cancel, Memory: r.session.store,
		Confirm: func(plan string) error {
			r.note("%s", plan)
			return r.confirm(ctx, r.yes)
		},
		Note: func(line string) { r.note("%s", line) }, Clock: time.Now,
	}
	if err := r.connect(ctx, &cfg); err != nil {
		return err
	}
	result, err := rotate.Run(ctx, cfg)
	switch {
	case errors.Is(err, rotate.ErrNotDue):
		return nil
	case err != nil:
		return err
	}
	if !result.Resumed.IsZero() {
		r.note("This finished the rotation of %s; no new key was made. To rotate once more, run it again.", result.Resumed.Format(time.RFC3339))
	}
	return r.print(result, func(w io.Writer) {
		row(w, "primary", result.KeyID)
		for _, k := range result.Retirable {
			row(w, "retirable", k.KeyID)
		}
		for _, k := range result.Kept {
			row(w, "kept", k.KeyID)
		}
	})
}

// connect finds the nodes, the API servers and the members of etcd.
func (r *rotator) connect(ctx context.Context, cfg *rotate.Config) error {
	var err error
	if r.cluster, err = r.witnesses.kube.connect(); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	urls := r.witnesses.servers
	if len(urls) == 0 {
		urls = r.session.cfg.Cluster.APIServers
	}
	if r.servers, err = apiServers(limited, r.cluster, urls); err != nil {
		return err
	}
	for _, s := range r.servers {
		cfg.Servers = append(cfg.Servers, s)
	}
	if cfg.Nodes, err = r.witnesses.nodes.find(limited, r.session.cfg, r.cluster); err != nil {
		return err
	}
	cfg.Members = []rotate.Member{etcdMembers{&r.witnesses.etcd}}
	return r.witnesses.etcd.complete()
}

// connectTimeout bounds the look for nodes, API servers and members of etcd.
const connectTimeout = 30 * time.Second

// doctorStep examines this node. A key that is too old is why a rotation runs.
func (r *rotator) doctorStep(ctx context.Context) (checks int, failed []string) {
	report := r.examine(ctx, "")
	for _, f := range report {
		if f.Result == doctor.Fail && f.Check != doctor.PolicyCheck {
			failed = append(failed, f.Check+": "+f.Detail)
		}
	}
	return len(report), failed
}

// cancel removes a pending key, if every witness says that nothing used it.
func (r *rotator) cancel(ctx context.Context, key kek.Info, made time.Time) error {
	change := keychange.Change{
		Verb: keychange.Cancel, Made: made,
		Find: func(ring *kek.Ring) (kek.Info, error) { return findKey(ring, key.ID.String()) },
	}
	_, err := keychange.Run(ctx, r.changeDeps(r.session, true, &r.witnesses), change)
	return err
}

// evidence asks every witness about a retired key.
func (r *rotator) evidence(ctx context.Context, key kek.Info, ring *kek.Ring) (evidence.Evidence, error) {
	w := r.witnesses.find(ctx, r.session)
	w.Token, w.Clock = sessionToken{r.session}, time.Now
	return evidence.Gather(ctx, w, evidence.Question{Key: key, Ring: ring})
}
