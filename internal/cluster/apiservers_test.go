package cluster

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// kubernetesSlice is an EndpointSlice of the service kubernetes.
func kubernetesSlice(name string, port int, addresses ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceDefault, Name: name,
			Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"},
		},
		Ports: []discoveryv1.EndpointPort{{Port: new(int32(port))}},
	}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

func TestAPIServers(t *testing.T) {
	tests := []struct {
		name   string
		slices []*discoveryv1.EndpointSlice
		want   []string
	}{
		{"none listed", nil, []string{"https://kubeconfig:6443"}},
		{"several, of both families and one twice", []*discoveryv1.EndpointSlice{
			kubernetesSlice("a", 6443, "10.0.0.2", "10.0.0.1"),
			kubernetesSlice("b", 6443, "fd00::1", "10.0.0.1"),
		}, []string{"https://10.0.0.1:6443", "https://10.0.0.2:6443", "https://[fd00::1]:6443"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := serve(t, "kubeconfig", http.NotFoundHandler())
			c.config.Host = "kubeconfig:6443"
			kube := fake.NewClientset()
			for _, s := range tt.slices {
				if err := kube.Tracker().Add(s); err != nil {
					t.Fatal(err)
				}
			}
			c.Kube = kube
			found, err := c.APIServers(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range found {
				got = append(got, s.URL)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("APIServers (-want +got):\n%s", diff)
			}
		})
	}
}

// A node's certificate is of the cluster's authority, too, and has its address.
func TestAPIServersMustProveTheirName(t *testing.T) {
	for name, allowed := range map[string]bool{"kubernetes.default.svc": true, "node-1": false} {
		t.Run(name, func(t *testing.T) {
			c := serve(t, name, http.NotFoundHandler())
			own, err := url.Parse(c.Server())
			if err != nil {
				t.Fatal(err)
			}
			port, err := strconv.Atoi(own.Port())
			if err != nil {
				t.Fatal(err)
			}
			c.Kube = fake.NewClientset(kubernetesSlice("a", port, own.Hostname()))
			found, err := c.APIServers(t.Context())
			if err != nil || len(found) != 1 || found[0].URL != c.Server() {
				t.Fatalf("APIServers = %v, %v, want %s", found, err, c.Server())
			}
			_, err = found[0].KeyInUse(t.Context())
			answered := strings.Contains(err.Error(), "does not encrypt with a KMS v2 provider")
			if answered != allowed {
				t.Errorf("KeyInUse: %v, want an answer: %v", err, allowed)
			}
			// Given by the administrator it is taken under its own name.
			found, err = c.AddressedAPIServers(c.Server())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := found[0].KeyInUse(t.Context()); !strings.Contains(err.Error(), "does not encrypt with a KMS v2 provider") {
				t.Errorf("KeyInUse at a given URL: %v", err)
			}
		})
	}
}

func TestAddressedAPIServers(t *testing.T) {
	c := serve(t, "x", http.NotFoundHandler())
	for _, u := range []string{"10.0.0.1:6443", "http://10.0.0.1:6443", "https://", "https://%"} {
		if _, err := c.AddressedAPIServers(u); err == nil || !strings.Contains(err.Error(), "--apiserver: must be https://HOST:PORT") {
			t.Errorf("AddressedAPIServers(%q): %v", u, err)
		}
	}
}
