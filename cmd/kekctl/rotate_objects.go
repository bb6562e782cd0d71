package main

import (
	"context"
	"fmt"

	"kekd/internal/admin/rotate"
	"kekd/internal/inventory"
	"kekd/internal/kek"
)

// rotated is what etcd holds, for a rotation.
type rotated struct{ *rotator }

// CheckWriters implements rotate.Objects.
func (r rotated) CheckWriters(ctx context.Context, keyID string) (rotate.Checked, error) {
	ring, _, err := kek.ParseKeyID(keyID)
	if err != nil {
		return rotate.Checked{}, err
	}
	report, err := r.witnesses.etcd.take(ctx)
	if err != nil {
		return rotate.Checked{}, err
	}
	var checked rotate.Checked
	for _, resource := range report.Resources {
		before := checked.Objects
		for _, c := range resource.Counts {
			if label, _, err := kek.ParseKeyID(c.KeyID); c.Class == inventory.KMSv2 && err == nil && label == ring {
				checked.Objects += c.Objects
			}
		}
		if checked.Objects > before {
			checked.Resources = append(checked.Resources, resource.Resource)
		}
	}
	return checked, nil
}

// Rewrap implements rotate.Objects. It does not ask again.
func (r rotated) Rewrap(ctx context.Context, keyID string) (rotate.Rewrapped, error) {
	work := rewrapping{app: r.app, cluster: r.cluster, servers: r.servers, how: r.how, etcd: &r.witnesses.etcd, yes: true, keyID: keyID}
	result, err := work.run(ctx)
	done := rotate.Rewrapped{Found: result.Found, Left: result.Left, Report: result}
	for _, o := range result.Objects {
		done.Failures = append(done.Failures, fmt.Sprintf("%s: %s", plain(o.Key), o.Reason))
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
		n, _ := report.Under(ring.Label, k.ID)
		uses[k.ID] = rotate.Uses{Objects: n}
	}
	return uses, nil
}

// members are the members of etcd.
func (f *etcdFlags) members(ctx context.Context) ([]rotate.Member, error) {
	return []rotate.Member{etcdMember{f}}, nil
}

// etcdMember is etcd, as far as one of its endpoints answers.
type etcdMember struct{ flags *etcdFlags }

// Name implements rotate.Member.
func (m etcdMember) Name() string { return etcdWitness(m).Name() }

// Reach implements rotate.Member.
func (m etcdMember) Reach(ctx context.Context) error { return m.flags.check(ctx) }
