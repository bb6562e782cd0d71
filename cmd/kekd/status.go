package main

import (
	"context"

	"kekd/internal/health"
	"kekd/internal/httpapi"
	"kekd/internal/metrics"
	"kekd/internal/rotation"
	"kekd/internal/version"
)

// Report implements httpapi.Source.
func (d *daemon) Report() health.Report { return d.monitor.Report() }

// Refresh implements httpapi.Source. Why a look failed is part of the Status.
func (d *daemon) Refresh(ctx context.Context) { _ = d.watcher.Look(ctx) }

// Status implements httpapi.Source. It reads memory only.
func (d *daemon) Status() httpapi.Status {
	current, _ := d.sealer.Current()
	stats := d.sealer.Stats()
	s := httpapi.Status{
		Time:    now(),
		Health:  d.monitor.Report(),
		Version: version.Read(),
		Seeds: httpapi.Seeds{
			Mode: string(d.cfg.Seeds.Mode), Created: current.SeedCreated, Uses: current.SeedUses, MaxUses: d.cfg.Seeds.MaxUses,
			DirectUses: stats.DirectUses, Cached: stats.Seeds, Capacity: stats.Capacity, Waiting: stats.Waiting,
			RememberedFailures: stats.Remembered, BreakerOpen: stats.BreakerOpen,
		},
	}
	use := d.watcher.Use()
	s.Node, s.UseRecorded = use.Node, use.Recorded
	s.Refresh, s.OutageGrace = httpapi.Duration(d.cfg.KeyRing.Refresh), httpapi.Duration(d.cfg.Health.OutageGrace)
	if current.Mechanism.Valid() {
		s.Seeds.Mechanism = current.Mechanism.String()
	}
	snapshot := d.watcher.Snapshot()
	if snapshot.Ring != nil {
		s.KeyRing = httpapi.NewKeyRing(snapshot.Ring, snapshot.Refreshed)
		for i, k := range snapshot.Ring.Keys {
			addProof(&s.KeyRing.Keys[i], snapshot.Proofs[k.ID])
			s.KeyRing.Keys[i].LastUsed = use.LastUsed[k.ID]
		}
	}
	for _, v := range snapshot.Policy {
		s.Policy = append(s.Policy, v.String())
	}
	if snapshot.Err != nil {
		s.RingProblem = snapshot.Err.Error()
	}
	if t, ok := d.token.Describe(); ok {
		token := httpapi.NewToken(t)
		token.WorkerPID = d.token.WorkerPID()
		s.Token = &token
	}
	return s
}

// addProof adds what this node found out by using a key.
func addProof(k *httpapi.Key, p rotation.Proof) {
	k.Proven = p.Mechanism.Valid()
	if k.Proven {
		k.Mechanism = p.Mechanism.String()
	}
	if p.Err != nil {
		k.Problem = p.Err.Error()
	}
}

// seeds is what the metrics show of the seed cache.
func (d *daemon) seeds() metrics.Seeds {
	current, _ := d.sealer.Current()
	stats := d.sealer.Stats()
	return metrics.Seeds{
		Cached: stats.Seeds, Capacity: stats.Capacity, Waiting: stats.Waiting, Remembered: stats.Remembered,
		Created: current.SeedCreated, Uses: current.SeedUses, DirectUses: stats.DirectUses,
	}
}
