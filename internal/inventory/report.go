package inventory

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"kekd/internal/kek"
)

// Bounds that keep a report small whatever etcd holds. A cluster has few KEKs and
// some hundred resources; an attacker can write as many key_ids as he likes.
const (
	// maxStandings bounds the distinct keys and providers of one resource, and
	// maxStandingsTotal of all resources together.
	maxStandings      = 100
	maxStandingsTotal = 10_000
	maxResources      = 5_000
	// maxName is the longest name of a resource, in bytes: two DNS names.
	maxName    = 2*253 + 1
	maxSamples = 20
	// maxSampleKey cuts the keys of samples, in bytes; those of kube-apiserver
	// are shorter.
	maxSampleKey = 1024
)

// Unlisted takes the objects of resources beyond the bounds.
const Unlisted = "(unlisted)"

// Report is an inventory. Its size is bounded whatever etcd holds.
type Report struct {
	// Endpoint and Prefix name the cluster's own etcd. Stores say all that was read.
	Endpoint string    `json:"endpoint"`
	Prefix   string    `json:"prefix"`
	Began    time.Time `json:"began"`
	Seconds  float64   `json:"seconds"`
	Pass
	Stores  []StoreRead `json:"stores"`
	Objects int64       `json:"objects"`
	// Totals sums up the resources.
	Totals []Count `json:"totals"`
	// Resources are sorted by name.
	Resources []Resource `json:"resources"`
	// Unparsable are the first of the unparsable objects.
	Unparsable []Sample `json:"unparsable,omitempty"`
}

// StoreRead is an etcd that was read, the cluster's own first.
type StoreRead struct {
	Endpoint string `json:"endpoint"`
	// Prefix is what all keys that were read begin with.
	Prefix string `json:"prefix"`
	// Overrides are the resources that kube-apiserver keeps in this etcd because of
	// --etcd-servers-overrides, as that flag spells them.
	Overrides []string `json:"overrides,omitempty"`
	Pass
}

// Resource is the part of a report about one resource.
type Resource struct {
	// Resource is as in Object; it may hold anything that is valid in a key of etcd.
	Resource string `json:"resource"`
	Objects  int64  `json:"objects"`
	// Counts add up to Objects.
	Counts []Count `json:"counts"`
}

// Count is how many objects have the same standing. The fields are as in Object.
type Count struct {
	Standing
	Objects int64 `json:"objects"`
}

// Standing is what is around an object. Encrypted objects whose key or
// provider is beyond the bounds have neither here.
type Standing struct {
	Class    Class  `json:"class"`
	Provider string `json:"provider,omitempty"`
	KeyID    string `json:"keyID,omitempty"`
}

// Sample is an unparsable object.
type Sample struct {
	Key     string `json:"key"`
	Problem string `json:"problem"`
}

// Uses is how many objects may need a KEK.
type Uses struct {
	// Objects are those whose key_id names it.
	Objects int64 `json:"objects"`
	// Unclear are those that may be encrypted under it, or under any other key: they
	// cannot be parsed, or their key_id is beyond the report's bounds.
	Unclear int64 `json:"unclear"`
	// Resources has the sum of both for each resource that has some.
	Resources map[string]int64 `json:"resources"`
}

// None reports that no object can need the KEK.
func (u Uses) None() bool { return u.Objects+u.Unclear == 0 }

// String says how many objects need the KEK, or may.
func (u Uses) String() string {
	counts := make([]string, 0, len(u.Resources))
	for _, r := range slices.Sorted(maps.Keys(u.Resources)) {
		counts = append(counts, fmt.Sprintf("%d of %s", u.Resources[r], r))
	}
	text := fmt.Sprintf("%d objects are encrypted under it", u.Objects)
	if u.Unclear > 0 {
		text += fmt.Sprintf(", and %d may be, since kekctl cannot tell their key (kekctl inventory shows why)", u.Unclear)
	}
	return text + ": " + strings.Join(counts, ", ")
}

// Under returns how many objects are encrypted, or may be, under the KEK with this
// ring label and CKA_ID.
func (r *Report) Under(ring string, id kek.ID) Uses {
	uses := Uses{Resources: map[string]int64{}}
	for _, resource := range r.Resources {
		for _, c := range resource.Counts {
			switch {
			case c.unclear(ring):
				uses.Unclear += c.Objects
			case c.encrypted() && under(c.KeyID, ring, id):
				uses.Objects += c.Objects
			default:
				continue
			}
			uses.Resources[resource.Resource] += c.Objects
		}
	}
	return uses
}

// encrypted: by a KMS v2 provider, though the object may be damaged.
func (s Standing) encrypted() bool { return s.Class == KMSv2 || s.Class == Unparsable }

// unclear: nothing says that the object is not encrypted under a given key of the
// ring. What cannot be parsed counts for the key that it names if it names one of
// the ring.
func (s Standing) unclear(ring string) bool {
	switch s.Class {
	case KMSv2:
		return s.KeyID == ""
	case Unparsable:
		named, _, err := kek.ParseKeyID(s.KeyID)
		return (err != nil || named != ring) && !ofOtherType(s.Provider)
	}
	return false
}

// Take visits all objects and counts them.
func (s *Store) Take(ctx context.Context, opts Options) (*Report, error) {
	began := time.Now()
	t := tally{resources: map[string]standings{}}
	passes, err := s.visit(ctx, opts, func(o Object) error {
		t.add(o)
		return nil
	})
	if err != nil {
		return nil, err
	}
	r := t.report()
	r.Endpoint, r.Prefix, r.Pass = s.sources[0].endpoint, s.prefix, total(passes)
	for i, src := range s.sources {
		r.Stores = append(r.Stores, StoreRead{src.endpoint, s.prefix, src.resources, passes[i]})
	}
	r.Began, r.Seconds = began.UTC(), time.Since(began).Seconds()
	return r, nil
}

type standings map[Standing]int64

// tally counts objects.
type tally struct {
	resources map[string]standings
	samples   []Sample
	listed    int // standings with a provider, of all resources
}

func (t *tally) add(o Object) {
	name := o.Resource
	if t.resources[name] == nil && (len(name) > maxName || len(t.resources) >= maxResources) {
		name = Unlisted
	}
	counts := t.resources[name]
	if counts == nil {
		counts = standings{}
		t.resources[name] = counts
	}
	s := Standing{o.Class, o.Provider, o.KeyID}
	if _, known := counts[s]; !known && s.Provider != "" {
		if len(counts) >= maxStandings || t.listed >= maxStandingsTotal {
			s = Standing{Class: o.Class}
		} else {
			t.listed++
		}
	}
	counts[s]++
	if o.Class == Unparsable && len(t.samples) < maxSamples {
		t.samples = append(t.samples, Sample{o.Key[:min(len(o.Key), maxSampleKey)], o.Problem})
	}
}

func (t *tally) report() *Report {
	r := &Report{Resources: []Resource{}, Unparsable: t.samples}
	totals := standings{}
	for _, name := range slices.Sorted(maps.Keys(t.resources)) {
		resource := Resource{Resource: name, Counts: t.resources[name].counts()}
		for _, c := range resource.Counts {
			resource.Objects += c.Objects
			totals[c.Standing] += c.Objects
		}
		r.Objects += resource.Objects
		r.Resources = append(r.Resources, resource)
	}
	r.Totals = totals.counts()
	return r
}

// counts sorts the standings by class, and within a class the most frequent first.
func (s standings) counts() []Count {
	out := make([]Count, 0, len(s))
	for standing, n := range s {
		out = append(out, Count{standing, n})
	}
	slices.SortFunc(out, func(a, b Count) int {
		return cmp.Or(cmp.Compare(a.Class, b.Class), cmp.Compare(b.Objects, a.Objects),
			cmp.Compare(a.Provider, b.Provider), cmp.Compare(a.KeyID, b.KeyID))
	})
	return out
}
