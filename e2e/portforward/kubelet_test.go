package portforward

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
)

// nodeName is the node that the stand-in plays.
const nodeName = "node-1"

// kubelet is a stand-in for a node's kubelet and container runtime, as far as
// port-forwards need one: kube-apiserver connects to it, and the runtime's own
// streaming code serves it. All pods are in the host's network.
type kubelet struct {
	mu sync.Mutex
	// forwarded are the pods and ports of the connections so far. Guarded by mu.
	forwarded []string
}

// startKubelet starts it and makes its node.
func startKubelet(t *testing.T, kube kubernetes.Interface) *kubelet {
	t.Helper()
	k := new(kubelet)
	mux := http.NewServeMux()
	mux.HandleFunc("/portForward/{namespace}/{pod}", func(w http.ResponseWriter, r *http.Request) {
		portforward.ServePortForward(w, r, k, r.PathValue("pod"), "", nil, time.Minute, 30*time.Second, portforward.SupportedProtocols)
	})
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	address, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseInt(address.Port(), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	node, err := kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create the node: %v", err)
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address.Hostname()}}
	node.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(port)
	if _, err := kube.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatalf("set the node's status: %v", err)
	}
	return k
}

// runPod makes a pod on the node that looks as if it ran.
func runPod(t *testing.T, kube kubernetes.Interface, name string, labels map[string]string) {
	t.Helper()
	pods := kube.CoreV1().Pods(metav1.NamespaceSystem)
	pod, err := pods.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: corev1.PodSpec{
			NodeName:                     nodeName,
			HostNetwork:                  true,
			AutomountServiceAccountToken: new(false),
			Containers:                   []corev1.Container{{Name: "main", Image: "none"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create the pod %s: %v", name, err)
	}
	pod.Status.Phase = corev1.PodRunning
	if _, err := pods.UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatalf("set the status of the pod %s: %v", name, err)
	}
}

// PortForward implements portforward.PortForwarder.
func (k *kubelet) PortForward(ctx context.Context, pod, _ string, port int32, stream io.ReadWriteCloser) error {
	k.mu.Lock()
	k.forwarded = append(k.forwarded, fmt.Sprintf("%s:%d", pod, port))
	k.mu.Unlock()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(conn, stream)
		_ = conn.Close()
	})
	both.Go(func() {
		_, _ = io.Copy(stream, conn)
		_ = stream.Close()
	})
	both.Wait()
	return nil
}

// saw tells whether there was a connection to the port of the pod.
func (k *kubelet) saw(pod, port string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Contains(k.forwarded, pod+":"+port)
}

// connections is how many there were so far.
func (k *kubelet) connections() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.forwarded)
}
