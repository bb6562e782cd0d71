package rewrap

import (
	"context"
	"fmt"
	"time"

	"kekd/internal/admin/text"
)

// Succession is what this node's kekd says of the ring. Keys are named by key_id.
type Succession struct {
	Primary string
	// Pending takes over at Activation; empty if no key does.
	Pending    string
	Activation time.Time
}

// soon is the time within which a pending key stops a run: all that is rewritten now
// would have to be rewritten again.
const soon = time.Hour

// checkSuccession refuses to rewrite what will be rewritten again before long.
func (r *run) checkSuccession(ctx context.Context) error {
	if r.Succession == nil {
		return nil
	}
	s, err := r.Succession(ctx)
	if err != nil {
		r.note("cannot see whether a key is pending: %s", text.Short(err.Error()))
		return nil
	}
	r.before = s.Primary
	if s.Pending == "" {
		return nil
	}
	r.result.Next, r.result.NextAt, r.takeover = s.Pending, s.Activation, s.Activation
	if r.plan.Stale == 0 {
		return nil
	}
	left := time.Until(s.Activation)
	at := s.Activation.Format(time.RFC3339)
	takes := time.Duration(float64(r.plan.Stale) / r.Rate * float64(time.Second))
	if left <= max(soon, takes) && !r.Despite {
		return fmt.Errorf("key %s takes over at %s, in %s, and everything would have to be rewritten again; "+
			"run kekctl rewrap after that, or rewrite under the current primary all the same: --key-id %s", s.Pending, at, left.Round(time.Second), r.KeyID)
	}
	r.note("key %s takes over at %s, in %s: everything has to be rewritten again then", s.Pending, at, left.Round(time.Second))
	return nil
}

// checkTakeover ends the updates when another key has become the primary.
func (r *run) checkTakeover() error {
	if r.takeover.IsZero() || time.Now().Before(r.takeover) {
		return nil
	}
	return fmt.Errorf("key %s took over at %s while this ran; run kekctl rewrap again to rewrite everything under it",
		r.result.Next, r.takeover.Format(time.RFC3339))
}

// checkPrimary looks at the end whether the key is still the one that counts.
func (r *run) checkPrimary(ctx context.Context) error {
	if r.Succession == nil {
		return nil
	}
	s, err := r.Succession(ctx)
	if err != nil {
		r.note("cannot see whether a key is pending: %s", text.Short(err.Error()))
		return nil
	}
	r.result.Next, r.result.NextAt = s.Pending, s.Activation
	if r.before != "" && s.Primary != r.before {
		return fmt.Errorf("key %s became the primary while this ran; run kekctl rewrap again to rewrite everything under it", s.Primary)
	}
	return nil
}
