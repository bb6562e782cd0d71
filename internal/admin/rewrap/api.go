package rewrap

import (
	"context"
	"fmt"
	"slices"
	"strings"

	storagemigrationv1 "k8s.io/api/storagemigration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
)

// api is what a cluster serves.
type api struct {
	targets map[schema.GroupResource]target
	// migrates: StorageVersionMigration is among it.
	migrates bool
}

// target is a resource of the API.
type target struct {
	schema.GroupVersionResource
	namespaced bool
}

// discover asks the cluster what it serves. An API group whose own server is away
// is no error: such a server keeps nothing in this etcd.
func (c *Config) discover(ctx context.Context) (*api, error) {
	lists, err := discovery.ServerPreferredResourcesWithContext(ctx, discovery.ToDiscoveryInterfaceWithContext(c.Kube.Discovery()))
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) {
		return nil, fmt.Errorf("ask the cluster for its resources: %w", err)
	}
	a := &api{targets: map[schema.GroupResource]target{}}
	for _, list := range lists {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, fmt.Errorf("ask the cluster for its resources: %w", err)
		}
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "patch") {
				continue
			}
			a.targets[schema.GroupResource{Group: version.Group, Resource: r.Name}] =
				target{version.WithResource(r.Name), r.Namespaced}
			if version == storagemigrationv1.SchemeGroupVersion && r.Kind == "StorageVersionMigration" {
				a.migrates = true
			}
		}
	}
	return a, nil
}

// find returns what serves a resource, named as in inventory.Object: a plural with
// a group, or the plural of a resource of kube-apiserver's own, whose group the key
// in etcd does not tell. Then the core group goes first, as it does for events,
// which two groups serve.
func (a *api) find(name string) (target, bool) {
	plural, group, custom := strings.Cut(name, ".")
	if custom {
		t, ok := a.targets[schema.GroupResource{Group: group, Resource: plural}]
		return t, ok
	}
	var found []target
	for resource, t := range a.targets {
		if resource.Resource == plural && rank(resource.Group) < foreign {
			found = append(found, t)
		}
	}
	if len(found) == 0 {
		return target{}, false
	}
	return slices.MinFunc(found, func(a, b target) int {
		if d := rank(a.Group) - rank(b.Group); d != 0 {
			return d
		}
		return strings.Compare(a.Group, b.Group)
	}), true
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

// ignoredByMigrations: migrations go by the garbage collector's list of objects,
// which leaves out events.
func (t target) ignoredByMigrations() bool {
	return t.Resource == "events" && (t.Group == "" || t.Group == "events.k8s.io")
}

// fits reports whether the path behind the resource in a key is that of an object.
func (t target) fits(path []string) bool {
	parts := 1
	if t.namespaced {
		parts = 2
	}
	return len(path) == parts && !slices.Contains(path, "")
}
