package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"kekd/internal/admin/rewrap"
	"kekd/internal/admin/rotate"
	"kekd/internal/inventory"
	"kekd/internal/kek"
)

// rotated is what etcd holds, for a rotation.
type rotated struct{ *rotator }

// Check implements rotate.Objects.
func (r rotated) Check(ctx context.Context, keyID string) (rotate.Checked, error) {
	return r.check(ctx, keyID, func(ctx context.Context, cfg rewrap.Config) (rewrap.Writers, error) {
		plan, err := rewrap.Look(ctx, cfg)
		return rewrap.Writers{Plan: plan}, err
	})
}

// CheckWriters implements rotate.Objects.
func (r rotated) CheckWriters(ctx context.Context, keyID string) (rotate.Checked, error) {
	return r.check(ctx, keyID, rewrap.CheckWriters)
}

func (r rotated) check(ctx context.Context, keyID string, look func(context.Context, rewrap.Config) (rewrap.Writers, error)) (rotate.Checked, error) {
	label, _, err := kek.ParseKeyID(keyID)
	if err != nil {
		return rotate.Checked{}, err
	}
	work := r.rewrapping(keyID)
	store, err := work.etcd.open(ctx)
	if err != nil {
		return rotate.Checked{}, err
	}
	defer store.Close()
	show := display{app: r.app}
	defer show.clear()
	writers, err := look(ctx, work.config(store, &show))
	if err != nil {
		return rotate.Checked{}, err
	}
	checked := rotate.Checked{Writes: len(writers.Written)}
	for _, resource := range writers.Plan.Resources {
		checked.Resources = append(checked.Resources, plain(resource.Name))
		checked.Objects += underRing(resource, label)
	}
	for _, name := range slices.Sorted(maps.Keys(writers.Unchecked)) {
		checked.Unchecked = append(checked.Unchecked, fmt.Sprintf("%s (%s)", plain(name), writers.Unchecked[name]))
	}
	return checked, nil
}

// underRing counts the objects of a resource that are under a key of the ring.
func underRing(r rewrap.Resource, label string) int64 {
	n := r.Objects - r.Stale
	for _, c := range r.Counts {
		if ring, _, err := kek.ParseKeyID(c.KeyID); c.Class == inventory.KMSv2 && err == nil && ring == label {
			n += c.Objects
		}
	}
	return n
}

// rewrapping is the re-encryption of this rotation.
func (r rotated) rewrapping(keyID string) *rewrapping {
	work := &rewrapping{
		app: r.app, cluster: r.cluster, servers: r.servers, how: r.how, etcd: &r.witnesses.etcd, yes: true, keyID: keyID,
	}
	work.readConfig(r.session.cfg)
	work.succession = nil // this rotation is the one that makes keys
	return work
}

// Rewrap implements rotate.Objects. It does not ask again.
func (r rotated) Rewrap(ctx context.Context, keyID string) (rotate.Rewrapped, error) {
	result, err := r.rewrapping(keyID).run(ctx)
	done := rotate.Rewrapped{Found: result.Found, Left: result.Left, Report: result}
	for _, o := range result.Shown {
		done.Failures = append(done.Failures, fmt.Sprintf("%s: %s", plain(o.Key), o.Reason))
	}
	if result.Left > 0 {
		r.noteLeft(result)
	}
	return done, err
}

// Uses implements rotate.Objects.
func (r rotated) Uses(ctx context.Context, ring *kek.Ring) (map[kek.ID]rotate.Uses, error) {
	report, err := r.witnesses.etcd.take(ctx)
	if err != nil {
		return nil, err
	}
	uses := make(map[kek.ID]rotate.Uses, len(ring.Keys))
	for _, k := range ring.Keys {
		u := report.Under(ring.Label, k.ID)
		uses[k.ID] = rotate.Uses{Objects: u.Objects, Unclear: u.Unclear}
	}
	return uses, nil
}

// etcdMembers is etcd with all its members, for a rotation.
type etcdMembers struct{ flags *etcdFlags }

// Name implements rotate.Member.
func (m etcdMembers) Name() string { return "etcd at " + etcdWitness(m).Name() }

// Reach implements rotate.Member: each member must answer. Through the cluster only one
// can be reached.
func (m etcdMembers) Reach(ctx context.Context) error {
	if err := m.flags.check(ctx); err != nil || m.flags.viaCluster {
		return err
	}
	store, err := m.flags.open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	members, err := store.Members(ctx)
	if err != nil {
		return err
	}
	var away []error
	for _, member := range members {
		if member.Err != nil {
			away = append(away, fmt.Errorf("member %s does not answer: %w", member.Name, member.Err))
		}
	}
	return errors.Join(away...)
}
