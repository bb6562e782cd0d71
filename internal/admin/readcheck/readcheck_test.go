package readcheck

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	gocmp "github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"

	"kekd/internal/admin/text"
	"kekd/internal/cluster"
	"kekd/internal/inventory"
)

// objects is an etcd.
type objects []inventory.Object

func (s objects) Visit(_ context.Context, _ inventory.Options, visit func(inventory.Object) error) (inventory.Pass, error) {
	for _, o := range s {
		if err := visit(o); err != nil {
			return inventory.Pass{}, err
		}
	}
	return inventory.Pass{}, nil
}

// Read finds all but what was deleted.
func (s objects) Read(_ context.Context, keys []string) (map[string]inventory.Object, error) {
	found := map[string]inventory.Object{}
	for _, o := range s {
		if slices.Contains(keys, o.Key) && o.Key != "/registry/secrets/ns/deleted" {
			found[o.Key] = o
		}
	}
	return found, nil
}

var secrets = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}

func TestRun(t *testing.T) {
	t.Parallel()
	secret := func(name, keyID string) inventory.Object {
		return inventory.Object{Key: "/registry/secrets/ns/" + name, Resource: "secrets", Path: []string{"ns", name}, Class: inventory.KMSv2, Provider: "kekd", KeyID: keyID}
	}
	const ours = "ring/01/a1b2c3"
	odd := secret("odd", ours)
	odd.Path = []string{"odd"}
	gone := secret("x", ours)
	gone.Key, gone.Resource = "/registry/example.com/widgets/ns/x", "widgets.example.com"
	unparsable := inventory.Object{Key: "/registry/secrets/ns/cut", Resource: "secrets", Path: []string{"ns", "cut"}, Class: inventory.Unparsable, Provider: "kekd"}
	store := objects{
		secret("good", ours), secret("flaky", ours), secret("damaged", ours), secret("forbidden", ours), secret("deleted", ours), secret("hidden", ours),
		secret("foreign", "other/01/a1b2c3"), {Key: "/registry/secrets/ns/plain", Resource: "secrets", Path: []string{"ns", "plain"}, Class: inventory.Unencrypted},
		odd, gone, unparsable,
	}
	answers := map[string]error{
		"damaged":   apierrors.NewInternalError(errors.New("unable to transform key \"/registry/secrets/ns/damaged\": failed")),
		"cut":       apierrors.NewInternalError(errors.New("unable to transform key \"/registry/secrets/ns/cut\": proto")),
		"forbidden": apierrors.NewForbidden(secrets.GroupResource(), "forbidden", errors.New("no")),
		"deleted":   apierrors.NewNotFound(secrets.GroupResource(), "deleted"),
		"hidden":    apierrors.NewNotFound(secrets.GroupResource(), "hidden"),
	}
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewSimpleMetadataClient(runtime.NewScheme())
		var mu sync.Mutex
		asked := map[string]int{}
		client.PrependReactor("get", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
			name := action.(clienttesting.GetAction).GetName()
			mu.Lock()
			defer mu.Unlock()
			asked[name]++
			if name == "flaky" && asked[name] < tries {
				return true, nil, apierrors.NewTooManyRequests("busy", 1)
			}
			return true, &metav1.PartialObjectMetadata{}, answers[name]
		})
		var failed []Failure
		got, err := Run(t.Context(), Config{
			Store: store, Metadata: client, Ring: "ring", Rate: 1000,
			Resources: cluster.Resources{secrets.GroupResource(): {GroupVersionResource: secrets, Namespaced: true}},
			Failed:    func(f Failure) error { failed = append(failed, f); return nil },
		})
		if want := (Result{Read: 2, Failed: 6, Deleted: 1}); err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
		slices.SortFunc(failed, func(a, b Failure) int { return cmp.Compare(a.Key, b.Key) })
		want := []Failure{
			{gone.Key, gone.Resource, ours, "the API serves no resource widgets.example.com"},
			{"/registry/secrets/ns/cut", "secrets", "", text.Short(answers["cut"].Error())},
			{"/registry/secrets/ns/damaged", "secrets", ours, text.Short(answers["damaged"].Error())},
			{"/registry/secrets/ns/forbidden", "secrets", ours, text.Short(answers["forbidden"].Error())},
			{"/registry/secrets/ns/hidden", "secrets", ours, "the API server does not find it, although etcd has it"},
			{odd.Key, "secrets", ours, "its key in etcd is not that of an object of the API"},
		}
		if diff := gocmp.Diff(want, failed); diff != "" {
			t.Errorf("failures (-want +got):\n%s", diff)
		}
	})
}

// An error of the list of failures ends it.
func TestRunEnds(t *testing.T) {
	t.Parallel()
	full := errors.New("no space left")
	store := make(objects, 100)
	for i := range store {
		store[i] = inventory.Object{Key: "/registry/x/y", Resource: "x", Path: []string{"y"}, Class: inventory.Unparsable}
	}
	_, err := Run(t.Context(), Config{
		Store: store, Metadata: fake.NewSimpleMetadataClient(runtime.NewScheme()), Ring: "ring", Rate: 1000,
		Failed: func(Failure) error { return full },
	})
	if !errors.Is(err, full) {
		t.Errorf("got %v, want %v", err, full)
	}
}
