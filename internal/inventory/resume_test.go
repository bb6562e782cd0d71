package inventory

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// An outage of etcd in the middle is outlasted for a minute; what would fail again,
// and what fails at the very first request, ends at once.
func TestVisitResumes(t *testing.T) {
	t.Parallel()
	away := status.Error(codes.Unavailable, "connection refused")
	for name, c := range map[string]struct {
		reason error
		from   int           // the first page that fails
		lasts  time.Duration // how long all requests fail
		took   time.Duration // at most
		want   string        // the error
	}{
		"a restart":            {away, 2, 20 * time.Second, 30 * time.Second, ""},
		"a leader's election":  {rpctypes.ErrLeaderChanged, 2, 2 * time.Second, 5 * time.Second, ""},
		"too many requests":    {rpctypes.ErrTooManyRequests, 2, 2 * time.Second, 5 * time.Second, ""},
		"the first page":       {away, 0, 20 * time.Second, 30 * time.Second, ""},
		"too long":             {away, 2, 2 * time.Minute, 61 * time.Second, "connection refused; see that etcd runs there and takes the client certificate; tried for 1m0s"},
		"what does not pass":   {rpctypes.ErrPermissionDenied, 2, 20 * time.Second, 0, "permission denied"},
		"at the first request": {away, -1, 20 * time.Second, 0, "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				content := map[string]string{}
				fill(content, "secrets", 300, 10)
				f := newFake(t, content)
				var began time.Time
				down := func() error {
					if !began.IsZero() && time.Since(began) < c.lasts {
						return c.reason
					}
					return nil
				}
				f.fails = down
				f.before = func(n int) {
					if n == c.from && began.IsZero() {
						began = time.Now()
					}
				}
				if c.from < 0 {
					began = time.Now()
				}
				start, notes := time.Now(), 0
				seen := map[string]int{}
				pass, err := f.store().Visit(t.Context(), Options{Waiting: func(error, time.Duration) { notes++ }}, func(o Object) error {
					seen[o.Key]++
					return nil
				})
				if took := time.Since(start); took > c.took {
					t.Errorf("took %v, want at most %v", took, c.took)
				}
				if c.want != "" {
					if err == nil || !strings.Contains(err.Error(), c.want) {
						t.Errorf("got %v, want %q", err, c.want)
					}
					return
				}
				if err != nil || pass != (Pass{Revision: 1, Resumed: 1}) || notes == 0 {
					t.Errorf("got %+v and %v after %d notes", pass, err, notes)
				}
				for key := range f.revisions[1] {
					if seen[key] != 1 {
						t.Errorf("visited %s %d times", key, seen[key])
					}
				}
			})
		})
	}
}

// Overridden resources are read from their own etcd, after the cluster's.
func TestOverrides(t *testing.T) {
	t.Parallel()
	own := newFake(t, map[string]string{"/registry/secrets/a/1": underKey("ring/01/000000")})
	other := newFake(t, map[string]string{"/registry/events/a/1": underKey("ring/01/000000"), "/registry/events/a/2": "k8s\x00"})
	other.change(func(c map[string]string) { delete(c, "/registry/namespaces/default") })
	s := own.store()
	s.sources = append(s.sources, &source{kv: other, endpoint: "http://other:2379", resources: []string{"/events"}})
	r, err := s.Take(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if u := r.Under("ring", "\x01"); u.Objects != 2 || u.Resources["events"] != 1 || r.Objects != 4 {
		t.Errorf("got %+v of %d objects", u, r.Objects)
	}
	if len(r.Stores) != 2 || r.Stores[1].Endpoint != "http://other:2379" || r.Stores[1].Revision != 2 || r.Stores[1].Overrides[0] != "/events" {
		t.Errorf("stores: %+v", r.Stores)
	}
	for key, want := range map[string]bool{"/registry/events/a/1": true, "/registry/events/a/3": false, "/registry/secrets/a/1": true} {
		if o, ok, err := s.Object(t.Context(), key); err != nil || ok != want || ok && o.Key != key {
			t.Errorf("%s: got %+v, %t, %v", key, o, ok, err)
		}
	}
	other.err = errors.New("broken")
	if _, err := s.Take(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "http://other:2379: broken") {
		t.Errorf("with a broken etcd: %v", err)
	}
}
