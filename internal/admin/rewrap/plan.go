package rewrap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"kekd/internal/inventory"
	"kekd/internal/kek"
)

// Plan is what is going to be done.
type Plan struct {
	// Resources are those that have an object under a key of the ring, and those
	// that were asked for, by name.
	Resources []Resource
	// Stale is how many of their objects do not stand under the primary.
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
	// Stale is how many do not stand under the primary, and Counts how they stand.
	Stale  int64
	Counts []inventory.Count
	// Method is Migration or Update. With Auto, what a migration leaves is updated.
	Method Method
	// Problem says why nothing can be done; empty if something can.
	Problem string

	target target
}

// find returns the resource of that name; nil if it is not touched.
func (p *Plan) find(name string) *Resource {
	i, ok := slices.BinarySearchFunc(p.Resources, name, func(r Resource, name string) int { return strings.Compare(r.Name, name) })
	if !ok {
		return nil
	}
	return &p.Resources[i]
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

// plan decides what is to be done with what etcd holds.
func (c *Config) plan(ctx context.Context, report *inventory.Report) (*Plan, error) {
	api, err := c.discover(ctx)
	if err != nil {
		return nil, err
	}
	if c.Method == Migration && !api.migrates {
		return nil, errors.New("--method: the cluster does not serve StorageVersionMigration (storagemigration.k8s.io/v1); use update")
	}
	for _, name := range c.Resources {
		if _, served := api.find(name); !served {
			return nil, fmt.Errorf("--resource: no API serves %q; name resources as kekctl inventory does", name)
		}
	}
	p := new(Plan)
	for _, found := range report.Resources {
		r := Resource{Name: found.Resource, Objects: found.Objects}
		asked, ours, others := slices.Contains(c.Resources, r.Name), false, false
		for _, count := range found.Counts {
			if count.Class == inventory.KMSv2 {
				if ring, _, err := kek.ParseKeyID(count.KeyID); err != nil || ring != c.Ring {
					others = true
				} else {
					ours = true
					p.Providers = append(p.Providers, count.Provider)
				}
			}
			if !(inventory.Object{Class: count.Class, KeyID: count.KeyID}).Under(c.Ring, c.Primary) {
				r.Stale += count.Objects
				r.Counts = append(r.Counts, count)
			}
		}
		switch {
		case asked || ours:
			c.choose(&r, api)
			p.Resources = append(p.Resources, r)
			p.Stale += r.Stale
		case others:
			p.Untouched = append(p.Untouched, r.Name)
		}
	}
	slices.Sort(p.Providers)
	p.Providers = slices.Compact(p.Providers)
	return p, nil
}

// choose finds the resource's API and the method.
func (c *Config) choose(r *Resource, api *api) {
	var served bool
	r.target, served = api.find(r.Name)
	switch {
	case !served:
		r.Problem = "no API serves it; of its own records kube-apiserver writes some anew within minutes"
	case c.Method == Update || !api.migrates:
		r.Method = Update
	case !r.target.ignoredByMigrations():
		r.Method = Migration
	case c.Method == Migration:
		r.Problem = "it cannot be migrated; use --method update"
	default:
		r.Method = Update
	}
}
