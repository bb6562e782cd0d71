package rotation

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"
	kmsservice "k8s.io/kms/pkg/service"

	"kekd/e2e/internal/harness"
)

// callTimeout is kube-apiserver's default for one call of the plugin.
const callTimeout = 3 * time.Second

// statusPause is the time between two questions for the key_id.
const statusPause = 100 * time.Millisecond

// client returns kube-apiserver's own client of the plugin.
func client(t *testing.T, k *harness.Kekd) kmsservice.Service {
	t.Helper()
	s, err := kmsv2.NewGRPCService(t.Context(), "unix://"+k.Socket, provider, callTimeout)
	if err != nil {
		t.Fatalf("make the client: %v", err)
	}
	return s
}

// keyIDWatch asks a kekd for its key_id ten times a second, as many apiservers
// would, and keeps what changed.
type keyIDWatch struct {
	stopping chan struct{}
	once     sync.Once // closes stopping
	done     sync.WaitGroup

	// Written by the watch, readable after stop.
	changes []change
	failed  []failedStatus
	asked   int
}

// failedStatus is a Status that failed, and when.
type failedStatus struct {
	at  time.Time
	err error
}

// change is a key_id and when it was first seen.
type change struct {
	keyID string
	at    time.Time
}

func watchKeyID(t *testing.T, k *harness.Kekd) *keyIDWatch {
	t.Helper()
	s := client(t, k)
	w := &keyIDWatch{stopping: make(chan struct{})}
	ctx := t.Context()
	w.done.Go(func() {
		tick := time.NewTicker(statusPause)
		defer tick.Stop()
		for {
			w.ask(ctx, s)
			select {
			case <-w.stopping:
				w.ask(ctx, s) // what somebody else saw before the stop is seen here too
				return
			case <-tick.C:
			}
		}
	})
	t.Cleanup(w.stop)
	return w
}

func (w *keyIDWatch) ask(ctx context.Context, s kmsservice.Service) {
	status, err := s.Status(ctx)
	if ctx.Err() != nil {
		return // the test is over
	}
	w.asked++
	switch {
	case err == nil && status.Healthz != "ok":
		err = errors.New("healthz is " + status.Healthz)
		fallthrough
	case err != nil:
		w.failed = append(w.failed, failedStatus{time.Now(), err})
	case len(w.changes) == 0 || w.changes[len(w.changes)-1].keyID != status.KeyID:
		w.changes = append(w.changes, change{status.KeyID, time.Now()})
	}
}

func (w *keyIDWatch) stop() {
	w.once.Do(func() { close(w.stopping) })
	w.done.Wait()
}

// requireOneChange stops the watch and requires that the key_id went from one key to the
// other, once, and that Status never failed but in the time gap before. It returns when.
func (w *keyIDWatch) requireOneChange(t *testing.T, from, to string, gap time.Duration) time.Time {
	t.Helper()
	w.stop()
	if len(w.changes) != 2 || w.changes[0].keyID != from || w.changes[1].keyID != to {
		t.Fatalf("Status went through %v, want %s and then %s", w.changes, from, to)
	}
	at := w.changes[1].at
	for _, f := range w.failed {
		if f.at.After(at) || at.Sub(f.at) > gap {
			t.Errorf("of %d Status %d failed, one at %s: %v", w.asked, len(w.failed), f.at.Format("15:04:05.000"), f.err)
		}
	}
	t.Logf("Status was asked %d times, failed %d times, and changed once, at %s", w.asked, len(w.failed), at.Format("15:04:05.000"))
	return at
}

// awaitKeyID waits until kekd encrypts under the key.
func awaitKeyID(t *testing.T, k *harness.Kekd, keyID string, within time.Duration) {
	t.Helper()
	s := client(t, k)
	harness.Eventually(t, within, "kekd encrypts under "+keyID, func(ctx context.Context) error {
		status, err := s.Status(ctx)
		if err == nil && status.KeyID != keyID {
			err = fmt.Errorf("Status says %s", status.KeyID)
		}
		return err
	})
}

// awaitState waits until a kekd knows of a key's state.
func awaitState(t *testing.T, k *harness.Kekd, keyID, want string) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, "kekd sees that the key is "+want, func(ctx context.Context) error {
		status, err := k.Status(ctx)
		if got := status.State(keyID); err == nil && got != want {
			err = fmt.Errorf("it says %s", got)
		}
		return err
	})
}
