// Package nodes asks the running kekds what they know: which key each encrypts
// under, when it read the ring, and how its clock differs from ours.
package nodes

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

	"kekd/internal/admin/text"
	"kekd/internal/cluster"
	"kekd/internal/httpapi"
)

// AskTimeout bounds one question to a node.
const AskTimeout = 3 * time.Second

// Node is a running kekd.
type Node interface {
	// Name is what kekctl calls the node: its address, or its name in the cluster.
	Name() string
	// Ask has the node look at the ring and returns what it knows then. Its clock is
	// ahead of ours, give or take uncertainty.
	Ask(ctx context.Context) (s *httpapi.Status, ahead, uncertainty time.Duration, err error)
}

// HTTP is a kekd that is asked at its HTTP endpoint.
type HTTP struct {
	name   string
	url    string // without a path
	client *http.Client
}

// Local is the kekd that listens on this address of this machine.
func Local(address string) HTTP {
	return HTTP{name: address, url: "http://" + address, client: http.DefaultClient}
}

// Parse reads the URL of a kekd's HTTP endpoint, or an address alone.
func Parse(s string) (HTTP, error) {
	address := s
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return HTTP{}, fmt.Errorf("must be the URL of a kekd's HTTP endpoint, such as http://10.0.0.1:8780, got %q", s)
	}
	return HTTP{name: u.Host, url: u.Scheme + "://" + u.Host, client: http.DefaultClient}, nil
}

// InCluster finds the kekd pods of the cluster, each listening on this address of
// its own machine.
func InCluster(ctx context.Context, c *cluster.Cluster, address string) ([]HTTP, error) {
	_, number, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(number)
	if err != nil {
		return nil, err
	}
	pods, err := c.Pods(ctx, cluster.KekdNamespace, cluster.KekdSelector)
	if err != nil {
		return nil, err
	}
	var found []HTTP
	for _, p := range pods {
		found = append(found, HTTP{name: p.Node, url: "http://" + address, client: p.HTTPClient(port)})
	}
	return found, nil
}

// Name implements Node.
func (n HTTP) Name() string { return n.name }

// URL is the endpoint's, without a path.
func (n HTTP) URL() string { return n.url }

// Status reads /status, from the node's memory.
func (n HTTP) Status(ctx context.Context) (*httpapi.Status, error) {
	return n.request(ctx, http.MethodGet, "/status")
}

// Ask implements Node. The status is made at the end of the node's look at the
// ring, somewhere between our question and its answer, so half of that time is what
// the offset may be wrong by.
func (n HTTP) Ask(ctx context.Context) (s *httpapi.Status, ahead, uncertainty time.Duration, err error) {
	begun := time.Now()
	s, err = n.request(ctx, http.MethodPost, "/refresh")
	if err != nil {
		return nil, 0, 0, err
	}
	uncertainty = time.Since(begun) / 2
	return s, s.Time.Sub(begun.Add(uncertainty)), uncertainty, nil
}

func (n HTTP) request(ctx context.Context, method, path string) (*httpapi.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, AskTimeout)
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

// Report is what one node answered.
type Report struct {
	Node   Node
	Status *httpapi.Status // nil with Err
	Err    error
	// Ahead is how far the node's clock is ahead of ours, give or take Uncertainty.
	Ahead, Uncertainty time.Duration
}

// AskAll asks all nodes at the same time and returns their answers in the nodes'
// order.
func AskAll(ctx context.Context, all []Node) []Report {
	reports := make([]Report, len(all))
	var wait sync.WaitGroup
	for i, n := range all {
		wait.Go(func() { reports[i] = Ask(ctx, n) })
	}
	wait.Wait()
	return reports
}

// Ask asks one node.
func Ask(ctx context.Context, n Node) Report {
	r := Report{Node: n}
	r.Status, r.Ahead, r.Uncertainty, r.Err = n.Ask(ctx)
	return r
}

// Distinct is how many kekds the reports are of. The same one may have been asked by
// several addresses; one that did not answer counts as another.
func Distinct(reports []Report) int {
	n, seen := 0, map[string]bool{}
	for _, r := range reports {
		if r.Status != nil && r.Status.Node != "" {
			if seen[r.Status.Node] {
				continue
			}
			seen[r.Status.Node] = true
		}
		n++
	}
	return n
}

// Key finds a key in what a node knows; false where it does not know it.
func (r Report) Key(id string) (httpapi.Key, bool) {
	if r.Status == nil || r.Status.KeyRing == nil {
		return httpapi.Key{}, false
	}
	for _, k := range r.Status.KeyRing.Keys {
		if k.ID == id {
			return k, true
		}
	}
	return httpapi.Key{}, false
}

// Trouble is what is wrong with a node, in one line; empty if nothing is.
func (r Report) Trouble() string {
	switch {
	case r.Err != nil:
		return text.Of(r.Err)
	case r.Status.RingProblem != "":
		return text.Line(r.Status.RingProblem)
	}
	return text.Line(r.Status.Health.Reason)
}
