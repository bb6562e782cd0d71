// Package readcheck reads the objects that are encrypted under a ring through the
// API server, one by one, and names those that it cannot decrypt. It changes
// nothing. The API server decrypts each object from etcd anew, not from its watch
// cache, but with a seed that it may have in memory: whether the HSM can still
// unwrap that seed is not tried.
package readcheck

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/metadata"

	"kekd/internal/admin/text"
	"kekd/internal/admin/wait"
	"kekd/internal/cluster"
	"kekd/internal/inventory"
	"kekd/internal/kek"
)

// Store is the cluster's etcd.
type Store interface {
	Visit(ctx context.Context, opts inventory.Options, visit func(inventory.Object) error) (inventory.Pass, error)
	Read(ctx context.Context, keys []string) (map[string]inventory.Object, error)
}

// Config says what to read. All fields but Reading are required.
type Config struct {
	Store     Store
	Metadata  metadata.Interface
	Resources cluster.Resources
	// Ring is the ring's label.
	Ring string
	// Rate bounds the reads per second.
	Rate float64
	// Failed hears of each object that cannot be read, one at a time.
	Failed func(Failure) error
	// Reading says how etcd is read.
	Reading inventory.Options
}

// Failure is an object that could not be read.
type Failure struct {
	// Key is the object's key in etcd.
	Key      string `json:"key"`
	Resource string `json:"resource"`
	KeyID    string `json:"keyID,omitempty"`
	Reason   string `json:"reason"`
}

// Result counts what was read.
type Result struct {
	Read    int64 `json:"read"`
	Failed  int64 `json:"failed"`
	Deleted int64 `json:"deleted"` // in the meantime
}

const (
	// readers is how many objects are read at a time.
	readers = 8
	// tries is how often an object is read that fails for a reason that may pass.
	tries = 3
	// readTimeout bounds one try.
	readTimeout = 30 * time.Second
)

// Run reads all objects.
func Run(ctx context.Context, cfg Config) (Result, error) {
	limiter := rate.NewLimiter(rate.Limit(cfg.Rate), 1)
	todo, outcomes := make(chan inventory.Object), make(chan outcome)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(todo)
		_, err := cfg.Store.Visit(ctx, cfg.Reading, func(o inventory.Object) error {
			if !cfg.concerns(o) {
				return nil
			}
			select {
			case todo <- o:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
		return err
	})
	group.Go(func() error {
		defer close(outcomes)
		workers, ctx := errgroup.WithContext(ctx)
		for range readers {
			workers.Go(func() error {
				for o := range todo {
					got, err := cfg.read(ctx, limiter, o)
					if err != nil {
						return err
					}
					select {
					case outcomes <- got:
					case <-ctx.Done():
						return context.Cause(ctx)
					}
				}
				return nil
			})
		}
		return workers.Wait()
	})
	var result Result
	group.Go(func() error {
		for o := range outcomes {
			if err := result.add(o, cfg.Failed); err != nil {
				return err
			}
		}
		return nil
	})
	err := group.Wait()
	return result, err
}

// outcome is what became of one object: read, unless deleted or with a reason.
type outcome struct {
	object  inventory.Object
	deleted bool
	reason  string
}

func (r *Result) add(o outcome, failed func(Failure) error) error {
	switch {
	case o.deleted:
		r.Deleted++
	case o.reason == "":
		r.Read++
	default:
		r.Failed++
		return failed(Failure{o.object.Key, o.object.Resource, o.object.KeyID, o.reason})
	}
	return nil
}

// concerns: the object is encrypted under a key of the ring, or may be.
func (cfg Config) concerns(o inventory.Object) bool {
	if o.Unclear(cfg.Ring) {
		return true
	}
	ring, _, err := kek.ParseKeyID(o.KeyID)
	return err == nil && ring == cfg.Ring
}

// read reads an object. An error ends everything.
func (cfg Config) read(ctx context.Context, limiter *rate.Limiter, o inventory.Object) (outcome, error) {
	resource, served := cfg.Resources.Find(o.Resource)
	switch {
	case !served:
		return outcome{object: o, reason: "the API serves no resource " + text.Short(o.Resource)}, nil
	case !resource.Fits(o.Path):
		return outcome{object: o, reason: "its key in etcd is not that of an object of the API"}, nil
	}
	for try := 1; ; try++ {
		if err := limiter.Wait(ctx); err != nil {
			return outcome{}, err
		}
		err := cfg.get(ctx, resource, o)
		switch {
		case err == nil:
			return outcome{object: o}, nil
		case ctx.Err() != nil:
			return outcome{}, context.Cause(ctx)
		case apierrors.IsNotFound(err):
			return cfg.missing(ctx, o)
		case !passing(err):
			return outcome{object: o, reason: text.Short(err.Error())}, nil
		case try == tries:
			return outcome{object: o, reason: fmt.Sprintf("%s (tried %d times)", text.Short(err.Error()), tries)}, nil
		}
		if err := wait.Pause(ctx, time.Duration(try)*time.Second); err != nil {
			return outcome{}, err
		}
	}
}

// get reads an object's metadata, for which the API server has to decrypt all of it.
// Without a resourceVersion it does not answer from its watch cache.
func (cfg Config) get(ctx context.Context, resource cluster.Served, o inventory.Object) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	var client metadata.ResourceInterface = cfg.Metadata.Resource(resource.GroupVersionResource)
	if resource.Namespaced {
		client = cfg.Metadata.Resource(resource.GroupVersionResource).Namespace(o.Path[0])
	}
	_, err := client.Get(ctx, o.Path[len(o.Path)-1], metav1.GetOptions{})
	return err
}

// missing: the API server does not find the object. Either it was deleted, or etcd
// has it and it cannot be reached through the API.
func (cfg Config) missing(ctx context.Context, o inventory.Object) (outcome, error) {
	found, err := cfg.Store.Read(ctx, []string{o.Key})
	if err != nil {
		return outcome{}, err
	}
	if _, there := found[o.Key]; there {
		return outcome{object: o, reason: "the API server does not find it, although etcd has it"}, nil
	}
	return outcome{object: o, deleted: true}, nil
}

// passing reports whether an error may pass. That an object cannot be decrypted is
// an internal error like many others, so only its text tells.
func passing(err error) bool {
	text := err.Error()
	if strings.Contains(text, "not transformable") || strings.Contains(text, "unable to transform key") {
		return strings.Contains(text, "code = Unavailable") || strings.Contains(text, "code = DeadlineExceeded")
	}
	if _, ok := errors.AsType[*apierrors.StatusError](err); !ok {
		return true // a network
	}
	return apierrors.IsTooManyRequests(err) || apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) ||
		apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err)
}
