package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
)

// Resources are what a cluster's API serves.
type Resources map[schema.GroupResource]Served

// Served is a resource of the API.
type Served struct {
	schema.GroupVersionResource
	Namespaced bool
	// Patched: its objects can be patched.
	Patched bool
}

// Resources asks the cluster for the resources that can be read one by one.
func (c *Cluster) Resources(ctx context.Context) (Resources, error) {
	return ServedBy(ctx, c.Kube)
}

// ServedBy asks a cluster for the resources that can be read one by one. An API group
// whose own server is away is not an error: such a server keeps nothing in
// kube-apiserver's etcd.
func ServedBy(ctx context.Context, kube kubernetes.Interface) (Resources, error) {
	lists, err := discovery.ServerPreferredResourcesWithContext(ctx, discovery.ToDiscoveryInterfaceWithContext(kube.Discovery()))
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) {
		return nil, fmt.Errorf("ask the cluster for its resources: %w", err)
	}
	served := Resources{}
	for _, list := range lists {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, fmt.Errorf("ask the cluster for its resources: %w", err)
		}
		for _, r := range list.APIResources {
			if slices.Contains(r.Verbs, "get") {
				served[schema.GroupResource{Group: version.Group, Resource: r.Name}] = Served{version.WithResource(r.Name), r.Namespaced, slices.Contains(r.Verbs, "patch")}
			}
		}
	}
	return served, nil
}

// Find returns what serves a resource, named as in inventory.Object: a plural with a
// group, or the plural of a resource of kube-apiserver's own, whose group the key in
// etcd does not tell. Then the core group goes first, as it does for events, which
// two groups serve.
func (r Resources) Find(name string) (Served, bool) {
	plural, group, custom := strings.Cut(name, ".")
	if custom {
		s, ok := r[schema.GroupResource{Group: group, Resource: plural}]
		return s, ok
	}
	best, found := Served{}, false
	for resource, s := range r {
		if resource.Resource != plural || rank(resource.Group) == foreign {
			continue
		}
		if !found || rank(s.Group) < rank(best.Group) || rank(s.Group) == rank(best.Group) && s.Group < best.Group {
			best, found = s, true
		}
	}
	return best, found
}

// Spelled returns the name that inventory.Object has for a resource, which is named here
// with its group, as an EncryptionConfiguration does.
func (r Resources) Spelled(name string) string {
	plural, group, _ := strings.Cut(name, ".")
	if rank(group) == foreign {
		return name
	}
	if s, served := r.Find(plural); served && s.Group == group {
		return plural
	}
	return name
}

// Fits reports whether the path behind the resource in a key of etcd is that of an
// object.
func (s Served) Fits(path []string) bool {
	parts := 1
	if s.Namespaced {
		parts = 2
	}
	return len(path) == parts && !slices.Contains(path, "")
}

// foreign groups are not of kube-apiserver itself.
const foreign = 3

func rank(group string) int {
	switch {
	case group == "":
		return 0
	case !strings.Contains(group, "."):
		return 1
	case strings.HasSuffix(group, ".k8s.io"):
		return 2
	}
	return foreign
}
