package rewrap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"kekd/internal/cluster"
	"kekd/internal/inventory"
	"kekd/internal/kek"
)

// Plan is what is going to be done.
type Plan struct {
	// Resources are those that have an object under a key of the ring, those that
	// belong to the ring, and those that were asked for, by name.
	Resources []Resource
	// Absent are those that belong to the ring and have no object at all.
	Absent []string
	// Stale is how many of their objects are not under the primary.
	Stale int64
	// Providers are the names under which kube-apiserver knows the plugin, as far
	// as the objects tell.
	Providers []string
	// Untouched are the other resources that have an object under a KMS v2 provider.
	Untouched []string
}

// Resource is what is going to be done with a resource.
type Resource struct {
	// Name is as in inventory.Object.
	Name    string
	Objects int64
	// Stale is how many are not under the primary, and Counts what those are under.
	Stale  int64
	Counts []inventory.Count
	// Method is Migration or Update. With Auto, what a migration leaves is updated.
	Method Method
	// Problem says why nothing can be done; empty if something can.
	Problem string

	problemKind Kind
	target      cluster.Served
	// ours is how many objects are under a key of the ring.
	ours int64
	// checked: every API server was seen to write this resource under the primary.
	checked bool
}

// find returns the resource of that name; nil if it is not touched.
func (p *Plan) find(name string) *Resource {
	i, ok := slices.BinarySearchFunc(p.Resources, name, func(r Resource, name string) int { return strings.Compare(r.Name, name) })
	if !ok {
		return nil
	}
	return &p.Resources[i]
}

// stale are the resources with objects that can be rewritten and are to be.
func (p *Plan) stale() []*Resource {
	var found []*Resource
	for i := range p.Resources {
		if r := &p.Resources[i]; r.Stale > 0 && r.Problem == "" {
			found = append(found, r)
		}
	}
	return found
}

// updates is how many objects are going to be updated, apart from what migrations
// leave.
func (p *Plan) updates() int64 {
	var n int64
	for _, r := range p.Resources {
		if r.Method == Update {
			n += r.Stale
		}
	}
	return n
}

// makePlan reads etcd and decides what is to be done with what it holds.
func (r *run) makePlan(ctx context.Context) error {
	report, err := r.Store.Take(ctx, r.reading())
	if err != nil {
		return err
	}
	api, err := r.discover(ctx)
	if err != nil {
		return err
	}
	if r.Method == Migration && !api.migrates() {
		return errors.New("--method: the cluster does not serve StorageVersionMigration (storagemigration.k8s.io/v1); use update")
	}
	named := map[string]bool{}
	for _, name := range r.Resources {
		if _, served := api.find(name); !served {
			return fmt.Errorf("--resource: no API serves %q; name resources as kekctl inventory does", name)
		}
		named[name] = true
	}
	belonging, err := r.belonging(ctx, api)
	if err != nil {
		return err
	}
	r.plan = r.planFor(report, api, named, belonging)
	return r.checkBelonging(report, named, belonging)
}

func (r *run) planFor(report *inventory.Report, api api, named map[string]bool, b belonging) *Plan {
	p := new(Plan)
	absent := maps.Clone(b.resources)
	for _, found := range report.Resources {
		delete(absent, found.Resource)
		resource := Resource{Name: found.Resource, Objects: found.Objects}
		others := false
		for _, count := range found.Counts {
			switch {
			case r.ours(count.Standing):
				resource.ours += count.Objects
				p.Providers = append(p.Providers, count.Provider)
			case count.Class == inventory.KMSv2:
				others = true
			}
			if !(inventory.Object{Class: count.Class, KeyID: count.KeyID}).Under(r.ring, r.primary) {
				resource.Stale += count.Objects
				resource.Counts = append(resource.Counts, count)
			}
		}
		switch {
		case named[resource.Name] || b.resources[resource.Name] || resource.ours > 0:
			r.choose(&resource, api)
			p.Resources = append(p.Resources, resource)
			p.Stale += resource.Stale
		case others:
			p.Untouched = append(p.Untouched, resource.Name)
		}
	}
	slices.Sort(p.Providers)
	p.Providers = slices.Compact(p.Providers)
	p.Absent = slices.Sorted(maps.Keys(absent))
	return p
}

// ours reports whether something is under a key of the ring.
func (r *run) ours(s inventory.Standing) bool {
	if s.Class != inventory.KMSv2 {
		return false
	}
	ring, _, err := kek.ParseKeyID(s.KeyID)
	return err == nil && ring == r.ring
}

// choose finds the resource's API and the method.
func (c *Config) choose(r *Resource, api api) {
	var served bool
	r.problemKind = Unserved
	r.target, served = api.find(r.Name)
	switch {
	case !served:
		r.Problem = "no API serves it; of its own records kube-apiserver writes some anew within minutes"
	case c.Method == Update || !api.migrates():
		r.Method = Update
	case !ignoredByMigrations(r.target.GroupVersionResource):
		r.Method = Migration
	case c.Method == Migration:
		r.Problem, r.problemKind = "it cannot be migrated; use --method update", LeftOut
	default:
		r.Method = Update
	}
}
