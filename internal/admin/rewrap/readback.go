package rewrap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kekd/internal/admin/text"
	"kekd/internal/inventory"
)

const (
	// readBackEvery and readBackAfter bound what is written before it is read back.
	readBackEvery = 100
	readBackAfter = 10 * time.Second
)

// written notes that an object was updated, and reads back what was updated lately
// when it is enough.
func (r *run) written(ctx context.Context, o object) error {
	r.batch = append(r.batch, o)
	if len(r.batch) < readBackEvery && time.Since(r.readBackAt) < readBackAfter {
		return nil
	}
	return r.readBack(ctx)
}

// readBack reads what was updated lately, and stops at what got worse.
func (r *run) readBack(ctx context.Context) error {
	defer addSince(&r.result.CheckSeconds, time.Now())
	batch := r.batch
	r.batch, r.readBackAt = nil, time.Now()
	return r.compare(ctx, batch)
}

// readSamples reads some of the objects that are being migrated.
func (r *run) readSamples(ctx context.Context) error {
	defer addSince(&r.result.CheckSeconds, time.Now())
	for _, s := range r.samples {
		if err := r.compare(ctx, s.stale.objects); err != nil {
			return err
		}
	}
	return nil
}

// compare reads objects and stops at the first that is worse than it was.
func (r *run) compare(ctx context.Context, before []object) error {
	if len(before) == 0 {
		return nil
	}
	now, err := r.read(ctx, sortedKeys(before))
	if err != nil {
		return err
	}
	for _, o := range before {
		after, exists := now[o.Key]
		if exists && r.rank(after) < r.rank(o.Object) {
			return r.accuse(ctx, object{after, o.resource}, r.describe(o.Standing()))
		}
	}
	return nil
}

// spoiled reports whether something wrote the object under no key of the ring after
// the API servers were checked.
func (r *run) spoiled(o inventory.Object, resource *Resource) bool {
	return resource.checked && o.ModRevision > r.base && r.rank(o) < rankRing
}

// accuse is the error of an object that got worse. It finds out which API server it
// was, and has another bring the object back.
func (r *run) accuse(ctx context.Context, o object, before string) error {
	_, _, err := r.checkObject(context.WithoutCancel(ctx), o, r.APIServers)
	if wrong := (*wrongError)(nil); errors.As(err, &wrong) {
		return fmt.Errorf("stopped, because an object got worse: %w", err)
	}
	was := ""
	if before != "" {
		was = " it was written " + before + " before, and"
	}
	return fmt.Errorf("stopped, because an object got worse: %s:%s something wrote it %s; "+
		"all API servers that are known write under the primary, so name every one with --apiserver", text.Short(o.Key), was, r.describe(o.Standing()))
}
