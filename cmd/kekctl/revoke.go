package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"kekd/internal/admin/nodes"
	"kekd/internal/admin/revoke"
	"kekd/internal/admin/text"
	"kekd/internal/kek"
)

func newRevoke(a *app) *cobra.Command {
	v := &revoker{app: a}
	v.etcd.kube = &v.kube
	c := &cobra.Command{
		Use:   "revoke ID",
		Short: "Stop every use of a KEK within seconds, after a compromise",
		Long: `Take a key out of use at once, whatever is encrypted under it. If a node uses it, or no
other key works, a new key is created first and takes over; then the key is disabled,
and every kekd wipes its seeds and refuses to use it. The time until the last node
refuses is printed.

The command succeeds when every node was seen to refuse the key and to encrypt under
another one. Otherwise it says of each node what it does, and exits with 1. A node
whose clock is behind cannot encrypt until the new key activates there; the command
says for how long before it disables the key.

What is still encrypted under the key cannot be read any more, except by a
kube-apiserver that runs: it keeps what it has unwrapped until it is restarted. So run
kekctl rewrap before any kube-apiserver restarts, and restart them all afterwards.
kekctl key enable makes the key usable again.`,
		Args: exactlyOne("the key's CKA_ID or key_id; kekctl key list shows both"),
		RunE: func(cmd *cobra.Command, args []string) error { return v.run(cmd.Context(), args[0]) },
	}
	addYes(c, &v.yes)
	addAdminPIN(a, c.Flags())
	v.nodes.add(c.Flags())
	v.kube.add(c.Flags())
	v.etcd.add(a, c.Flags())
	return c
}

// revoker is one run of kekctl revoke.
type revoker struct {
	*app

	// Flags.
	yes   bool
	nodes nodeFlags
	kube  kubeFlags
	etcd  etcdFlags
}

func (v *revoker) run(ctx context.Context, name string) error {
	s, err := v.openAdmin()
	if err != nil {
		return err
	}
	defer s.close()
	id, err := s.findID(ctx, name)
	if err != nil {
		return err
	}
	watched, kekds, err := v.watched(ctx, s)
	if err != nil {
		return err
	}
	cfg := revoke.Config{
		ID: id, Token: ringToken{s}, Nodes: watched, Kekds: kekds, Refresh: s.cfg.KeyRing.Refresh, Timeout: hsmTimeout,
		Note: func(line string) { v.note("%s", line) }, Clock: time.Now,
	}
	if !v.yes {
		cfg.Confirm = func(ctx context.Context, key kek.Info) error {
			// Counting takes time that an emergency does not have.
			v.noteObjects(ctx, key)
			return v.confirm(ctx, false)
		}
	}
	result, err := revoke.Run(ctx, cfg)
	if result.KeyID == "" {
		return err
	}
	if printed := v.show(result); printed != nil {
		return printed
	}
	return err
}

// findID finds the CKA_ID of the key that an argument names. A ring in which nothing
// tells the states of its keys has keys that can be revoked all the same.
func (s *session) findID(ctx context.Context, name string) (kek.ID, error) {
	ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	ring, keys, err := s.ring(ctx)
	if ring == nil {
		if len(keys) == 0 {
			return "", err
		}
		ring = &kek.Ring{Label: s.cfg.KeyRing.Label, Keys: keys}
	}
	key, err := findKey(ring, name)
	return key.ID, err
}

// watched finds the nodes, and how many kekds there must be: one for each API server. A
// cluster that does not answer, or is none, must not hold up a revocation: then this
// node alone is watched, and the others look at the ring on their own.
func (v *revoker) watched(ctx context.Context, s *session) (found []nodes.Node, kekds int, err error) {
	kekds = len(s.cfg.Cluster.APIServers)
	if len(v.nodes.named(s.cfg)) > 0 {
		found, err = v.nodes.find(ctx, s.cfg, nil)
		return found, 0, err // the administrator knows which they are
	}
	c, err := v.kube.connect()
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		if servers, err := c.APIServers(limited); err == nil {
			kekds = max(kekds, len(servers))
		}
		if found, err = v.nodes.find(limited, s.cfg, c); err == nil {
			return found, kekds, nil
		}
	}
	v.note("kekctl: warning: no cluster to find the nodes in, so only this one is watched; name them with --node (%s)", oneLine(err))
	found, err = v.nodes.find(ctx, s.cfg, nil)
	return found, kekds, err
}

// noteObjects says how much will be unreadable.
func (v *revoker) noteObjects(ctx context.Context, key kek.Info) {
	report, err := v.etcd.take(ctx)
	if err != nil {
		v.note("etcd could not be read, so it is not known what is encrypted under it: %s", oneLine(err))
		return
	}
	if uses := report.Under(key.Ring, key.ID); uses.None() {
		v.note("No object in etcd is encrypted under it.")
	} else {
		v.note("%s; they become unreadable.", text.Line(uses.String()))
	}
}

// show prints what was done and what each node was seen to do.
func (v *revoker) show(result revoke.Result) error {
	refusing, encrypting := 0, 0
	for _, n := range result.Nodes {
		switch {
		case !n.Refuses:
			v.note("kekctl: error: %s was not seen to refuse the key: %s", n.Node, n.Problem)
			continue
		case n.Problem != "":
			v.note("kekctl: error: %s: %s", n.Node, n.Problem)
		default:
			encrypting++
		}
		refusing++
	}
	err := v.print(result, func(w io.Writer) {
		if result.Revoked != "" {
			row(w, "revoked", result.Revoked)
		} else {
			row(w, "not revoked", result.KeyID)
		}
		if result.Successor != "" {
			row(w, "successor", result.Successor)
		}
		row(w, "refused by", fmt.Sprintf("%d of %d nodes", refusing, len(result.Nodes)))
		row(w, "encrypting", fmt.Sprintf("%d of %d nodes", encrypting, len(result.Nodes)))
		row(w, "seconds", fmt.Sprintf("%.1f", result.Seconds))
	})
	if err == nil && result.Revoked != "" {
		v.note(`A kube-apiserver that runs keeps what it has unwrapped until it is restarted, and can
still read what is encrypted under the key. Run kekctl rewrap now, then restart every
kube-apiserver.`)
	}
	return err
}
