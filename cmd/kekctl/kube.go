package main

import (
	"context"

	"github.com/spf13/pflag"

	"kekd/internal/cluster"
)

// kubeFlags say which cluster.
type kubeFlags struct {
	kubeconfig string
	context    string
}

func (f *kubeFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "the cluster's kubeconfig `file` (default $KUBECONFIG, else ~/.kube/config, else /etc/kubernetes/admin.conf)")
	flags.StringVar(&f.context, "context", "", "the `context` of the kubeconfig to use")
}

func (f *kubeFlags) connect() (*cluster.Cluster, error) {
	return cluster.Connect(f.kubeconfig, f.context)
}

// apiServers are those at the URLs of --apiserver, or else those that the cluster
// lists.
func apiServers(ctx context.Context, c *cluster.Cluster, urls []string) ([]*cluster.APIServer, error) {
	if len(urls) > 0 {
		return c.AddressedAPIServers(urls...)
	}
	return c.APIServers(ctx)
}
