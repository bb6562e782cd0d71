package rewrap

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"kekd/internal/inventory"
	"kekd/internal/kek"
)

var (
	secrets    = schema.GroupResource{Resource: "secrets"}
	secretKind = schema.GroupKind{Kind: "Secret"}
)

func TestUpdate(t *testing.T) {
	c := newFakeCluster()
	c.add("namespaces/old", oldKeyID)
	c.add("events/ns/old", oldKeyID)
	c.add("deployments/ns/old", oldKeyID)
	c.put(inventory.Object{Key: "/registry/widgets.example.com/ns/old", Resource: "widgets.example.com", Path: []string{"ns", "old"},
		Class: inventory.KMSv2, Provider: provider, KeyID: oldKeyID})
	c.add("secrets/ns/new", newKeyID)
	c.add("secrets/ns/old", oldKeyID)
	c.add("secrets/ns/plain", "")
	c.add("secrets/ns/ring", kek.KeyID("another-ring", testPrimary, kek.CheckValue{}))
	c.put(inventory.Object{Key: "/registry/secrets/ns/aes", Resource: "secrets", Path: []string{"ns", "aes"}, Class: inventory.OtherProvider, Provider: "aescbc:v1:key1"})
	// Not of this plugin's.
	c.add("configmaps/ns/plain", "")
	c.add("pods/ns/other", "another-plugin's")
	result, err := Run(t.Context(), c.config())
	if err != nil {
		t.Fatal(err)
	}
	if diff := diffResult(Result{Found: 8, Updated: 8}, result); diff != "" {
		t.Errorf("Run (-want +got):\n%s", diff)
	}
	// First one object of each resource.
	want := []string{"deployments/ns/old", "events/ns/old", "namespaces/old", "secrets/ns/plain", "widgets.example.com/ns/old", "secrets/ns/aes", "secrets/ns/old", "secrets/ns/ring"}
	if diff := cmp.Diff(want, c.patches); diff != "" {
		t.Errorf("patches (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"pods"}, c.plan.Untouched); diff != "" {
		t.Errorf("untouched (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{provider}, c.plan.Providers); diff != "" {
		t.Errorf("providers (-want +got):\n%s", diff)
	}
	// What is done is not done again.
	c.patches = nil
	if result, err = Run(t.Context(), c.config()); err != nil || len(c.patches) > 0 {
		t.Errorf("Run again = %+v, %v, with patches of %v", result, err, c.patches)
	}
}

// After the token has lost a key, an API server that has not restarted reads what is
// under it, and the others do not.
func TestUpdateThroughTheServerThatReads(t *testing.T) {
	for _, tt := range []struct {
		name, forgot string
		plain        bool // an object that all servers can read checks them
		updated      int64
	}{
		{"the kubeconfig's has restarted", "https://a:6443", true, 5},
		{"the other one has restarted", "https://b:6443", true, 5},
		{"the kubeconfig's has restarted, and all is under the lost key", "https://a:6443", false, 4},
		{"the other one has restarted, and all is under the lost key", "https://b:6443", false, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster()
				c.serve("https://b:6443", newKeyID)
				for _, s := range c.servers {
					s.forgot = s.name == tt.forgot
				}
				c.addMany(5, oldKeyID)
				if tt.plain {
					c.plain("secrets")
				}
				c.damaged["/registry/secrets/ns/003"] = true
				got, err := Run(t.Context(), c.config())
				if err != nil {
					t.Fatal(err)
				}
				if got.Updated != tt.updated || got.Left != 1 || got.Kinds[Unreadable] != 1 {
					t.Errorf("Run = %+v", got)
				}
			})
		})
	}
}

func TestUpdateRefused(t *testing.T) {
	const webhook = `failed calling webhook "w.example.com": connection refused`
	tests := []struct {
		name   string
		refuse func(attempt int) error
		keep   bool
		want   int           // attempts
		took   time.Duration // all of it spent waiting
		kind   Kind          // of what is left
		reason string
	}{
		{"conflicts that pass", func(attempt int) error {
			if attempt < 3 {
				return apierrors.NewConflict(secrets, "a", errors.New("it changed"))
			}
			return nil
		}, false, 3, 600 * time.Millisecond, "", ""},
		{"deleted in the meantime", func(int) error { return apierrors.NewNotFound(secrets, "a") }, false, 1, 0, "", ""},
		{"too many requests, as long as the server says", func(attempt int) error {
			if attempt == 1 {
				return apierrors.NewTooManyRequests("slow down", 7)
			}
			return nil
		}, false, 2, 7 * time.Second, "", ""},
		{"a server that asks for too much", func(attempt int) error {
			if attempt == 1 {
				return apierrors.NewTooManyRequests("slow down", 3600)
			}
			return nil
		}, false, 2, time.Minute, "", ""},
		{"a network that fails once", func(attempt int) error {
			if attempt == 1 {
				return errors.New("connection refused")
			}
			return nil
		}, false, 2, time.Second, "", ""},
		{"a webhook that is away", func(int) error { return apierrors.NewInternalError(errors.New(webhook)) }, false, 4, 3 * time.Second,
			Webhook, "Internal error occurred: " + webhook},
		{"trouble with this object that stays", func(int) error { return apierrors.NewInternalError(errors.New("no")) }, false, 6, 6 * time.Second,
			Server, "Internal error occurred: no (tried 3 times)"},
		{"a webhook that would write on the terminal", func(int) error {
			return apierrors.NewBadRequest("no\x1b[2J\nkekctl: all is well \xff")
		}, false, 1, 0, Refused, "no\ufffd[2J kekctl: all is well"},
		{"forbidden", func(int) error {
			return apierrors.NewForbidden(secrets, "a", errors.New(`User "u" cannot patch resource "secrets"`))
		}, false, 1, 0, Forbidden, `secrets "a" is forbidden: User "u" cannot patch resource "secrets"`},
		{"denied by a webhook", func(int) error {
			return apierrors.NewForbidden(secrets, "a", errors.New("admission webhook denied the request"))
		}, false, 1, 0, Refused, `secrets "a" is forbidden: admission webhook denied the request`},
		{"a server that finds nothing stale", nil, true, 2, 0, Unchanged, "kube-apiserver finds nothing to rewrite"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster()
				c.add("secrets/ns/a", oldKeyID)
				c.add("secrets/ns/b", oldKeyID)
				c.plain("secrets")
				const key = "/registry/secrets/ns/a"
				c.refuse = func(k string, attempt int) error {
					if k == key && tt.refuse != nil {
						err := tt.refuse(attempt)
						if apierrors.IsNotFound(err) {
							c.objects = c.objects[1:]
						}
						return err
					}
					return nil
				}
				c.keep = func(k string) bool { return tt.keep && k == key }
				want := Result{Found: 3, Updated: 3}
				switch {
				case tt.reason != "":
					want = Result{Found: 3, Updated: 2, Left: 1, Objects: []Failure{{key, tt.kind, tt.reason}}}
				case tt.name == "deleted in the meantime":
					want.Updated = 2
				}
				begun := time.Now()
				got, err := Run(t.Context(), c.config())
				if err != nil {
					t.Fatal(err)
				}
				if diff := diffResult(want, got); diff != "" {
					t.Errorf("Run (-want +got):\n%s", diff)
				}
				if c.attempts[key] != tt.want {
					t.Errorf("%d attempts, want %d", c.attempts[key], tt.want)
				}
				if took := time.Since(begun).Round(time.Millisecond); took != tt.took {
					t.Errorf("it took %v, want %v", took, tt.took)
				}
			})
		})
	}
}

func TestUpdateKeepsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster()
		c.addMany(101, oldKeyID)
		cfg := c.config()
		cfg.Rate = 20
		var shown []int64
		cfg.Progress = func(what string, done, total int64) {
			if what != "rewrap" || total != 101 {
				t.Errorf("progress of %s is %d/%d", what, done, total)
			}
			shown = append(shown, done)
		}
		if _, err := Run(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		if took := c.times[100].Sub(c.times[0]).Round(time.Millisecond); took != 5*time.Second {
			t.Errorf("100 updates after the first took %v, want 5s", took)
		}
		if len(shown) != 100 || shown[99] != 101 {
			t.Errorf("progress was %v", shown)
		}
	})
}

func TestUpdateInterrupted(t *testing.T) {
	c := newFakeCluster()
	c.addMany(5, oldKeyID)
	c.plain("secrets")
	ctx, cancel := context.WithCancelCause(t.Context())
	c.refuse = func(key string, _ int) error {
		if strings.HasSuffix(key, "002") {
			cancel(errors.New("SIGINT"))
		}
		return nil
	}
	result, err := Run(ctx, c.config())
	if err == nil || err.Error() != "interrupted with up to 2 of 6 objects left: SIGINT" {
		t.Errorf("Run: %v", err)
	}
	// The object in hand is finished.
	if diff := diffResult(Result{Found: 6, Updated: 4, Left: 2}, result); diff != "" {
		t.Errorf("Run (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{checkNote, "What is done stays done: the same command continues with the rest."}, c.notes); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
	c.patches = nil
	result, err = Run(t.Context(), c.config())
	if err != nil || result.Left != 0 {
		t.Errorf("Run again = %+v, %v", result, err)
	}
	if diff := cmp.Diff(2, len(c.patches)); diff != "" {
		t.Errorf("patches (-want +got):\n%s", diff)
	}
}

func TestUpdateInterruptedWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster()
		c.add("secrets/ns/a", oldKeyID)
		ctx, cancel := context.WithCancel(t.Context())
		c.refuse = func(string, int) error {
			time.AfterFunc(time.Second, cancel)
			return apierrors.NewTooManyRequests("slow down", 30)
		}
		begun := time.Now()
		if _, err := Run(ctx, c.config()); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		if took := time.Since(begun); took != time.Second {
			t.Errorf("it took %v to end", took)
		}
	})
}

// A server that is away is waited for, and not asked ten thousand times.
func TestServerAway(t *testing.T) {
	away := apierrors.NewGenericServerResponse(http.StatusServiceUnavailable, "patch", secrets, "", "away", 0, true)
	tests := []struct {
		name string
		// back is when the server returns.
		back time.Duration
		took time.Duration
		err  string
	}{
		{"for a while", time.Minute, time.Minute, ""},
		{"for good", time.Hour, 5 * time.Minute, "kube-apiserver cannot rewrite anything: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster()
				c.addMany(100, oldKeyID)
				c.plain("secrets")
				begun := time.Now()
				isAway := func() bool { return len(c.patches) > 3 && time.Since(begun) < tt.back }
				c.refuse = func(string, int) error {
					if isAway() {
						return away
					}
					return nil
				}
				cfg := c.config()
				cfg.Ready = func(context.Context) error {
					if isAway() {
						return away
					}
					return nil
				}
				_, err := Run(t.Context(), cfg)
				if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.err)) {
					t.Errorf("Run: %v, want %q", err, tt.err)
				}
				if took := time.Since(begun); took < tt.took || took > tt.took+2*awayPause {
					t.Errorf("it took %v, want %v", took, tt.took)
				}
			})
		})
	}
}

// Somebody may write under another key all the time.
func TestUpdateEnds(t *testing.T) {
	c := newFakeCluster()
	c.add("secrets/ns/a", oldKeyID)
	c.plain("secrets")
	cfg := c.config()
	cfg.Progress = func(what string, _, _ int64) {
		if what == "rewrap" {
			c.add("secrets/ns/a", oldKeyID)
		}
	}
	got, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	want := Result{Found: 2, Updated: 1 + maxRounds, Left: 1, Objects: []Failure{{"/registry/secrets/ns/a", Reverted, "it was rewritten, but not under the primary"}}}
	if diff := diffResult(want, got); diff != "" {
		t.Errorf("Run (-want +got):\n%s", diff)
	}
}

func TestUpdateLeavesAlone(t *testing.T) {
	c := newFakeCluster()
	c.put(inventory.Object{Key: "/registry/secrets/ns/broken", Resource: "secrets", Path: []string{"ns", "broken"},
		Class: inventory.Unparsable, Provider: provider, Problem: "it is not an EncryptedObject of KMS v2"})
	c.add("secrets/ns/old", oldKeyID)
	c.add("secrets/odd", oldKeyID)
	c.add("masterleases/10.0.0.1", oldKeyID)
	got, err := Run(t.Context(), c.config())
	if err != nil {
		t.Fatal(err)
	}
	want := Result{Found: 4, Updated: 1, Left: 3, Objects: []Failure{
		{"/registry/masterleases/10.0.0.1", Unserved, "no API serves it; of its own records kube-apiserver writes some anew within minutes"},
		{"/registry/secrets/ns/broken", Unreadable, "it is not an EncryptedObject of KMS v2"},
		{"/registry/secrets/odd", Unserved, "its key in etcd is not that of an object of the API"},
	}}
	if diff := diffResult(want, got); diff != "" {
		t.Errorf("Run (-want +got):\n%s", diff)
	}
}

func TestBegin(t *testing.T) {
	c := newFakeCluster()
	c.add("secrets/ns/old", oldKeyID)
	cfg := c.config()
	refused := errors.New("no")
	cfg.Begin = func(context.Context, *Plan) error { return refused }
	if _, err := Run(t.Context(), cfg); err != refused { //nolint:errorlint // as it is
		t.Errorf("Run: %v", err)
	}
	if len(c.patches) > 0 {
		t.Error("something was done without leave")
	}
}

func TestMoreThanABatch(t *testing.T) {
	c := newFakeCluster()
	const n = batchSize + 10
	for i := range n {
		name := fmt.Sprintf("%06d", i)
		c.objects = append(c.objects, inventory.Object{
			Key: "/registry/secrets/ns/" + name, Resource: "secrets", Path: []string{"ns", name},
			Class: inventory.KMSv2, Provider: provider, KeyID: oldKeyID, ModRevision: 1,
		})
	}
	cfg := c.config()
	cfg.Progress = func(what string, done, total int64) {
		if what == "rewrap" && (total != n || done > n) {
			t.Errorf("progress is %d/%d", done, total)
		}
	}
	got, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if diff := diffResult(Result{Found: n, Updated: n}, got); diff != "" {
		t.Errorf("Run (-want +got):\n%s", diff)
	}
}
