package cluster

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

// serviceName is what every API server of a cluster is called: in-cluster
// clients reach them all as this service.
const serviceName = "kubernetes.default.svc"

// APIServer is one kube-apiserver of a cluster. It is safe for concurrent use.
type APIServer struct {
	// URL is https://HOST:PORT, with a path where the kubeconfig has one.
	URL string

	client   *http.Client
	metadata metadata.Interface
}

// Name returns the server's URL.
func (s *APIServer) Name() string { return s.URL }

// Metadata returns a client of this server and no other.
func (s *APIServer) Metadata() metadata.Interface { return s.metadata }

// APIServers finds all API servers of the cluster: the endpoints of the service
// "kubernetes". A cluster that does not list them has the kubeconfig's server only.
func (c *Cluster) APIServers(ctx context.Context) ([]*APIServer, error) {
	found, err := c.Kube.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx,
		metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
	if err != nil {
		return nil, fmt.Errorf("list the API servers of %s: %w", c.Server(), err)
	}
	addresses := endpoints(found.Items)
	if len(addresses) == 0 {
		own, _, err := rest.DefaultServerUrlFor(c.config)
		if err != nil {
			return nil, fmt.Errorf("--kubeconfig: %w", err)
		}
		return servers(c.config, []string{own.String()})
	}
	config := rest.CopyConfig(c.config)
	if config.ServerName == "" {
		// The name, not the address, is what tells an API server from a node: the
		// cluster's authority signs certificates for the nodes' addresses, too.
		config.ServerName = serviceName
	}
	return servers(config, addresses)
}

// AddressedAPIServers are the API servers at the URLs, each under its own name.
func (c *Cluster) AddressedAPIServers(urls ...string) ([]*APIServer, error) {
	for _, u := range urls {
		if parsed, err := url.Parse(u); err != nil || parsed.Scheme != "https" || parsed.Host == "" {
			return nil, fmt.Errorf("--apiserver: must be https://HOST:PORT, got %q", u)
		}
	}
	return servers(c.config, urls)
}

func servers(config *rest.Config, urls []string) ([]*APIServer, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make a client for the API servers: %w", err)
	}
	var all []*APIServer
	for _, u := range urls {
		s := &APIServer{URL: strings.TrimSuffix(u, "/"), client: client}
		own := metadata.ConfigFor(config)
		own.Host = s.URL
		if s.metadata, err = metadata.NewForConfigAndClient(own, client); err != nil {
			return nil, fmt.Errorf("make a client for %s: %w", s.URL, err)
		}
		all = append(all, s)
	}
	return all, nil
}

// endpoints are the distinct URLs of the slices, sorted.
func endpoints(found []discoveryv1.EndpointSlice) []string {
	var urls []string
	for _, slice := range found {
		for _, port := range slice.Ports {
			if port.Port == nil {
				continue
			}
			for _, endpoint := range slice.Endpoints {
				for _, address := range endpoint.Addresses {
					urls = append(urls, "https://"+net.JoinHostPort(address, strconv.Itoa(int(*port.Port))))
				}
			}
		}
	}
	slices.Sort(urls)
	return slices.Compact(urls)
}
