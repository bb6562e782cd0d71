package rewrap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"kekd/internal/admin/text"
	"kekd/internal/inventory"
)

// Encrypted is what an EncryptionConfiguration says.
type Encrypted struct {
	Path string
	// Resources are those whose first provider is kekd, spelled as there.
	Resources []string
}

// Memory keeps what is remembered between runs. A state.Dir is one.
type Memory interface {
	Load(name string, v any) (bool, error)
	Save(name string, v any) error
}

// memoryName is the name under which the resources of the ring are remembered.
const memoryName = "resources"

// remembered are the resources of the last run that ended well.
type remembered struct {
	Ring      string    `json:"ring"`
	Resources []string  `json:"resources"`
	Read      time.Time `json:"read"`
}

// belonging are the resources that belong to the ring, and what says so.
type belonging struct {
	resources map[string]bool
	source    string
}

// belonging asks the configuration, else the EncryptionConfiguration, else the
// memory, which resources belong to the ring.
func (r *run) belonging(ctx context.Context, api api) (belonging, error) {
	b := belonging{resources: map[string]bool{}}
	if len(r.Configured) > 0 {
		b.source = "cluster.resources"
		b.add(api, r.Configured)
		return b, nil
	}
	if r.Encrypted != nil {
		found, err := r.Encrypted(ctx)
		if err != nil {
			r.note("cannot read the EncryptionConfiguration: %s", text.Short(err.Error()))
		}
		for _, e := range found {
			b.source = e.Path
			b.add(api, e.Resources)
		}
		if len(b.resources) > 0 {
			return b, nil
		}
	}
	if r.Memory == nil {
		return b, nil
	}
	var last remembered
	known, err := r.Memory.Load(memoryName, &last)
	if err != nil {
		return b, err
	}
	if known && last.Ring == r.ring {
		b.source = "the inventory of " + last.Read.Format(time.RFC3339)
		b.add(api, last.Resources)
	}
	return b, nil
}

// add takes names as an EncryptionConfiguration spells them, with the group of the
// resource, which inventory.Object has for custom resources only. Wildcards name
// nothing: they also match resources that are not encrypted.
func (b *belonging) add(api api, names []string) {
	for _, name := range names {
		if !strings.Contains(name, "*") {
			b.resources[api.Spelled(name)] = true
		}
	}
}

// checkBelonging fails if a resource has left the ring, or nothing is under it.
func (r *run) checkBelonging(report *inventory.Report, named map[string]bool, b belonging) error {
	var problems []error
	under := int64(0)
	for _, resource := range r.plan.Resources {
		under += resource.ours
		if resource.ours > 0 || named[resource.Name] || !b.resources[resource.Name] {
			continue
		}
		problems = append(problems, fmt.Errorf("%s: belongs to ring %s by %s, and none of its %d objects is under the ring (%s); "+
			"put the kms provider of kekd first for it in the EncryptionConfiguration of every API server, or name it to encrypt it anew: --resource %s",
			resource.Name, r.ring, b.source, resource.Objects, describeCounts(resource.Counts), resource.Name))
	}
	if len(problems) == 0 && under == 0 && len(named) == 0 {
		problems = append(problems, fmt.Errorf("nothing in etcd is under ring %s (%s); "+
			"name what kube-apiserver is to encrypt with kekd, once for each: --resource secrets", r.ring, describeCounts(report.Totals)))
	}
	return errors.Join(problems...)
}

// describeCounts tells what objects are under.
func describeCounts(counts []inventory.Count) string {
	if len(counts) == 0 {
		return "there is no object"
	}
	var parts []string
	for _, c := range counts {
		words := []string{strconv.FormatInt(c.Objects, 10), string(c.Class)}
		for _, name := range []string{c.Provider, c.KeyID} {
			if name != "" {
				words = append(words, text.Short(name))
			}
		}
		parts = append(parts, strings.Join(words, " "))
	}
	return strings.Join(parts, ", ")
}

// remember notes which resources belong to the ring, now that all their objects were
// seen under it.
func (r *run) remember() {
	if r.Memory == nil {
		return
	}
	now := remembered{Ring: r.ring, Read: time.Now().UTC().Truncate(time.Second)}
	for _, resource := range r.plan.Resources {
		now.Resources = append(now.Resources, resource.Name)
	}
	now.Resources = append(now.Resources, r.plan.Absent...)
	slices.Sort(now.Resources)
	if err := r.Memory.Save(memoryName, now); err != nil {
		r.note("cannot remember which resources belong to the ring: %s", text.Short(err.Error()))
	}
}
