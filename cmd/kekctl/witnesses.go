package main

import (
	"context"
	"strings"

	"github.com/spf13/pflag"

	"kekd/internal/admin/evidence"
	"kekd/internal/cluster"
	"kekd/internal/inventory"
)

// witnessFlags say who could know of a key's use.
type witnessFlags struct {
	nodes   nodeFlags
	servers []string
	kube    kubeFlags
	etcd    etcdFlags
}

func (f *witnessFlags) add(a *app, flags *pflag.FlagSet) {
	f.nodes.add(flags)
	addServers(flags, &f.servers)
	f.kube.add(flags)
	f.etcd.kube = &f.kube
	f.etcd.add(a, flags)
}

// addServers adds the flag that names API servers.
func addServers(flags *pflag.FlagSet, urls *[]string) {
	flags.StringArrayVar(urls, "apiserver", nil, "`URL` of a kube-apiserver, once for each (default: cluster.apiServers, or else those that the cluster lists)")
}

// find finds the witnesses. One that cannot be found is a finding, too.
func (f *witnessFlags) find(ctx context.Context, s *session) evidence.Witnesses {
	_ = f.etcd.complete() // for its name; what is wrong with it, reading etcd reports
	w := evidence.Witnesses{Refresh: s.cfg.KeyRing.Refresh, Etcd: etcdWitness{&f.etcd}}
	missing := func(witness string, err error) {
		w.Missing = append(w.Missing, evidence.Finding{Witness: witness, Verdict: evidence.Unknown, Detail: "could not be found: " + oneLine(err)})
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	c, err := f.kube.connect()
	if err != nil {
		missing("apiservers", err)
	} else {
		f.findServers(ctx, s, c, &w, missing)
	}
	if w.Nodes, err = f.nodes.find(ctx, s.cfg, c); err != nil {
		missing("nodes", err)
	}
	if c != nil && len(f.nodes.named(s.cfg)) > 0 {
		// Not all may be named. Where the pods cannot be listed, that there must be one
		// kekd for each API server still tells.
		if pods, err := c.Pods(ctx, cluster.KekdNamespace, cluster.KekdSelector); err == nil {
			w.Kekds = len(pods)
		}
	}
	return w
}

// findServers finds the API servers: those that are named, which must be as many as
// the cluster lists at least, or else those that it lists.
func (f *witnessFlags) findServers(ctx context.Context, s *session, c *cluster.Cluster, w *evidence.Witnesses, missing func(string, error)) {
	urls := f.servers
	if len(urls) == 0 {
		urls = s.cfg.Cluster.APIServers
	}
	listed, err := c.APIServers(ctx)
	found := listed
	if len(urls) > 0 {
		w.Named, w.Listed = true, len(listed) // none if they could not be listed
		found, err = c.AddressedAPIServers(urls...)
	}
	if err != nil {
		missing("apiservers", err)
	}
	for _, server := range found {
		w.APIServers = append(w.APIServers, server)
	}
}

// etcdWitness reads etcd where the flags say.
type etcdWitness struct{ flags *etcdFlags }

// Name implements evidence.Etcd.
func (e etcdWitness) Name() string { return strings.Join(e.flags.endpoints, ",") }

// Take implements evidence.Etcd.
func (e etcdWitness) Take(ctx context.Context, _ inventory.Options) (*inventory.Report, error) {
	return e.flags.take(ctx)
}
