package rotation

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/transport"
)

const (
	// requestTimeout is how long a request may take on a small and busy machine.
	requestTimeout = 10 * time.Second
	// fillers is how many clients make the first objects.
	fillers = 8
)

// load is clients that write and read through every apiserver all the time, and
// know what they must find. An apiserver changes only what was made through it, as
// the others do not open what stands under its seed.
type load struct {
	cluster *cluster
	clients []*loadClient // one for each node
	created atomic.Int64
	cancel  context.CancelFunc
	done    sync.WaitGroup

	mu       sync.Mutex
	objects  []*object // guarded by mu; only ever longer
	failures []failure // guarded by mu
}

// loadClient is what talks to one apiserver.
type loadClient struct {
	node     int
	api      typedcorev1.CoreV1Interface
	requests atomic.Int64
	// refused counts answers that are errors, also those that the client library
	// hides by trying again.
	refused atomic.Int64
}

// object is a Secret or a ConfigMap of the load.
type object struct {
	resource, name string
	node           int // that it is written through
	// A read must find a version from acknowledged, as it was before, to sent, as
	// it is after.
	sent, acknowledged atomic.Int64
}

// failure is a request that did not do what it should.
type failure struct {
	at     time.Time
	node   int
	verb   string
	object *object // nil for a list
	// keyID is what the object stood under in etcd right after it.
	keyID string
	err   error
}

func (f failure) String() string {
	name := "everything"
	if f.object != nil {
		name = f.object.resource + " " + f.object.name
	}
	return fmt.Sprintf("%s: %s %s through node %d, under %q: %v", f.at.Format("15:04:05.000"), f.verb, name, f.node, f.keyID, f.err)
}

// newLoad makes the first objects, so many for each node, and starts no load.
func newLoad(t *testing.T, c *cluster, each int) *load {
	t.Helper()
	l := &load{cluster: c}
	for i, n := range c.nodes {
		client := &loadClient{node: i}
		config := n.apiserver.RESTConfig()
		config.WrapTransport = transport.WrapperFunc(client.count)
		kube, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatalf("make the Kubernetes client: %v", err)
		}
		client.api = kube.CoreV1()
		l.clients = append(l.clients, client)
	}
	var fill sync.WaitGroup
	for i := range fillers {
		fill.Go(func() {
			for n := i; n < each*len(l.clients); n += fillers {
				l.create(t.Context(), l.clients[n%len(l.clients)])
			}
		})
	}
	fill.Wait()
	l.requireNone(t)
	return l
}

// count counts requests and those that were refused.
func (c *loadClient) count(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(r)
		if errors.Is(r.Context().Err(), context.Canceled) {
			return resp, err // the load ends
		}
		c.requests.Add(1)
		if err != nil || resp.StatusCode >= http.StatusBadRequest {
			c.refused.Add(1)
		}
		return resp, err
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// start starts the load. It is paced, and so leaves room on a small machine for
// those who are tested.
func (l *load) start(t *testing.T) {
	t.Helper()
	var ctx context.Context
	ctx, l.cancel = context.WithCancel(t.Context())
	for _, c := range l.clients {
		for _, activity := range []struct {
			pause time.Duration
			do    func(context.Context, *loadClient)
		}{
			{250 * time.Millisecond, l.create},
			{25 * time.Millisecond, l.update},
			{25 * time.Millisecond, l.read},
			{25 * time.Millisecond, l.read},
			{time.Second, l.list},
		} {
			l.done.Go(func() {
				tick := time.NewTicker(activity.pause)
				defer tick.Stop()
				for {
					activity.do(ctx, c)
					select {
					case <-ctx.Done():
						return
					case <-tick.C:
					}
				}
			})
		}
	}
	t.Cleanup(l.stop)
}

func (l *load) stop() {
	l.cancel()
	l.done.Wait()
}

// failed notes a failure, unless it is that the load ends.
func (l *load) failed(ctx context.Context, c *loadClient, verb string, o *object, err error) {
	if err == nil || errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	f := failure{at: time.Now(), node: c.node, verb: verb, object: o, err: err}
	if o != nil {
		if _, f.keyID, err = l.cluster.stored(ctx, o.resource, o.name); err != nil {
			f.err = errors.Join(f.err, err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, f)
}

// snapshot returns what failed so far, and the objects.
func (l *load) snapshot() ([]failure, []*object) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clip(l.failures), slices.Clip(l.objects)
}

// pick returns any object, of one node if that is not negative.
func (l *load) pick(node int) *object {
	_, objects := l.snapshot()
	for {
		if o := objects[rand.IntN(len(objects))]; node < 0 || o.node == node {
			return o
		}
	}
}

func (l *load) create(ctx context.Context, c *loadClient) {
	serial := l.created.Add(1)
	o := &object{resource: secrets, node: c.node, name: fmt.Sprintf("load-%d-%05d", c.node, serial)}
	if serial%4 == 0 {
		o.resource = configmaps
	}
	if err := c.write(ctx, o, true); err != nil {
		l.failed(ctx, c, "create", nil, err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.objects = append(l.objects, o)
}

// update is called by one goroutine for each node, so each object has one writer.
func (l *load) update(ctx context.Context, c *loadClient) {
	o := l.pick(c.node)
	l.failed(ctx, c, "update", o, c.write(ctx, o, false))
}

func (l *load) read(ctx context.Context, c *loadClient) {
	o := l.pick(-1)
	l.failed(ctx, c, "get", o, c.check(ctx, o))
}

func (l *load) list(ctx context.Context, c *loadClient) {
	_, objects := l.snapshot()
	l.failed(ctx, c, "list", nil, c.checkList(ctx, objects))
}

// checkList lists all Secrets in pages, as of now, and looks for those of the load.
func (c *loadClient) checkList(ctx context.Context, objects []*object) error {
	want := map[string]bool{}
	for _, o := range objects {
		if o.resource == secrets {
			want[o.name] = true
		}
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	options := metav1.ListOptions{Limit: 250}
	for {
		page, err := c.api.Secrets(metav1.NamespaceDefault).List(ctx, options)
		if err != nil {
			return err
		}
		for _, s := range page.Items {
			delete(want, s.Name)
		}
		if options.Continue = page.Continue; options.Continue == "" {
			break
		}
	}
	if len(want) > 0 {
		return fmt.Errorf("%d secrets are missing in the list", len(want))
	}
	return nil
}

// write stores the next version of an object. It does not say which version it
// knows: it is no conflict when somebody else rewrites the object.
func (c *loadClient) write(ctx context.Context, o *object, create bool) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	version := o.sent.Add(1)
	meta := metav1.ObjectMeta{Name: o.name}
	data := map[string]string{"value": plaintext(o.name, version)}
	secret := &corev1.Secret{ObjectMeta: meta, StringData: data}
	configmap := &corev1.ConfigMap{ObjectMeta: meta, Data: data}
	var err error
	switch {
	case o.resource == secrets && create:
		_, err = c.api.Secrets(metav1.NamespaceDefault).Create(ctx, secret, metav1.CreateOptions{})
	case o.resource == secrets:
		_, err = c.api.Secrets(metav1.NamespaceDefault).Update(ctx, secret, metav1.UpdateOptions{})
	case create:
		_, err = c.api.ConfigMaps(metav1.NamespaceDefault).Create(ctx, configmap, metav1.CreateOptions{})
	default:
		_, err = c.api.ConfigMaps(metav1.NamespaceDefault).Update(ctx, configmap, metav1.UpdateOptions{})
	}
	if err == nil {
		o.acknowledged.Store(version)
	}
	return err
}

func plaintext(name string, version int64) string {
	return fmt.Sprintf("plaintext of %s, version %d", name, version)
}

// check reads an object from etcd, past the watch cache, and compares.
func (c *loadClient) check(ctx context.Context, o *object) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	oldest := o.acknowledged.Load()
	var value string
	if o.resource == secrets {
		s, err := c.api.Secrets(metav1.NamespaceDefault).Get(ctx, o.name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		value = string(s.Data["value"])
	} else {
		m, err := c.api.ConfigMaps(metav1.NamespaceDefault).Get(ctx, o.name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		value = m.Data["value"]
	}
	newest := o.sent.Load()
	for version := oldest; version <= newest; version++ {
		if value == plaintext(o.name, version) {
			return nil
		}
	}
	return fmt.Errorf("it holds %q, want version %d to %d", value, oldest, newest)
}

// requireNone requires that nothing has failed through any apiserver.
func (l *load) requireNone(t *testing.T) {
	t.Helper()
	for i := range l.clients {
		l.requireNoneThrough(t, i)
	}
}

// requireNoneThrough requires that nothing has failed through one apiserver, not
// even what the client library tries again by itself.
func (l *load) requireNoneThrough(t *testing.T, node int) {
	t.Helper()
	failures, objects := l.snapshot()
	shown := 0
	for _, f := range failures {
		if f.node == node {
			if shown++; shown <= 5 {
				t.Error(f)
			}
		}
	}
	c := l.clients[node]
	requests, refused := c.requests.Load(), c.refused.Load()
	if shown > 0 || refused > 0 {
		t.Fatalf("%d operations and %d of %d requests failed through node %d, want none", shown, refused, requests, node)
	}
	t.Logf("node %d: %d requests, none failed; %d objects", node, requests, len(objects))
}

// requireReadable requires that every object reads back through every apiserver, at
// the version that was written last. The load must have stopped.
func (l *load) requireReadable(t *testing.T) {
	t.Helper()
	_, objects := l.snapshot()
	for _, c := range l.clients {
		for _, o := range objects {
			if err := c.check(t.Context(), o); err != nil {
				t.Fatalf("read %s %s through node %d: %v", o.resource, o.name, c.node, err)
			}
		}
	}
	t.Logf("%d objects read back through %d apiserver(s)", len(objects), len(l.clients))
}
