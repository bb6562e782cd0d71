package rewrap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"kekd/internal/inventory"
)

// An API server that writes under something else stops everything before a second
// object of the resource is touched.
func TestWrongWriter(t *testing.T) {
	identity := inventory.Standing{Class: inventory.Unencrypted}
	aescbc := inventory.Standing{Class: inventory.OtherProvider, Provider: "aescbc:v1:key1"}
	other := inventory.Standing{Class: inventory.KMSv2, Provider: "other", KeyID: "vault/1"}
	older := inventory.Standing{Class: inventory.KMSv2, Provider: provider, KeyID: oldKeyID}
	tests := []struct {
		name   string
		first  []inventory.Standing // of https://a, https://b; empty is kekd
		stored string               // key_id of the objects
		writes int
		want   []string
	}{
		{"identity first", []inventory.Standing{identity}, oldKeyID, 1, []string{"https://a:6443 writes secrets with identity (unencrypted)", "it is now with identity"}},
		{"identity first, and nothing is encrypted yet", []inventory.Standing{identity}, "", 0, []string{"with identity (unencrypted)", "no object was changed"}},
		{"identity first, and all is under the primary", []inventory.Standing{identity}, newKeyID, 1, []string{"with identity (unencrypted)"}},
		{"aescbc first", []inventory.Standing{aescbc}, oldKeyID, 1, []string{"with aescbc: key1"}},
		{"another plugin first", []inventory.Standing{other}, oldKeyID, 1, []string{`with another KMS provider "other" (key_id vault/1)`}},
		{"an older key", []inventory.Standing{older}, oldKeyID, 0, []string{"under another key of the ring, " + oldKeyID}},
		{"the second server", []inventory.Standing{{}, identity}, oldKeyID, 3, []string{"https://b:6443 writes secrets with identity (unencrypted), and", "https://a:6443 brought it back"}},
		{"the first server", []inventory.Standing{identity, {}}, oldKeyID, 2, []string{"https://a:6443 writes secrets with identity (unencrypted), and", "it is under the primary again"}},
		{"both", []inventory.Standing{identity, aescbc}, oldKeyID, 2, []string{"https://a:6443 writes secrets with identity (unencrypted), and https://b:6443 writes secrets with aescbc: key1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newFakeCluster()
			c.addMany(20, tt.stored)
			for i, first := range tt.first {
				if i == 1 {
					c.serve("https://b:6443", newKeyID)
				}
				if first.Class != "" {
					c.servers[i].first = first
				}
			}
			cfg := c.config()
			cfg.Resources = []string{"secrets"}
			_, err := CheckWriters(t.Context(), cfg)
			if err == nil {
				t.Fatal("CheckWriters took it")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("CheckWriters: %v, want %q in it", err, want)
				}
			}
			touched := map[string]bool{}
			for _, w := range c.writes {
				_, key, _ := strings.Cut(w, " ")
				touched[key] = true
			}
			if len(c.writes) != tt.writes || len(touched) > 1 {
				t.Errorf("writes: %v, want %d of one object", c.writes, tt.writes)
			}
			if tt.stored == newKeyID {
				return // nothing is stale
			}
			c.writes = nil
			if result, err := Run(t.Context(), cfg); err == nil || len(c.writes) > 3 {
				t.Errorf("Run = %+v, %v, with writes %v", result, err, c.writes)
			}
		})
	}
}

// A server that begins to write plaintext while objects are updated is caught before
// the next batch.
func TestGetsWorse(t *testing.T) {
	c := newFakeCluster()
	c.addMany(900, oldKeyID)
	c.refuse = func(string, int) error {
		if len(c.writes) == 300 {
			c.servers[0].first = inventory.Standing{Class: inventory.Unencrypted}
		}
		return nil
	}
	_, err := Run(t.Context(), c.config())
	if err == nil || !strings.Contains(err.Error(), "stopped, because an object got worse: https://a:6443 writes secrets with identity") {
		t.Errorf("Run: %v", err)
	}
	if len(c.writes) > 300+readBackEvery+2 {
		t.Errorf("%d writes", len(c.writes))
	}
}

// Failures of all kinds, many and in one stretch: the rest is rewritten, and the list
// is complete.
func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster()
		for ns, n := range map[string]int{"damaged": 500, "forbidden": 2000, "refused": 500, "webhook": 20, "zz": 1980} {
			for i := range n {
				c.objects = append(c.objects, inventory.Object{
					Key: fmt.Sprintf("/registry/secrets/%s/%04d", ns, i), Resource: "secrets", Path: []string{ns, fmt.Sprintf("%04d", i)},
					Class: inventory.KMSv2, Provider: provider, KeyID: oldKeyID, ModRevision: 1,
				})
			}
		}
		c.sort()
		for _, o := range c.objects {
			c.damaged[o.Key] = o.Path[0] == "damaged"
		}
		c.refuse = func(key string, _ int) error {
			switch strings.Split(key, "/")[3] {
			case "forbidden":
				return apierrors.NewForbidden(secrets, "a", errors.New(`User "u" cannot patch resource "secrets"`))
			case "refused":
				return apierrors.NewInvalid(secretKind, "a", nil)
			case "webhook":
				return apierrors.NewInternalError(errors.New(`failed calling webhook "w": connection refused`))
			}
			return nil
		}
		cfg := c.config()
		cfg.Failures = filepath.Join(t.TempDir(), "failures")
		begun := time.Now()
		got, err := Run(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > 30*time.Second {
			t.Errorf("it took %v", took)
		}
		kinds := map[Kind]int64{Unreadable: 500, Forbidden: 2000, Refused: 500, Webhook: 20}
		if diff := cmp.Diff(kinds, got.Kinds); diff != "" {
			t.Errorf("kinds (-want +got):\n%s", diff)
		}
		if got.Left != 3020 || got.Updated != 1980 || len(got.Objects) != maxObjects || len(got.Shown) != 4*maxShown {
			t.Errorf("left %d, updated %d, %d objects, %d shown", got.Left, got.Updated, len(got.Objects), len(got.Shown))
		}
		list, err := os.ReadFile(cfg.Failures)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(list), "\n"); n != 3020 {
			t.Errorf("%d lines in the list", n)
		}
		for _, o := range c.objects {
			listed := strings.Contains(string(list), `"`+o.Key+`"`)
			if listed == o.Under(testRing, testPrimary) {
				t.Fatalf("%s: listed %v, under the primary %v", o.Key, listed, !listed)
			}
		}
	})
}

func TestBelonging(t *testing.T) {
	tests := []struct {
		name       string
		setup      func(*fakeCluster, *Config)
		want       string // empty is no error
		resources  []string
		remembered []string
	}{
		{"nothing is under the ring", func(c *fakeCluster, _ *Config) { c.add("secrets/ns/a", "") },
			"nothing in etcd is under ring k8s-kek (there is no object)", nil, nil},
		{"for the first time", func(c *fakeCluster, cfg *Config) {
			c.add("secrets/ns/a", "")
			cfg.Resources = []string{"secrets"}
		}, "", []string{"secrets"}, []string{"secrets"}},
		{"one of the configuration has left", func(c *fakeCluster, cfg *Config) {
			c.add("deployments/ns/a", newKeyID)
			c.add("secrets/ns/a", "")
			cfg.Configured = []string{"secrets"}
		}, "secrets: belongs to ring k8s-kek by cluster.resources, and none of its 1 objects is under the ring (1 unencrypted)", nil, nil},
		{"one of the EncryptionConfiguration has left", func(c *fakeCluster, cfg *Config) {
			c.add("deployments/ns/a", "")
			c.add("secrets/ns/a", newKeyID)
			cfg.Encrypted = func(context.Context) ([]Encrypted, error) {
				return []Encrypted{{"/etc/enc.yaml", []string{"deployments.apps", "secrets"}}}, nil
			}
		}, "deployments: belongs to ring k8s-kek by /etc/enc.yaml", nil, nil},
		{"one of the last inventory has left", func(c *fakeCluster, cfg *Config) {
			c.add("deployments/ns/a", "")
			c.add("secrets/ns/a", newKeyID)
			_ = cfg.Memory.Save(memoryName, remembered{Ring: testRing, Resources: []string{"deployments", "secrets"}})
		}, "deployments: belongs to ring k8s-kek by the inventory of ", nil, nil},
		{"all have left", func(c *fakeCluster, cfg *Config) {
			c.add("secrets/ns/a", "")
			_ = cfg.Memory.Save(memoryName, remembered{Ring: testRing, Resources: []string{"secrets"}})
		}, "secrets: belongs to ring", nil, nil},
		{"one without objects", func(c *fakeCluster, cfg *Config) {
			c.add("secrets/ns/a", newKeyID)
			cfg.Configured = []string{"secrets", "widgets.example.com"}
		}, "", []string{"secrets"}, []string{"secrets", "widgets.example.com"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newFakeCluster()
			cfg := c.config()
			memory := fakeMemory{}
			cfg.Memory = memory
			tt.setup(c, &cfg)
			_, err := Run(t.Context(), cfg)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("Run: %v, want %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.remembered, memory[memoryName].Resources); diff != "" {
				t.Errorf("remembered (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSuccession(t *testing.T) {
	const next = testRing + "/03/030303"
	tests := []struct {
		name    string
		in      time.Duration
		despite bool
		took    string // over by this key while it runs
		want    string
	}{
		{"soon", time.Minute, false, "", "key " + next + " takes over at "},
		{"soon, all the same", time.Minute, true, "", ""},
		{"late", 30 * 24 * time.Hour, false, "", ""},
		{"made while it runs", 0, false, next, "key " + next + " became the primary while this ran"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFakeCluster()
				c.addMany(5, oldKeyID)
				cfg := c.config()
				cfg.Despite = tt.despite
				asked := 0
				cfg.Succession = func(context.Context) (Succession, error) {
					asked++
					s := Succession{Primary: newKeyID}
					if tt.in > 0 {
						s.Pending, s.Activation = next, time.Now().Add(tt.in)
					}
					if tt.took != "" && asked > 1 {
						s.Primary = tt.took
					}
					return s, nil
				}
				got, err := Run(t.Context(), cfg)
				if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
					t.Errorf("Run: %v, want %q", err, tt.want)
				}
				if tt.want == "" && (got.Next != next || got.Left != 0) {
					t.Errorf("Run = %+v", got)
				}
				if tt.name == "soon" && len(c.patches) > 0 {
					t.Errorf("there were patches of %v", c.patches)
				}
			})
		})
	}
}
