package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"kekd/internal/cluster"
	"kekd/internal/config"
	"kekd/internal/httpapi"
)

// node is a running kekd, as its HTTP endpoint shows it.
type node struct {
	name   string
	url    string // without a path
	client *http.Client
}

// localNode is the kekd that the configuration describes.
func localNode(cfg config.Config) node {
	return node{name: cfg.HTTP.Address, url: "http://" + cfg.HTTP.Address, client: http.DefaultClient}
}

// status reads /status.
func (n node) status(ctx context.Context) (*httpapi.Status, error) {
	return n.ask(ctx, http.MethodGet, "/status")
}

// refresh has the node look at the ring now, and returns what it knows then.
func (n node) refresh(ctx context.Context) (*httpapi.Status, error) {
	return n.ask(ctx, http.MethodPost, "/refresh")
}

func (n node) ask(ctx context.Context, method, path string) (*httpapi.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, n.url+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := n.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	s := new(httpapi.Status)
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(s); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return s, nil
}

// nodeFlags say where the running kekds are.
type nodeFlags struct{ urls []string }

func (f *nodeFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.urls, "node", nil, "`URL` of a kekd's HTTP endpoint, once for each control-plane node (default: the kekd pods in the cluster, or else the kekd of the configuration)")
}

// find returns the nodes: those that are named; else the pods of the cluster, if
// there is one; else this machine's.
func (f *nodeFlags) find(ctx context.Context, cfg config.Config, c *cluster.Cluster) ([]node, error) {
	var nodes []node
	for _, u := range f.urls {
		n, err := namedNode(u)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
	if len(nodes) > 0 {
		return nodes, nil
	}
	if cfg.HTTP.Address == "" {
		return nil, codeError{exitUsage, "--node: is required, since http.address turns off the endpoint of this node"}
	}
	if c != nil {
		_, text, err := net.SplitHostPort(cfg.HTTP.Address)
		if err != nil {
			return nil, err
		}
		port, err := strconv.Atoi(text)
		if err != nil {
			return nil, err
		}
		pods, err := c.Pods(ctx, cluster.KekdNamespace, cluster.KekdSelector)
		if err != nil {
			return nil, err
		}
		for _, p := range pods {
			nodes = append(nodes, node{name: p.Node, url: "http://" + cfg.HTTP.Address, client: p.HTTPClient(port)})
		}
	}
	if len(nodes) > 0 {
		return nodes, nil
	}
	return []node{localNode(cfg)}, nil
}

// namedNode reads a --node: a URL, or an address alone.
func namedNode(s string) (node, error) {
	text := s
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return node{}, codeError{exitUsage, fmt.Sprintf("--node: must be the URL of a kekd's HTTP endpoint, such as http://10.0.0.1:8780, got %q", s)}
	}
	return node{name: u.Host, url: u.Scheme + "://" + u.Host, client: http.DefaultClient}, nil
}

// report is what one node answered.
type report struct {
	node   node
	status *httpapi.Status
	err    error
	// ahead is how far the node's clock is ahead of ours, give or take half of the
	// time that the answer took.
	ahead time.Duration
}

// askAll has all nodes look at the ring, at the same time, and returns their
// answers in the nodes' order.
func askAll(ctx context.Context, nodes []node) []report {
	reports := make([]report, len(nodes))
	var all sync.WaitGroup
	for i, n := range nodes {
		all.Go(func() {
			begun := time.Now()
			s, err := n.refresh(ctx)
			r := report{node: n, status: s, err: err}
			if err == nil {
				// The status is made at the end of the look, so nearer to the answer.
				r.ahead = time.Until(s.Time)
				if waited := time.Since(begun); r.ahead < 0 && r.ahead > -waited {
					r.ahead = 0
				}
			}
			reports[i] = r
		})
	}
	all.Wait()
	return reports
}

// key finds a key in what a node knows; false where it does not know it.
func (r report) key(keyID string) (httpapi.Key, bool) {
	if r.status == nil || r.status.KeyRing == nil {
		return httpapi.Key{}, false
	}
	for _, k := range r.status.KeyRing.Keys {
		if k.KeyID == keyID {
			return k, true
		}
	}
	return httpapi.Key{}, false
}

// trouble says what a node has to say that is not well; empty if nothing.
func (r report) trouble() string {
	switch {
	case r.err != nil:
		return oneLine(r.err)
	case r.status.RingProblem != "":
		return line(r.status.RingProblem)
	case r.status.Health.Reason != "":
		return line(r.status.Health.Reason)
	}
	return ""
}
