package inventory

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestResource(t *testing.T) {
	t.Parallel()
	type parts struct {
		Resource string
		Path     []string
	}
	for _, c := range []struct {
		key  string
		want parts
	}{
		{"/registry/secrets/ns/name", parts{"secrets", []string{"ns", "name"}}},
		{"/registry/namespaces/ns", parts{"namespaces", []string{"ns"}}},
		{"/registry/minions/node1", parts{"nodes", []string{"node1"}}},
		{"/registry/controllers/ns/x", parts{"replicationcontrollers", []string{"ns", "x"}}},
		{"/registry/ingress/ns/x", parts{"ingresses", []string{"ns", "x"}}},
		{"/registry/services/specs/ns/x", parts{"services", []string{"ns", "x"}}},
		{"/registry/services/endpoints/ns/x", parts{"endpoints", []string{"ns", "x"}}},
		{"/registry/services/others/x", parts{"services", []string{"others", "x"}}},
		{"/registry/ranges/serviceips", parts{"ranges", []string{"serviceips"}}},
		{"/registry/masterleases/10.0.0.1", parts{"masterleases", []string{"10.0.0.1"}}},
		{
			"/registry/apiextensions.k8s.io/customresourcedefinitions/widgets.example.com",
			parts{"customresourcedefinitions.apiextensions.k8s.io", []string{"widgets.example.com"}},
		},
		{"/registry/example.com/widgets/ns/x", parts{"widgets.example.com", []string{"ns", "x"}}},
		{"/registry/example.com/widgets/x", parts{"widgets.example.com", []string{"x"}}},
		{"/registry/example.com/x", parts{"example.com", []string{"x"}}},
		{"/registry/health", parts{"health", []string{}}},
		{"/registry/", parts{"", []string{}}},
		{"/registry//", parts{"", []string{""}}},
	} {
		s := newStore(nil, "", "registry/", nil)
		var got parts
		got.Resource, got.Path = s.split(c.key)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.key, diff)
		}
	}
}
