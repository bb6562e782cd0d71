package rotate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kekd/internal/admin/evidence"
	"kekd/internal/admin/wait"
	"kekd/internal/kek"
)

// rewrap re-encrypts every object that is not under the key.
func (r *run) rewrap(ctx context.Context) error {
	done, err := r.Objects.Rewrap(ctx, r.key.KeyID())
	r.result.KeyID, r.result.Rewrap = r.key.KeyID(), done.Report
	if err != nil {
		return err
	}
	r.say("%d of %d objects re-encrypted", done.Found-done.Left, done.Found)
	if done.Left == 0 {
		return nil
	}
	for _, f := range done.Failures {
		r.say("%s", f)
	}
	return fmt.Errorf("%d objects are not under the primary, so the old key must stay; fix them and run kekctl rotate again", done.Left)
}

// inventory reads etcd once more: the primary must be in use, and no older key.
func (r *run) inventory(ctx context.Context) error {
	ring, err := r.ring(ctx)
	if err != nil {
		return err
	}
	uses, err := r.Objects.Uses(ctx, ring)
	if err != nil {
		return err
	}
	if uses[r.key.ID].Objects == 0 {
		return fmt.Errorf("no object in etcd is under %s, so this rotation protects nothing; see with kekctl apiserver check whether kube-apiserver encrypts with kekd", r.key.KeyID())
	}
	left, unclear := 0, int64(0)
	for _, k := range ring.Keys {
		if n := uses[k.ID].Objects; k.ID != r.key.ID && n > 0 {
			left++
			r.say("%d objects are under %s, which is %s", n, k.KeyID(), k.State)
		}
		unclear = max(unclear, uses[k.ID].Unclear)
	}
	if unclear > 0 {
		left++
		r.say("%d objects may be under any key, since kekctl cannot tell theirs", unclear)
	}
	if left > 0 {
		return errors.New("objects are still under other keys, which must stay; kekctl inventory shows them, and kekctl rotate continues")
	}
	r.say("no object is under an older key; %d are under %s", uses[r.key.ID].Objects, r.key.KeyID())
	return nil
}

// ring reads the ring.
func (r *run) ring(ctx context.Context) (*kek.Ring, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	view, err := r.Token.View(ctx)
	if err == nil && view.Ring == nil {
		err = view.Err
	}
	return view.Ring, err
}

// retireWait is how long a rotation waits for witnesses that may lag behind.
const retireWait = 3 * time.Minute

// retire says which keys nothing needs any more, and forgets the journey.
func (r *run) retire(ctx context.Context) error {
	ring, err := r.ring(ctx)
	if err != nil {
		return err
	}
	until := r.Clock().Add(retireWait)
	for _, k := range ring.Keys {
		if k.State != kek.Retired {
			continue
		}
		e, err := r.settled(ctx, k, ring, until)
		if err != nil {
			return err
		}
		key := Key{ID: k.ID.String(), KeyID: k.KeyID()}
		if e.Verdict == evidence.Unused {
			r.result.Retirable = append(r.result.Retirable, key)
			r.say("nothing in this cluster needs %s; when no backup does: kekctl key destroy %s --after 30d", k.KeyID(), k.ID)
			continue
		}
		for _, f := range e.Against() {
			key.Against = append(key.Against, f.String())
			r.say("%s must stay for now: %s", k.KeyID(), f)
		}
		r.result.Kept = append(r.result.Kept, key)
	}
	return r.Memory.Remove(MemoryName)
}

// settled is what the witnesses say of a key, once those that lag have caught up.
func (r *run) settled(ctx context.Context, key kek.Info, ring *kek.Ring, until time.Time) (evidence.Evidence, error) {
	for {
		e, err := r.Evidence(ctx, key, ring)
		if err != nil || e.Verdict == evidence.Unused || e.Wait <= 0 || r.Clock().Add(e.Wait).After(until) {
			return e, err
		}
		r.say("waiting for %s until no witness can be behind: another %s", key.KeyID(), e.Wait.Round(time.Second))
		err = wait.Until(ctx, time.Now().Add(e.Wait+time.Second), func(left time.Duration) {
			r.say("waiting for %s until no witness can be behind: another %s", key.KeyID(), left.Round(time.Second))
		})
		if err != nil {
			return evidence.Evidence{}, err
		}
	}
}
