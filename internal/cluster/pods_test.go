package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

func TestPods(t *testing.T) {
	pod := func(name, app string, phase corev1.PodPhase) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: KekdNamespace, Name: name, Labels: map[string]string{"app.kubernetes.io/name": app}},
			Spec:       corev1.PodSpec{NodeName: "node-of-" + name},
			Status:     corev1.PodStatus{Phase: phase},
		}
	}
	c := &Cluster{Kube: fake.NewClientset(pod("a", "kekd", corev1.PodRunning), pod("b", "kekd", corev1.PodPending), pod("c", "etcd", corev1.PodRunning))}
	got, err := c.Pods(t.Context(), KekdNamespace, KekdSelector)
	if err != nil {
		t.Fatal(err)
	}
	want := []Pod{{Namespace: "kube-system", Name: "a", Node: "node-of-a"}}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Pod{})); diff != "" {
		t.Errorf("Pods (-want +got):\n%s", diff)
	}
}

// portForward serves plain SPDY, as servers before 1.31 do; the newer way is
// tried against a real kube-apiserver. It connects to the address, whatever the
// port, and says what a kubelet says when it cannot.
func portForward(address string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v1/namespaces/kube-system/pods/kekd-1/portforward", func(w http.ResponseWriter, r *http.Request) {
		if _, err := httpstream.Handshake(r, w, []string{"portforward.k8s.io"}); err != nil {
			return
		}
		created := make(chan httpstream.Stream, 2)
		session := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, _ <-chan struct{}) error {
			created <- s
			return nil
		})
		if session == nil {
			return
		}
		defer session.Close()
		problem, data := <-created, <-created
		conn, err := new(net.Dialer).DialContext(r.Context(), "tcp", address)
		if err != nil {
			_, _ = fmt.Fprintf(problem, "connect to port %s: refused", data.Headers().Get(corev1.PortHeader))
			_, _ = problem.Close(), data.Close()
		} else {
			go func() {
				_, _ = io.Copy(data, conn)
				_, _ = problem.Close(), data.Close()
			}()
			go func() {
				_, _ = io.Copy(conn, data)
				_ = conn.Close()
			}()
		}
		<-session.CloseChan()
	})
	return mux
}

func kekdPod(c *Cluster) Pod {
	return Pod{Namespace: KekdNamespace, Name: "kekd-1", Node: "node-1", cluster: c}
}

func TestDial(t *testing.T) {
	// The test's own listener stands for a pod: it says back what it hears, then hangs up.
	pod, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	go func() {
		for {
			conn, err := pod.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				b := make([]byte, 5)
				if _, err := io.ReadFull(conn, b); err == nil {
					_, _ = conn.Write(b)
				}
			}()
		}
	}()
	c := serve(t, "x", portForward(pod.Addr().String()))
	conn, err := kekdPod(c).Dial(t.Context(), 8780)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read after the deadline: %v", err)
	}
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v, want hello and the end", got, err)
	}
}

func TestDialWhereNothingListens(t *testing.T) {
	closed, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	c := serve(t, "x", portForward(closed.Addr().String()))
	client := kekdPod(c).HTTPClient(8780)
	_, err = client.Get("http://127.0.0.1:8780/status")
	// Whether net/http meets it in a read or in a write is a matter of chance.
	const want = `forward port 8780 of pod kube-system/kekd-1 on node node-1: connect to port 8780: refused`
	if err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("GET: %v, want %s", err, want)
	}
}

func TestDialRefused(t *testing.T) {
	c := serve(t, "x", http.NotFoundHandler())
	_, err := kekdPod(c).Dial(t.Context(), 8780)
	if err == nil {
		t.Fatal("Dial succeeds without a pod")
	}
	t.Log(err)
}

func TestDialGivesUp(t *testing.T) {
	hanging := make(chan struct{})
	c := serve(t, "x", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hanging }))
	t.Cleanup(func() { close(hanging) })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := kekdPod(c).Dial(ctx, 8780); !errors.Is(err, context.Canceled) {
		t.Errorf("Dial: %v, want it cancelled", err)
	}
}
