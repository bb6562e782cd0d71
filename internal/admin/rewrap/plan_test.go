package rewrap

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	storagemigrationv1 "k8s.io/api/storagemigration/v1"
)

func TestPlan(t *testing.T) {
	type chosen struct {
		Name    string
		Objects int64
		Stale   int64
		Method  Method
		Problem string
	}
	const noMigrations = "--method: the cluster does not serve StorageVersionMigration (storagemigration.k8s.io/v1); use update"
	tests := []struct {
		name      string
		method    Method
		serves    bool
		resources []string
		want      []chosen
		err       string
	}{
		{"by itself", Auto, true, nil, []chosen{
			{"events", 1, 1, Update, ""}, {"ranges", 1, 1, "", "no API serves it; of its own records kube-apiserver writes some anew within minutes"}, {"secrets", 3, 2, Migration, ""},
		}, ""},
		{"without migrations", Auto, false, nil, []chosen{
			{"events", 1, 1, Update, ""}, {"ranges", 1, 1, "", "no API serves it; of its own records kube-apiserver writes some anew within minutes"}, {"secrets", 3, 2, Update, ""},
		}, ""},
		{"with one more", Update, true, []string{"deployments"}, []chosen{
			{"deployments", 1, 1, Update, ""}, {"events", 1, 1, Update, ""}, {"ranges", 1, 1, "", "no API serves it; of its own records kube-apiserver writes some anew within minutes"}, {"secrets", 3, 2, Update, ""},
		}, ""},
		{"with one that has no objects", Update, true, []string{"namespaces"}, []chosen{
			{"events", 1, 1, Update, ""}, {"ranges", 1, 1, "", "no API serves it; of its own records kube-apiserver writes some anew within minutes"}, {"secrets", 3, 2, Update, ""},
		}, ""},
		{"with one that is not there", Auto, true, []string{"deployments", "widgets"}, nil,
			`--resource: no API serves "widgets"; name resources as kekctl inventory does`},
		{"migrations that are not served", Migration, false, nil, nil, noMigrations},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newFakeCluster()
			c.add("deployments/ns/a", "")
			c.add("events/ns/a", oldKeyID)
			c.add("ranges/serviceips", oldKeyID)
			c.add("secrets/ns/a", oldKeyID)
			c.add("secrets/ns/b", newKeyID)
			c.add("secrets/ns/c", "")
			if tt.serves {
				c.serveMigrations(func(*storagemigrationv1.StorageVersionMigration, int) {})
			}
			cfg := c.config()
			cfg.Method, cfg.Resources = tt.method, tt.resources
			report, err := c.Take(t.Context(), cfg.reading())
			if err != nil {
				t.Fatal(err)
			}
			plan, err := cfg.plan(t.Context(), report)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("plan: %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []chosen
			var stale int64
			for _, r := range plan.Resources {
				got = append(got, chosen{r.Name, r.Objects, r.Stale, r.Method, r.Problem})
				stale += r.Stale
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			if plan.Stale != stale {
				t.Errorf("plan has %d stale, want %d", plan.Stale, stale)
			}
		})
	}
}

func TestFindAPI(t *testing.T) {
	c := newFakeCluster()
	cfg := c.config()
	api, err := cfg.discover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		want string // empty if no API serves it
	}{
		{"secrets", "/v1, Resource=secrets"}, // not the custom resource of that plural
		{"secrets.example.com", "example.com/v1, Resource=secrets"},
		{"events", "/v1, Resource=events"},
		{"deployments", "apps/v1, Resource=deployments"},
		{"widgets.example.com", "example.com/v1, Resource=widgets"},
		{"widgets", ""}, // custom resources have their group in the key
		{"bindings", ""},
		{"namespaces/status", ""},
		{"ranges", ""},
		{"", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, found := api.find(tt.name)
			if found != (tt.want != "") || found && got.String() != tt.want {
				t.Errorf("find(%q) = %s, %v, want %q", tt.name, got, found, tt.want)
			}
		})
	}
}
