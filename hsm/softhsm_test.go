package hsm_test

import (
	"context"
	"sync"
	"testing"

	"kekd/hsm/hsmtest"
)

// A key that one process makes survives that others list the ring meanwhile, as
// every running kekd does. SoftHSM loses one in ten to those who look at unfinished objects.
func TestSoftHSMKeysMadeWhileOthersList(t *testing.T) {
	t.Parallel()
	f := hsmtest.NewSoftHSM(t)
	maker := f.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	var lists sync.WaitGroup
	for range 2 {
		lister := f.Open(t)
		lists.Go(func() {
			for ctx.Err() == nil {
				if _, err := lister.Keys(ctx); err != nil && ctx.Err() == nil {
					t.Errorf("list: %v", err)
					return
				}
			}
		})
	}
	const keys = 40
	for range keys {
		if _, _, err := maker.Create(ctx, hsmtest.NewID(t)); err != nil {
			t.Error(err)
		}
	}
	cancel()
	lists.Wait()
	if got, err := maker.Keys(t.Context()); err != nil || len(got) != keys {
		t.Errorf("%d keys, want %d (%v)", len(got), keys, err)
	}
}
