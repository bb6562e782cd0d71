// Package rewrap has kube-apiserver write objects anew that do not stand under the
// primary KEK. kube-apiserver does that by itself whenever an object is updated,
// even if the update changes nothing, so two ways lead there: its own storage
// version migration, and updates that change nothing, one by one. Neither touches
// what an object holds. etcd, not kube-apiserver, is asked what is left to do: so
// what was interrupted goes on where it was, and what either way skips is found.
package rewrap

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"golang.org/x/time/rate"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"kekd/internal/inventory"
	"kekd/internal/kek"
)

// Store is the cluster's etcd.
type Store interface {
	Take(ctx context.Context, opts inventory.Options) (*inventory.Report, error)
	Visit(ctx context.Context, opts inventory.Options, visit func(inventory.Object) error) (inventory.Pass, error)
}

// Method says how objects are written anew.
type Method string

// The methods.
const (
	// Auto migrates where the cluster can, and updates what is left.
	Auto Method = "auto"
	// Migration creates a StorageVersionMigration for each resource. The cluster
	// paces it.
	Migration Method = "migration"
	// Update sends an empty patch for each object.
	Update Method = "update"
)

// Config says what is to be done. All fields but Resources are required.
type Config struct {
	Store    Store
	Kube     kubernetes.Interface
	Metadata metadata.Interface
	// Ring and Primary name the key that everything is to stand under.
	Ring    string
	Primary kek.ID
	// Resources are taken beside those that have an object under a key of the ring
	// already. They are spelled as in inventory.Object.
	Resources []string
	Method    Method
	// Rate bounds the updates per second. Migrations do not heed it.
	Rate float64
	// Begin hears what is going to be done, be it nothing. An error ends it here.
	Begin func(context.Context, *Plan) error
	// Note hears what happens, one line at a time.
	Note func(string)
	// Progress hears how far a part of the work is, often.
	Progress func(what string, done, total int64)
}

// Result is what was done and what is left. It makes JSON.
type Result struct {
	// Found is how many objects did not stand under the primary.
	Found int64 `json:"found"`
	// Migrated are the resources that were migrated.
	Migrated []string `json:"migrated,omitempty"`
	// Updated is how many objects were updated one by one.
	Updated int64 `json:"updated"`
	// Left is how many objects do not stand under the primary at the end.
	Left int64 `json:"left"`
	// Objects are the first maxListed of them, with the reason.
	Objects []Left `json:"objects,omitempty"`
}

// Left is an object that does not stand under the primary at the end.
type Left struct {
	// Key is the object's key in etcd.
	Key    string `json:"key"`
	Reason string `json:"reason"`
}

const (
	// batchSize is how many objects are remembered at a time, some 200 bytes each.
	batchSize = 50_000
	// maxListed bounds what is listed at the end, and how many objects may fail.
	maxListed = 1000
	// maxRounds is how often etcd is read and what is stale updated, apart from what
	// the batches are too small for. Objects that are stale again each time are
	// written by somebody under another key.
	maxRounds = 3
)

// Run does it, and returns what was done also beside an error. When ctx ends, the
// object in hand is finished. Objects that could not be written anew are no
// error: see Result.Left.
func Run(ctx context.Context, cfg Config) (Result, error) {
	report, err := cfg.Store.Take(ctx, cfg.reading())
	if err != nil {
		return Result{}, err
	}
	plan, err := cfg.plan(ctx, report)
	if err != nil {
		return Result{}, err
	}
	if err := cfg.Begin(ctx, plan); err != nil {
		return Result{}, err
	}
	r := &run{
		Config: cfg, plan: plan,
		limiter: rate.NewLimiter(rate.Limit(cfg.Rate), 1),
		failed:  map[string]string{},
		result:  Result{Found: plan.Stale, Left: plan.Stale},
	}
	err = r.run(ctx)
	if ctx.Err() != nil {
		r.note("What is done stays done: the same command goes on with the rest.")
		err = fmt.Errorf("interrupted with up to %d of %d objects left: %w", r.result.Left, r.result.Found, context.Cause(ctx))
	}
	return r.result, err
}

func (c *Config) reading() inventory.Options {
	return inventory.Options{Progress: func(done, total int64) { c.Progress("inventory", done, total) }}
}

func (c *Config) note(format string, args ...any) { c.Note(fmt.Sprintf(format, args...)) }

// run is a Run in progress.
type run struct {
	Config
	plan    *Plan
	limiter *rate.Limiter
	// failed are the objects that could not be updated and are not tried again,
	// with the reason, by key.
	failed map[string]string
	// failures counts the objects that failed in a row.
	failures int
	result   Result
}

func (r *run) run(ctx context.Context) error {
	if r.plan.Stale == 0 {
		return nil
	}
	if err := r.migrateAll(ctx); err != nil {
		return err
	}
	rounds := maxRounds + int(r.plan.Stale/batchSize)
	for round := 0; ; round++ {
		rest := ""
		switch {
		case r.Method == Migration:
			rest = "the migration left it out"
		case round == rounds:
			rest = "it was written anew, but not under the primary"
		}
		objects, err := r.look(ctx, rest)
		if err != nil || len(objects) == 0 {
			return err
		}
		if err := r.updateAll(ctx, objects); err != nil {
			return err
		}
	}
}

// object is one that is to be updated.
type object struct {
	inventory.Object
	target target
}

// errFull ends a look at etcd when the batch is full.
var errFull = fmt.Errorf("%d objects are enough for now", batchSize)

// look reads etcd and returns the first objects that are to be updated. Those that
// cannot be are listed in the result, and all others as well if there is a reason
// to do nothing with the rest. When it returns no object, the result is final.
func (r *run) look(ctx context.Context, rest string) ([]object, error) {
	var objects []object
	var left int64
	var listed []Left
	_, err := r.Store.Visit(ctx, r.reading(), func(o inventory.Object) error {
		resource := r.plan.find(o.Resource)
		if resource == nil || o.Under(r.Ring, r.Primary) {
			return nil
		}
		reason := r.reason(o, resource, rest)
		switch {
		case reason != "":
			left++
			if len(listed) < maxListed {
				listed = append(listed, Left{Key: o.Key, Reason: reason})
			}
		case len(objects) == batchSize:
			return errFull
		default:
			objects = append(objects, object{o, resource.target})
		}
		return nil
	})
	switch {
	case errors.Is(err, errFull): // and so the count is not whole
	case err != nil:
		return nil, err
	default:
		r.result.Left, r.result.Objects = left+int64(len(objects)), listed
	}
	return objects, nil
}

// reason says why an object is not updated; empty if it is.
func (r *run) reason(o inventory.Object, resource *Resource, rest string) string {
	switch failed := r.failed[o.Key]; {
	case o.Class == inventory.Unparsable:
		return o.Problem
	case failed != "":
		return failed
	case resource.Problem != "":
		return resource.Problem
	case !resource.target.fits(o.Path):
		return "its key in etcd is not that of an object of the API"
	}
	return rest
}

// maxText cuts what others have to say, in bytes.
const maxText = 500

// clean makes one line that is fit to print of what a server, or a webhook behind
// it, has to say.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsGraphic(r) {
			return r
		}
		return ' '
	}, text[:min(len(text), maxText)])
	return strings.Join(strings.Fields(text), " ")
}
