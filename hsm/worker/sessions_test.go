package worker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/pkcs11"

	"kekd/hsm/p11"
)

func TestPoolSize(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		wish  int
		limit uint
		want  int
	}{
		"no limit":            {4, 0, 4},
		"infinite":            {4, pkcs11.CK_EFFECTIVELY_INFINITE, 4},
		"unavailable":         {4, ^uint(0), 4},
		"plenty":              {4, 1000, 4},
		"just enough":         {4, 5, 4},
		"one less":            {4, 4, 3},
		"login and one":       {4, 2, 1},
		"login alone":         {4, 1, 1},
		"a wish of one":       {1, 2, 1},
		"the largest wish":    {64, 0, 64},
		"the largest, capped": {64, 17, 16},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := poolSize(c.wish, c.limit); got != c.want {
				t.Errorf("poolSize(%d, %d) = %d, want %d", c.wish, c.limit, got, c.want)
			}
		})
	}
}

func TestSessionsAreReused(t *testing.T) {
	t.Parallel()
	m := &stubModule{limit: 10}
	p := newSessions(m, 3, 2)
	if m.next != 0 {
		t.Error("sessions are opened before they are needed")
	}
	var handles []pkcs11.SessionHandle
	for range 6 {
		s, err := p.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		handles = append(handles, s.handle)
		p.release(s)
	}
	if slices.Max(handles) != 2 {
		t.Errorf("sessions %v were used one after the other, want 1 and 2 only", handles)
	}
}

func TestDroppedSessionIsReplaced(t *testing.T) {
	t.Parallel()
	m := &stubModule{limit: 1}
	p := newSessions(m, 3, 1)
	first, err := p.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.drop(first)
	second, err := p.acquire(t.Context())
	if err != nil || second.handle == first.handle {
		t.Errorf("session %d after %d was dropped, %v; want another one", second.handle, first.handle, err)
	}
	if !slices.Contains(m.closed, first.handle) {
		t.Error("the dropped session was not closed")
	}
}

func TestAcquireWaits(t *testing.T) {
	t.Parallel()
	p := newSessions(&stubModule{limit: 10}, 3, 1)
	held, err := p.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.acquire(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("with all sessions in use: %v, want to wait until the context ends", err)
	}
	p.release(held)
	if s, err := p.acquire(t.Context()); err != nil || s.handle != held.handle {
		t.Errorf("session %d, %v; want the one that was released", s.handle, err)
	}
}

// A session that can't be opened for a moment doesn't cost its place.
func TestOpenFails(t *testing.T) {
	t.Parallel()
	broken := p11.Error{Call: "C_OpenSession", RV: pkcs11.CKR_DEVICE_ERROR}
	p := newSessions(&stubModule{limit: 10, failures: []error{broken, broken}}, 3, 1)
	for range 2 {
		if _, err := p.acquire(t.Context()); !errors.Is(err, broken) {
			t.Errorf("got %v, want the module's own error", err)
		}
	}
	if _, err := p.acquire(t.Context()); err != nil {
		t.Errorf("after that: %v", err)
	}
}

func TestNoSessionAtAll(t *testing.T) {
	t.Parallel()
	m := &stubModule{limit: 0}
	p := newSessions(m, 3, 4)
	for range 3 {
		if _, err := p.acquire(t.Context()); err == nil {
			t.Fatal("a session out of nothing")
		} else if e, ok := rvOf(err); !ok || e.RV != pkcs11.CKR_SESSION_COUNT {
			t.Errorf("got %v, want CKR_SESSION_COUNT", err)
		}
	}
	m.limit = 10
	if _, err := p.acquire(t.Context()); err != nil {
		t.Errorf("after the token has sessions again: %v", err)
	}
}

// A token with fewer sessions than it promised: the pool makes do with those,
// whatever happens to them, and nobody waits for ever.
func TestPoolShrinks(t *testing.T) {
	t.Parallel()
	const limit = 2
	m := &stubModule{limit: limit}
	p := newSessions(m, 3, 8)
	var users sync.WaitGroup
	for i := range 16 {
		users.Go(func() {
			for n := range 50 {
				s, err := p.acquire(t.Context())
				if err != nil {
					// Only when another one was closed and not opened again yet.
					t.Errorf("user %d: %v", i, err)
					return
				}
				if (i+n)%5 == 0 {
					p.drop(s)
				} else {
					p.release(s)
				}
			}
		})
	}
	users.Wait()
	if m.most > limit || p.places < 1 {
		t.Errorf("%d sessions were open at once, %d places are left", m.most, p.places)
	}
}

// A token that lacks sessions only for a while gets its places back, one by one.
func TestPoolGrowsAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := &stubModule{limit: 1}
		p := newSessions(m, 3, 3)
		use := func() {
			t.Helper()
			s, err := p.acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			p.release(s)
		}
		use()
		// Two more places that the token refuses to fill.
		first, err := p.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a second session of one: %v", err)
		}
		if p.places != 1 {
			t.Fatalf("%d places, want 1", p.places)
		}
		m.limit = 3
		p.release(first)
		for want := 1; want <= 3; want++ {
			use()
			if p.places != want {
				t.Errorf("%d places, want %d", p.places, want)
			}
			time.Sleep(regrowAfter)
			use()
		}
		if m.most == 3 {
			t.Error("three sessions were open at once, which nobody needed")
		}
	})
}
