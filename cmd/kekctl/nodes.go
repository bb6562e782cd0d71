package main

import (
	"context"

	"github.com/spf13/pflag"

	"kekd/internal/admin/nodes"
	"kekd/internal/cluster"
	"kekd/internal/config"
)

// nodeFlags say where the running kekds are.
type nodeFlags struct{ urls []string }

func (f *nodeFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.urls, "node", nil, "`URL` of a kekd's HTTP endpoint, once for each control-plane node (default: cluster.nodes; else the kekd pods in the cluster, or else the kekd of the configuration)")
}

// named are the nodes that the command line or else the configuration names.
func (f *nodeFlags) named(cfg config.Config) []string {
	if len(f.urls) > 0 {
		return f.urls
	}
	return cfg.Cluster.Nodes
}

// find returns the nodes: those that are named; else the pods of the cluster, if
// there is one; else this machine's.
func (f *nodeFlags) find(ctx context.Context, cfg config.Config, c *cluster.Cluster) ([]nodes.Node, error) {
	var found []nodes.Node
	for _, u := range f.named(cfg) {
		n, err := namedNode(u)
		if err != nil {
			return nil, err
		}
		found = append(found, n)
	}
	if len(found) > 0 {
		return found, nil
	}
	if cfg.HTTP.Address == "" {
		return nil, codeError{exitUsage, "--node: is required, since http.address turns off the endpoint of this node"}
	}
	if c != nil {
		pods, err := nodes.InCluster(ctx, c, cfg.HTTP.Address)
		for _, p := range pods {
			found = append(found, p)
		}
		if err != nil || len(found) > 0 {
			return found, err
		}
	}
	return []nodes.Node{nodes.Local(cfg.HTTP.Address)}, nil
}

// namedNode reads a --node.
func namedNode(s string) (nodes.HTTP, error) {
	n, err := nodes.Parse(s)
	if err != nil {
		return n, codeError{exitUsage, "--node: " + err.Error()}
	}
	return n, nil
}
