package rewrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	storagemigrationv1 "k8s.io/api/storagemigration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/metadata"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"

	"kekd/internal/cluster"
	"kekd/internal/inventory"
	"kekd/internal/kek"
)

const (
	testRing    = "k8s-kek"
	testPrimary = kek.ID("\x02")
	provider    = "kekd"
)

var (
	oldKeyID = kek.KeyID(testRing, "\x01", kek.CheckValue{1})
	newKeyID = kek.KeyID(testRing, testPrimary, kek.CheckValue{2})
)

// fakeCluster is an etcd and a kube-apiserver that writes what is stale under the
// primary. It is for one goroutine at a time.
type fakeCluster struct {
	objects  []inventory.Object // in the order of their keys
	revision int64

	kube *fake.Clientset

	// refuse answers a patch in the API server's place, if it returns an error;
	// attempt counts from 1 for each object.
	refuse   func(key string, attempt int) error
	attempts map[string]int
	// keep: the API server finds nothing stale about the object.
	keep func(key string) bool
	// servers are the API servers; the first is the kubeconfig's.
	servers []*fakeServer
	// patches are the keys, in order, and times their times.
	patches []string
	times   []time.Time
	// writes are the patches that wrote something, with the server.
	writes []string
	// damaged objects cannot be read.
	damaged map[string]bool
	notes   []string
	plan    *Plan
	// tidied are the migrations that the controller could tidy up behind.
	tidied map[string]bool
}

func newFakeCluster() *fakeCluster {
	c := &fakeCluster{
		revision: 100,
		kube:     fake.NewClientset(),
		damaged:  map[string]bool{},
		attempts: map[string]int{},
		tidied:   map[string]bool{},
	}
	c.serve("https://a:6443", newKeyID)
	verbs := metav1.Verbs{"get", "list", "patch"}
	c.kube.Resources = []*metav1.APIResourceList{
		{GroupVersion: "v1", APIResources: []metav1.APIResource{
			{Name: "secrets", Namespaced: true, Verbs: verbs}, {Name: "events", Namespaced: true, Verbs: verbs},
			{Name: "namespaces", Verbs: verbs}, {Name: "namespaces/status", Verbs: verbs},
			{Name: "bindings", Namespaced: true, Verbs: metav1.Verbs{"create"}},
		}},
		{GroupVersion: "apps/v1", APIResources: []metav1.APIResource{{Name: "deployments", Namespaced: true, Verbs: verbs}}},
		{GroupVersion: "events.k8s.io/v1", APIResources: []metav1.APIResource{{Name: "events", Namespaced: true, Verbs: verbs}}},
		{GroupVersion: "example.com/v1", APIResources: []metav1.APIResource{
			{Name: "widgets", Namespaced: true, Verbs: verbs}, {Name: "deployments", Namespaced: true, Verbs: verbs}, {Name: "secrets", Namespaced: true, Verbs: verbs},
		}},
	}
	return c
}

// fakeServer is an API server that writes what is under anything else as its first
// provider does.
type fakeServer struct {
	name     string
	metadata *metadatafake.FakeMetadataClient
	first    inventory.Standing
	// forgot: it has restarted since the token lost the old key, so it cannot read what
	// is under that.
	forgot bool
}

func (s *fakeServer) Name() string                 { return s.name }
func (s *fakeServer) Metadata() metadata.Interface { return s.metadata }

func (s *fakeServer) KeyInUse(context.Context) (cluster.KeyUse, error) {
	return cluster.KeyUse{Providers: []cluster.ProviderUse{{Name: provider, Status: kek.KeyIDHash(newKeyID)}}}, nil
}

// serve adds an API server that writes under a key_id.
func (c *fakeCluster) serve(name, keyID string) {
	s := &fakeServer{name: name, metadata: metadatafake.NewSimpleMetadataClient(runtime.NewScheme()),
		first: inventory.Standing{Class: inventory.KMSv2, Provider: provider, KeyID: keyID}}
	s.metadata.PrependReactor("patch", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		object, err := c.patch(s, a.(clienttesting.PatchAction))
		return true, object, err
	})
	s.metadata.PrependReactor("get", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if key := keyOf(a, a.(clienttesting.GetAction).GetName()); c.unreadable(s, key) {
			return true, nil, apierrors.NewInternalError(errors.New("failed to decrypt DEK"))
		}
		return true, new(metav1.PartialObjectMetadata), nil
	})
	c.servers = append(c.servers, s)
}

// unreadable tells whether a server cannot decrypt an object.
func (c *fakeCluster) unreadable(s *fakeServer, key string) bool {
	i, found := c.index(key)
	return c.damaged[key] || found && s.forgot && c.objects[i].KeyID == oldKeyID
}

func keyOf(a clienttesting.Action, name string) string {
	resource := a.GetResource().Resource
	if group := a.GetResource().Group; strings.Contains(group, ".") {
		resource += "." + group
	}
	return "/registry/" + strings.Join(slices.DeleteFunc([]string{resource, a.GetNamespace(), name}, func(s string) bool { return s == "" }), "/")
}

// serveMigrations adds StorageVersionMigration. step plays the controller: it is
// called with each migration before it is read.
func (c *fakeCluster) serveMigrations(step func(m *storagemigrationv1.StorageVersionMigration, asked int)) {
	c.kube.Resources = append(c.kube.Resources, &metav1.APIResourceList{
		GroupVersion: "storagemigration.k8s.io/v1",
		APIResources: []metav1.APIResource{{Name: "storageversionmigrations", Kind: "StorageVersionMigration", Verbs: metav1.Verbs{"get", "patch"}}},
	})
	created, asked := 0, map[string]int{}
	c.kube.PrependReactor("create", "storageversionmigrations", func(a clienttesting.Action) (bool, runtime.Object, error) {
		created++
		m := a.(clienttesting.CreateAction).GetObject().(*storagemigrationv1.StorageVersionMigration)
		m.Name = m.GenerateName + strconv.Itoa(created)
		return false, nil, nil
	})
	gvr := storagemigrationv1.SchemeGroupVersion.WithResource("storageversionmigrations")
	c.kube.PrependReactor("get", "storageversionmigrations", func(a clienttesting.Action) (bool, runtime.Object, error) {
		name := a.(clienttesting.GetAction).GetName()
		object, err := c.kube.Tracker().Get(gvr, "", name)
		if err != nil {
			return true, nil, err
		}
		m := object.(*storagemigrationv1.StorageVersionMigration)
		asked[name]++
		step(m, asked[name])
		return true, m, nil
	})
}

// condition sets a condition of a migration to true.
func condition(m *storagemigrationv1.StorageVersionMigration, kind storagemigrationv1.MigrationConditionType, message string) {
	meta.SetStatusCondition(&m.Status.Conditions, metav1.Condition{Type: string(kind), Status: metav1.ConditionTrue, Message: message})
}

// add stores an object: "secrets/ns/name", under a key_id, or "" for unencrypted.
func (c *fakeCluster) add(path, keyID string) {
	parts := strings.Split(path, "/")
	o := inventory.Object{Key: "/registry/" + path, Resource: parts[0], Path: parts[1:], Class: inventory.Unencrypted}
	if keyID != "" {
		o.Class, o.Provider, o.KeyID = inventory.KMSv2, provider, keyID
	}
	c.put(o)
}

// addMany adds secrets of the namespace ns.
func (c *fakeCluster) addMany(n int, keyID string) {
	for i := range n {
		c.add(fmt.Sprintf("secrets/ns/%03d", i), keyID)
	}
}

func (c *fakeCluster) put(o inventory.Object) {
	c.revision++
	o.ModRevision = c.revision
	i, found := c.index(o.Key)
	if found {
		c.objects[i] = o
	} else {
		c.objects = slices.Insert(c.objects, i, o)
	}
}

func (c *fakeCluster) index(key string) (i int, found bool) {
	return slices.BinarySearchFunc(c.objects, key, func(o inventory.Object, key string) int { return cmp.Compare(o.Key, key) })
}

// rewrite writes an object as a provider does.
func (c *fakeCluster) rewrite(o inventory.Object, as inventory.Standing) {
	o.Class, o.Provider, o.KeyID = as.Class, as.Provider, as.KeyID
	c.put(o)
}

func (c *fakeCluster) patch(s *fakeServer, a clienttesting.PatchAction) (*metav1.PartialObjectMetadata, error) {
	key := keyOf(a, a.GetName())
	c.patches, c.times = append(c.patches, strings.TrimPrefix(key, "/registry/")), append(c.times, time.Now())
	c.attempts[key]++
	if string(a.GetPatch()) != "{}" {
		return nil, fmt.Errorf("the patch is %s", a.GetPatch())
	}
	if c.unreadable(s, key) {
		return nil, apierrors.NewInternalError(errors.New("failed to decrypt DEK"))
	}
	if c.refuse != nil {
		if err := c.refuse(key, c.attempts[key]); err != nil {
			return nil, err
		}
	}
	i, found := c.index(key)
	if !found {
		return nil, fmt.Errorf("nothing is at %s", key)
	}
	if o := c.objects[i]; o.Standing() != s.first && (c.keep == nil || !c.keep(key)) {
		c.writes = append(c.writes, s.name+" "+strings.TrimPrefix(key, "/registry/"))
		c.rewrite(o, s.first)
	}
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{ResourceVersion: strconv.FormatInt(c.objects[i].ModRevision, 10)}}, nil
}

func (c *fakeCluster) Visit(_ context.Context, _ inventory.Options, visit func(inventory.Object) error) (inventory.Pass, error) {
	for _, o := range slices.Clone(c.objects) {
		if err := visit(o); err != nil {
			return inventory.Pass{}, err
		}
	}
	return inventory.Pass{Revision: c.revision}, nil
}

func (c *fakeCluster) Read(_ context.Context, keys []string) (map[string]inventory.Object, error) {
	found := map[string]inventory.Object{}
	for _, key := range keys {
		if i, ok := c.index(key); ok {
			found[key] = c.objects[i]
		}
	}
	return found, nil
}

func (c *fakeCluster) Take(context.Context, inventory.Options) (*inventory.Report, error) {
	r := new(inventory.Report)
	for _, o := range c.objects {
		if len(r.Resources) == 0 || r.Resources[len(r.Resources)-1].Resource != o.Resource {
			r.Resources = append(r.Resources, inventory.Resource{Resource: o.Resource})
		}
		resource := &r.Resources[len(r.Resources)-1]
		resource.Objects++
		standing := inventory.Standing{Class: o.Class, Provider: o.Provider, KeyID: o.KeyID}
		i := slices.IndexFunc(resource.Counts, func(c inventory.Count) bool { return c.Standing == standing })
		if i < 0 {
			i, resource.Counts = len(resource.Counts), append(resource.Counts, inventory.Count{Standing: standing})
		}
		resource.Counts[i].Objects++
	}
	return r, nil
}

// config is for updates at a rate that is in nobody's way.
func (c *fakeCluster) config() Config {
	var servers []APIServer
	for _, s := range c.servers {
		servers = append(servers, s)
	}
	return Config{
		Store: c, Kube: c.kube, Metadata: c.servers[0].metadata, APIServers: servers,
		KeyID:  newKeyID,
		Method: Update, Rate: 1e6,
		Begin: func(_ context.Context, p *Plan) error {
			c.plan = p
			return nil
		},
		Note:     func(text string) { c.notes = append(c.notes, text) },
		Progress: func(string, int64, int64) {},
	}
}

// migrations counts the migrations that are left over.
func (c *fakeCluster) migrations(t *testing.T) int {
	t.Helper()
	list, err := c.kube.StoragemigrationV1().StorageVersionMigrations().List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return len(list.Items)
}

// plain stores one unencrypted object of each resource: the one that the API servers
// are checked with.
func (c *fakeCluster) plain(resources ...string) {
	for _, resource := range resources {
		c.add(resource+"/ns/first", "")
	}
}

// diffResult compares what was done and what is left.
func diffResult(want, got Result) string {
	return gocmp.Diff(want, got, cmpopts.IgnoreFields(Result{}, "KeyID", "Written", "Shown", "Kinds", "Seconds", "CheckSeconds"))
}

func (c *fakeCluster) sort() {
	slices.SortFunc(c.objects, func(a, b inventory.Object) int { return cmp.Compare(a.Key, b.Key) })
}

// fakeMemory keeps which resources belong to the ring.
type fakeMemory map[string]remembered

func (m fakeMemory) Load(name string, v any) (bool, error) {
	last, ok := m[name]
	*v.(*remembered) = last
	return ok, nil
}

func (m fakeMemory) Save(name string, v any) error {
	m[name] = v.(remembered)
	return nil
}
