package main

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"

	"kekd/internal/audit"
	"kekd/internal/kek"
	"kekd/plugin"
)

// testTrail is a trail that nothing signs, and what reads it back once it is closed.
func testTrail(t *testing.T) (*trail, func() []audit.Record) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "audit")
	l, err := audit.Open(audit.Config{
		Dir: dir, Chain: auditChain, Program: "test", MaxFileSize: 1 << 20, CheckpointEvery: time.Hour, CheckpointRecords: 1 << 30,
		Logger: zap.NewNop(), Clock: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	l.Start()
	tr := &trail{log: l}
	return tr, func() []audit.Record {
		if err := tr.close(context.Background()); !errors.Is(err, audit.ErrNoKey) {
			t.Error(err)
		}
		var got []audit.Record
		if _, err := audit.Query(t.Context(), []string{dir}, audit.Filter{}, func(_ string, r *audit.Record, _ []byte) error {
			got = append(got, *r)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return got
	}
}

// Who connects again and again does not fill the disk, and is counted.
func TestRefusedCallersAreCounted(t *testing.T) {
	tr, end := testTrail(t)
	for range 5 * maxRefusals {
		tr.CallerRefused(plugin.PeerInfo{UID: 1000, PID: 7})
	}
	got := end()
	total := uint64(0)
	for _, r := range got {
		total += max(1, r.Count)
	}
	if len(got) != maxRefusals+1 || total != 5*maxRefusals {
		t.Errorf("%d lines stand for %d refusals, want %d for %d", len(got), total, maxRefusals+1, 5*maxRefusals)
	}
}

// What becomes of the ring's keys goes on record once each.
func TestChangesOfTheRingAreAudited(t *testing.T) {
	tr, end := testTrail(t)
	var states keyStates
	key := func(id string, s kek.State) kek.Info { return kek.Info{Ring: "r", ID: kek.ID(id), State: s} }
	for _, keys := range [][]kek.Info{
		{key("a", kek.Primary)},
		{key("a", kek.Primary)},
		{key("a", kek.Primary), key("b", kek.Pending)},
		{key("a", kek.Retired), key("b", kek.Primary)},
		{key("b", kek.Primary)},
	} {
		ring := &kek.Ring{Label: "r", Keys: keys}
		tr.sawRing(ring, states.changes(ring))
	}
	if got, want := tr.keyID("b"), key("b", 0).KeyID(); got != want {
		t.Errorf("the key_id is %s, want %s", got, want)
	}
	if got := tr.keyID("a"); got != kek.ID("a").String() {
		t.Errorf("a key that is gone has the name %s", got)
	}
	seen := map[string]int{}
	for _, r := range end() {
		seen[r.KeyID+": "+r.Detail]++
	}
	a, b := key("a", 0).KeyID(), key("b", 0).KeyID()
	for _, want := range []string{
		a + ": seen as primary", b + ": seen as pending", a + ": primary to retired", b + ": pending to primary", a + ": retired to gone",
	} {
		if seen[want] != 1 {
			t.Errorf("%q is on record %d times", want, seen[want])
		}
	}
	if len(seen) != 5 {
		t.Errorf("on record: %v", seen)
	}
}
