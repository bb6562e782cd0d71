package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// Where kekd runs as a static pod.
const (
	KekdNamespace = metav1.NamespaceSystem
	KekdSelector  = "app.kubernetes.io/name=kekd"
)

// Pod is a running pod.
type Pod struct {
	Namespace, Name, Node string

	cluster *Cluster
}

// String names the pod and its node.
func (p Pod) String() string { return fmt.Sprintf("pod %s/%s on node %s", p.Namespace, p.Name, p.Node) }

// Pods finds the running pods of a namespace that have the labels.
func (c *Cluster) Pods(ctx context.Context, namespace, selector string) ([]Pod, error) {
	list, err := c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("list the pods %s of namespace %s: %w", selector, namespace, err)
	}
	var running []Pod
	for _, p := range list.Items {
		if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			running = append(running, Pod{Namespace: p.Namespace, Name: p.Name, Node: p.Spec.NodeName, cluster: c})
		}
	}
	return running, nil
}

// HTTPClient makes a client whose connections all go to a port of the pod,
// whatever the URL's host. Close its idle connections after use.
func (p Pod) HTTPClient(port int) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return p.Dial(ctx, port) },
	}}
}

// Dial opens a connection to a TCP port of the pod, as kubectl port-forward
// does: through the API server and the node's kubelet, which connects from within
// the pod's network. So it reaches what listens on the pod's loopback address,
// and for a pod of the host's network on the host's. That nothing listens shows
// with the first read.
func (p Pod) Dial(ctx context.Context, port int) (net.Conn, error) {
	conn, err := p.dial(ctx, port)
	if err != nil {
		return nil, fmt.Errorf("forward port %d of %s: %w", port, p, err)
	}
	return conn, nil
}

func (p Pod) dial(ctx context.Context, port int) (net.Conn, error) {
	dialer, err := p.dialer()
	if err != nil {
		return nil, err
	}
	// Neither the dialer nor the streams know a context.
	type dialed struct {
		conn net.Conn
		err  error
	}
	done := make(chan dialed, 1)
	go func() {
		conn, err := p.openStreams(dialer, port)
		done <- dialed{conn, err}
	}()
	select {
	case d := <-done:
		return d.conn, d.err
	case <-ctx.Done():
		go func() {
			if d := <-done; d.err == nil {
				_ = d.conn.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

// dialer speaks SPDY over a websocket, which passes proxies that plain SPDY does
// not, and plain SPDY to servers before 1.31, as kubectl does.
func (p Pod) dialer() (httpstream.Dialer, error) {
	config := p.cluster.config
	target := p.cluster.Kube.CoreV1().RESTClient().Post().
		Resource("pods").Namespace(p.Namespace).Name(p.Name).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	plain := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, target)
	tunnel, err := portforward.NewSPDYOverWebsocketDialerForStreaming(target, config)
	if err != nil {
		return nil, err
	}
	return portforward.NewFallbackDialerForStreaming(tunnel, plain, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	}), nil
}

// openStreams begins a session and makes the pair of streams that stands for one
// connection: what goes to and fro, and what the kubelet has to say when it ends.
func (p Pod) openStreams(dialer httpstream.Dialer, port int) (net.Conn, error) {
	session, protocol, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return nil, err
	}
	data, problem, err := streams(session, protocol, port)
	if err != nil {
		_ = session.Close()
		return nil, err
	}
	near, far := net.Pipe()
	c := &podConn{Conn: near, pod: p, port: port}
	go func() {
		_, _ = io.Copy(far, data) // the pod closed the connection, or there was none
		if text, err := io.ReadAll(problem); err == nil && len(text) > 0 {
			problem := string(text)
			c.problem.Store(&problem)
		}
		_ = far.Close()
	}()
	go func() {
		_, _ = io.Copy(data, far) // either side closed the connection
		_ = session.Close()
	}()
	return c, nil
}

func streams(session httpstream.Connection, protocol string, port int) (data, problem httpstream.Stream, err error) {
	if protocol != portforward.PortForwardProtocolV1Name {
		return nil, nil, fmt.Errorf("the server speaks %q, want %q", protocol, portforward.PortForwardProtocolV1Name)
	}
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(port))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	if problem, err = session.CreateStream(headers); err != nil {
		return nil, nil, err
	}
	_ = problem.Close() // for writing
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err = session.CreateStream(headers)
	return data, problem, err
}

// podConn is a connection to a pod, by way of a pipe, which knows deadlines.
type podConn struct {
	net.Conn
	pod  Pod
	port int
	// problem is why the kubelet ended the connection; nil if it did not say. It is
	// set before the pipe's end is closed.
	problem atomic.Pointer[string]
}

// Read implements net.Conn. In place of an end it returns what the kubelet says.
func (c *podConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return n, c.explain(err)
}

// Write implements net.Conn, and tells an end as Read does.
func (c *podConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	return n, c.explain(err)
}

func (c *podConn) explain(err error) error {
	if problem := c.problem.Load(); problem != nil && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe)) {
		return fmt.Errorf("forward port %d of %s: %s", c.port, c.pod, *problem)
	}
	return err
}
