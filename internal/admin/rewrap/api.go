package rewrap

import (
	"context"

	storagemigrationv1 "k8s.io/api/storagemigration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"kekd/internal/cluster"
)

// api is what a cluster serves.
type api struct{ cluster.Resources }

// discover asks the cluster what it serves.
func (c *Config) discover(ctx context.Context) (api, error) {
	served, err := cluster.ServedBy(ctx, c.Kube)
	return api{served}, err
}

// migrates: the cluster serves StorageVersionMigration.
func (a api) migrates() bool {
	migrations := storagemigrationv1.SchemeGroupVersion.WithResource("storageversionmigrations")
	return a.Resources[migrations.GroupResource()].GroupVersionResource == migrations
}

// find returns what serves a resource, if its objects can be rewritten.
func (a api) find(name string) (cluster.Served, bool) {
	s, ok := a.Find(name)
	return s, ok && s.Patched
}

// ignoredByMigrations: migrations go by the garbage collector's list of objects,
// which leaves out events.
func ignoredByMigrations(r schema.GroupVersionResource) bool {
	return r.Resource == "events" && (r.Group == "" || r.Group == "events.k8s.io")
}
