package newkey_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kekd/internal/admin/newkey"
	"kekd/internal/kek"
)

// token is a token whose keys are a list.
type token struct {
	keys []kek.Info
	// away: it answers nothing.
	away bool
	// broken are keys that it cannot use.
	broken map[kek.ID]bool
}

func (f *token) Name(context.Context) (string, error) { return `token "t"`, f.err() }

func (f *token) err() error {
	if f.away {
		return kek.ErrUnavailable
	}
	return nil
}

func (f *token) View(context.Context) (newkey.View, error) {
	return newkey.View{Label: "r", Ring: &kek.Ring{Label: "r", Keys: f.keys}, Keys: f.keys}, f.err()
}

func (f *token) Keys(context.Context) ([]kek.Info, error) { return f.keys, f.err() }

func (f *token) Try(_ context.Context, id kek.ID) (kek.Mechanism, error) {
	if f.broken[id] {
		return 0, kek.ErrRefused
	}
	return kek.GCMCallerIV, f.err()
}

// make makes a key by create, with a delay of a minute.
func (f *token) make(ctx context.Context, confirm func(string) error, create func(context.Context, kek.ID) (kek.Info, error)) (newkey.Made, error) {
	return newkey.Maker{
		Token: f, Plan: newkey.Delayed(time.Minute, true, 0), What: "Creates a key", Confirm: confirm,
		Create: func(ctx context.Context, id kek.ID) (kek.Info, kek.Mechanism, error) {
			k, err := create(ctx, id)
			return k, kek.GCMCallerIV, err
		},
		Timeout: 90 * time.Second, Lead: 15 * time.Second, Clock: time.Now,
	}.Make(ctx)
}

func (f *token) add(id kek.ID) kek.Info {
	at, _ := id.Activation()
	k := kek.Info{Ring: "r", ID: id, Activation: at}
	f.keys = append(f.keys, k)
	return k
}

func yes(string) error { return nil }

// TestLateAnswer: the delay counts from the answer, however long the question stood.
func TestLateAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := new(token)
		made, err := f.make(t.Context(), func(plan string) error {
			if !strings.Contains(plan, "in 1m0s") {
				t.Errorf("the plan is %q", plan)
			}
			time.Sleep(10 * time.Minute)
			return nil
		}, func(_ context.Context, id kek.ID) (kek.Info, error) { return f.add(id), nil })
		if left := time.Until(made.Key.Activation); err != nil || left < 58*time.Second || made.Key.State != kek.Pending {
			t.Errorf("made %+v (%v), which activates in %s; want a minute", made, err, left)
		}
	})
}

// TestCreateDeadline: a call that would end too close to the activation is given up
// before: the nodes could not see the key in time.
func TestCreateDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		_, err := new(token).make(t.Context(), yes, func(ctx context.Context, _ kek.ID) (kek.Info, error) {
			<-ctx.Done()
			return kek.Info{}, ctx.Err()
		})
		if took := time.Since(begun); took > 45*time.Second || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ended after %s with %v, want at most 45 s: 15 s before the activation", took, err)
		}
	})
}

func TestFailedCreate(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		fail func(f *token, id kek.ID)
		want string
	}{
		{"nothing is left", func(*token, kek.ID) {}, ": nothing was left behind"},
		{"the answer was lost", func(f *token, id kek.ID) { f.add(id) }, "all the same, pending for another 1m0s (it works); remove it with kekctl key cancel "},
		{"it is half made", func(f *token, id kek.ID) { f.add(id); f.broken = map[kek.ID]bool{id: true} }, "the token cannot use it: the token refuses"},
		{"the answer came late", func(f *token, id kek.ID) { f.add(id); time.Sleep(2 * time.Minute) }, "and it is active (it works)"},
		{"the token is gone", func(f *token, _ kek.ID) { f.away = true }, "is not known (the HSM is unavailable); kekctl key list shows it"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := new(token)
				ctx, cancel := context.WithCancel(t.Context())
				_, err := f.make(ctx, yes, func(_ context.Context, id kek.ID) (kek.Info, error) {
					tc.fail(f, id)
					cancel() // and the administrator gives up
					return kek.Info{}, kek.ErrUnavailable
				})
				if err == nil || !strings.Contains(err.Error(), tc.want) || !errors.Is(err, kek.ErrUnavailable) {
					t.Errorf("got %v\nwant %q", err, tc.want)
				}
			})
		})
	}
}

// TestUnreadableRing: a ring that could not be read is not planned for.
func TestUnreadableRing(t *testing.T) {
	t.Parallel()
	f := &token{away: true}
	_, err := f.make(t.Context(), yes, func(context.Context, kek.ID) (kek.Info, error) {
		t.Error("a key is made")
		return kek.Info{}, nil
	})
	if !errors.Is(err, kek.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}
