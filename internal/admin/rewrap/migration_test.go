package rewrap

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	storagemigrationv1 "k8s.io/api/storagemigration/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
)

// migrated is a controller that takes three looks for a migration and one to tidy
// up, and leaves out the objects whose keys end as given.
func (c *fakeCluster) migrated(except string) func(*storagemigrationv1.StorageVersionMigration, int) {
	return func(m *storagemigrationv1.StorageVersionMigration, asked int) {
		condition(m, storagemigrationv1.MigrationRunning, "The migration is running")
		if asked < 3 {
			return
		}
		if asked > 3 {
			c.tidied[m.Name] = true
			meta.SetStatusCondition(&m.Status.Conditions, metav1.Condition{Type: string(storagemigrationv1.MigrationRunning), Status: metav1.ConditionFalse, Reason: "MigrationCompleted"})
		}
		for _, o := range slices.Clone(c.objects) {
			if o.Resource == m.Spec.Resource.Resource && !o.Under(testRing, testPrimary) && !strings.HasSuffix(o.Key, except) {
				c.rewrite(o)
			}
		}
		condition(m, storagemigrationv1.MigrationSucceeded, "done")
	}
}

func TestMigration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster()
		c.add("deployments/ns/a", oldKeyID)
		c.add("events/ns/a", oldKeyID)
		c.add("namespaces/a", newKeyID)
		c.add("secrets/ns/a", oldKeyID)
		c.add("secrets/ns/raced", oldKeyID)
		c.serveMigrations(c.migrated("raced"))
		cfg := c.config()
		cfg.Method = Auto
		got, err := Run(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(Result{Found: 4, Migrated: []string{"deployments", "secrets"}, Updated: 2}, got); diff != "" {
			t.Errorf("Run (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"events/ns/a", "secrets/ns/raced"}, c.patches); diff != "" {
			t.Errorf("patches (-want +got):\n%s", diff)
		}
		if n := c.migrations(t); n != 0 {
			t.Errorf("%d migrations are left over", n)
		}
		if diff := cmp.Diff(map[string]bool{"kekctl-1": true, "kekctl-2": true}, c.tidied); diff != "" {
			t.Errorf("migrations that the controller could tidy up behind (-want +got):\n%s", diff)
		}
	})
}

func TestMigrationAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster()
		c.add("events/ns/a", oldKeyID)
		c.add("secrets/ns/a", oldKeyID)
		c.add("secrets/ns/raced", oldKeyID)
		c.serveMigrations(c.migrated("raced"))
		cfg := c.config()
		cfg.Method = Migration
		got, err := Run(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		want := Result{Found: 3, Migrated: []string{"secrets"}, Left: 2, Objects: []Left{
			{"/registry/events/ns/a", "it cannot be migrated; use --method update"},
			{"/registry/secrets/ns/raced", "the migration left it out"},
		}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Run (-want +got):\n%s", diff)
		}
	})
}

// What a migration does not do is left to the updates.
func TestMigrationFallsBack(t *testing.T) {
	nobody := func(*storagemigrationv1.StorageVersionMigration, int) {}
	tests := []struct {
		name  string
		setup func(*fakeCluster)
		took  time.Duration
		// problem is in a note, or in the error where there is no other way.
		problem string
	}{
		{"no controller", func(c *fakeCluster) { c.serveMigrations(nobody) }, 30 * time.Second,
			"secrets: no controller has taken up the migration within 30s; updating its objects instead"},
		{"a failed one", func(c *fakeCluster) {
			c.serveMigrations(func(m *storagemigrationv1.StorageVersionMigration, _ int) {
				condition(m, storagemigrationv1.MigrationFailed, "a webhook said no")
			})
		}, time.Second, "secrets: the migration failed: a webhook said no; updating its objects instead"},
		{"one that somebody deleted", func(c *fakeCluster) {
			c.serveMigrations(func(m *storagemigrationv1.StorageVersionMigration, asked int) {
				gvr := storagemigrationv1.SchemeGroupVersion.WithResource("storageversionmigrations")
				if asked == 1 {
					_ = c.kube.Tracker().Delete(gvr, "", m.Name)
				}
			})
		}, 2 * time.Second, "secrets: somebody deleted the migration; updating its objects instead"},
		{"one that cannot be watched", func(c *fakeCluster) {
			c.serveMigrations(nobody)
			c.kube.PrependReactor("get", "storageversionmigrations", func(clienttesting.Action) (bool, runtime.Object, error) {
				return true, nil, errors.New("connection refused")
			})
		}, time.Minute, "secrets: the migration cannot be watched: connection refused; updating its objects instead"},
		{"one that cannot be created", func(c *fakeCluster) {
			c.serveMigrations(nobody)
			c.kube.PrependReactor("create", "storageversionmigrations", func(clienttesting.Action) (bool, runtime.Object, error) {
				return true, nil, errors.New("not you")
			})
		}, 0, "secrets: no migration could be created: not you; updating its objects instead"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster()
				c.add("deployments/ns/a", oldKeyID)
				c.add("secrets/ns/a", oldKeyID)
				tt.setup(c)
				cfg := c.config()
				cfg.Method = Auto
				begun := time.Now()
				got, err := Run(t.Context(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(Result{Found: 2, Updated: 2}, got); diff != "" {
					t.Errorf("Run (-want +got):\n%s", diff)
				}
				if took := time.Since(begun).Round(time.Second); took != tt.took {
					t.Errorf("it took %v, want %v", took, tt.took)
				}
				if !slices.Contains(c.notes, tt.problem) {
					t.Errorf("notes %q, want %q among them", c.notes, tt.problem)
				}
				if n := c.migrations(t); n != 0 {
					t.Errorf("%d migrations are left over", n)
				}
				// Where no other way is allowed it is an error.
				c.add("secrets/ns/a", oldKeyID)
				c.patches = nil
				cfg.Method = Migration
				if _, err := Run(t.Context(), cfg); err == nil || !strings.HasPrefix(err.Error(), "migrate secrets: ") {
					t.Errorf("Run with migrations only: %v", err)
				}
				if len(c.patches) > 0 {
					t.Errorf("with migrations only there were patches of %v", c.patches)
				}
			})
		})
	}
}

// Only one migration of a resource runs at a time.
func TestMigrationWaitsForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster()
		c.add("secrets/ns/a", oldKeyID)
		gvr := storagemigrationv1.SchemeGroupVersion.WithResource("storageversionmigrations")
		other := &storagemigrationv1.StorageVersionMigration{ObjectMeta: metav1.ObjectMeta{Name: "other"}}
		other.Spec.Resource.Resource = "secrets"
		condition(other, storagemigrationv1.MigrationRunning, "The migration is running")
		if err := c.kube.Tracker().Add(other); err != nil {
			t.Fatal(err)
		}
		controller := c.migrated("none")
		c.serveMigrations(func(m *storagemigrationv1.StorageVersionMigration, asked int) {
			switch {
			case asked < 60:
			case asked == 60:
				_ = c.kube.Tracker().Delete(gvr, "", "other")
				fallthrough
			default:
				controller(m, asked-59)
			}
		})
		cfg := c.config()
		cfg.Method = Auto
		got, err := Run(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(Result{Found: 1, Migrated: []string{"secrets"}}, got); diff != "" {
			t.Errorf("Run (-want +got):\n%s", diff)
		}
		want := []string{
			"secrets: migration kekctl-1 was created",
			"migrating for 10s: secrets (waiting for kube-controller-manager)",
			"migrating for 20s: secrets (waiting for kube-controller-manager)",
			"migrating for 30s: secrets (waiting for other, which migrates the same)",
			"migrating for 40s: secrets (waiting for other, which migrates the same)",
			"migrating for 50s: secrets (waiting for other, which migrates the same)",
			"migrating for 1m0s: secrets (The migration is running)",
			"secrets: migrated",
		}
		if diff := cmp.Diff(want, c.notes); diff != "" {
			t.Errorf("notes (-want +got):\n%s", diff)
		}
	})
}

func TestMigrationInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster()
		c.add("secrets/ns/a", oldKeyID)
		ctx, cancel := context.WithCancel(t.Context())
		c.serveMigrations(func(m *storagemigrationv1.StorageVersionMigration, _ int) {
			condition(m, storagemigrationv1.MigrationRunning, "The migration is running")
			cancel()
		})
		cfg := c.config()
		cfg.Method = Auto
		got, err := Run(ctx, cfg)
		if !errors.Is(err, context.Canceled) || len(c.patches) > 0 {
			t.Errorf("Run: %v, with patches of %v", err, c.patches)
		}
		if diff := cmp.Diff(Result{Found: 1, Left: 1}, got); diff != "" {
			t.Errorf("Run (-want +got):\n%s", diff)
		}
		if n := c.migrations(t); n != 0 {
			t.Errorf("%d migrations are left over", n)
		}
	})
}
