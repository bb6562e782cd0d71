package speed

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"kekd/e2e/internal/harness"
)

const (
	// provider is the name of kekd in the EncryptionConfiguration.
	provider = "kekd"
	// valueSize is the size of a Secret's only value, in bytes.
	valueSize = 1024
)

// source is where kube-apiserver takes a list from.
type source string

const (
	// fromCache is its memory, where objects are plaintext: every list that asks
	// for the newest state (resourceVersion unset), once the cache is filled.
	fromCache source = "watch cache"
	// fromCacheInPages is the same in pages: they come from memory too.
	fromCacheInPages source = "watch cache, in pages"
	// fromEtcd is the store, where each object is decrypted: a list of a revision
	// that is older than the cache, and what fills the cache.
	fromEtcd source = "etcd"

	pageSize = 500 // kubectl's
)

// sources are those that are measured.
var sources = []source{fromCache, fromEtcd}

// cluster is an etcd, a kube-apiserver and perhaps a kekd, and what was measured
// on them.
type cluster struct {
	name   string
	etcd   *harness.Etcd
	server *harness.APIServer
	kekd   *harness.Kekd // nil without KMS
	client rest.Interface
	// revision is older than the watch cache of the running server and holds all
	// Secrets; set by restart.
	revision string

	creates  []measurement // one a round
	restarts []restart
	lists    map[source][]measurement
	// creating and listing are what the counters counted meanwhile, and before is
	// how they stood.
	before, creating, listing readings
}

// measurement is one round of creates, or one list.
type measurement struct {
	took time.Duration
	// cpu is the processor time of kube-apiserver, to 10 ms.
	cpu       time.Duration
	latencies []time.Duration // of each create
}

// restart is one cold start.
type restart struct {
	// untilListed is from the start of the process to the end of the first list.
	untilListed time.Duration
	// cacheFilled is what filling the watch cache with all Secrets took:
	// kube-apiserver's own figure.
	cacheFilled time.Duration
	// firstList is the first list of all, once the server is ready.
	firstList time.Duration
	// cpu is the processor time of kube-apiserver until then.
	cpu time.Duration
	// since are all counters since the start.
	since readings
}

// startClusters starts all that is measured.
func startClusters(b *testing.B, o options, progress func(string, ...any)) []*cluster {
	b.Helper()
	start := time.Now()
	clusters := []*cluster{
		newCluster(b, identityName, nil, inlineConfig(b, "identity: {}")),
		newCluster(b, secretboxName, nil, secretbox(b)),
		newCluster(b, controlName, nil, secretbox(b)),
		newCluster(b, noopName, nil, harness.EncryptionConfig(b, provider, startNoop(b), "secrets")),
		newKMS(b, "kekd seeded", "seeded", harness.NewToken(b)),
		newKMS(b, "kekd direct", "direct", harness.NewToken(b)),
	}
	if o.delay > 0 {
		for _, mode := range []string{"seeded", "direct"} {
			token := harness.NewToken(b).WithFaults(b)
			token.Faults(b, fmt.Sprintf("C_EncryptInit ms=%d", o.delay.Milliseconds()), fmt.Sprintf("C_DecryptInit ms=%d", o.delay.Milliseconds()))
			clusters = append(clusters, newKMS(b, fmt.Sprintf("kekd %s, HSM +%v", mode, o.delay), mode, token))
		}
	}
	for _, c := range clusters {
		if c.kekd != nil {
			c.kekd.StartReady(b)
		}
		c.server.StartReady(b)
	}
	progress("started %d clusters in %v", len(clusters), time.Since(start).Round(time.Second))
	return clusters
}

func newKMS(b *testing.B, name, mode string, token *harness.Token) *cluster {
	b.Helper()
	kekd := harness.NewKekd(b, token, harness.KekdOptions{
		Mode: mode,
		// The defaults of kekd, so that its work in the background is what it
		// is in production.
		Refresh: 10 * time.Second, ProbeInterval: 10 * time.Second,
	})
	return newCluster(b, name, kekd, harness.EncryptionConfig(b, provider, kekd.Socket, "secrets"))
}

func newCluster(b *testing.B, name string, kekd *harness.Kekd, config string) *cluster {
	b.Helper()
	c := &cluster{name: name, kekd: kekd, etcd: harness.StartEtcd(b), lists: map[source][]measurement{}}
	c.server = harness.NewAPIServer(b, c.etcd, config)
	rc := c.server.RESTConfig()
	rc.ContentType, rc.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf
	rc.DisableCompression = true
	kube, err := kubernetes.NewForConfig(rc)
	if err != nil {
		b.Fatalf("make the Kubernetes client: %v", err)
	}
	c.client = kube.CoreV1().RESTClient()
	return c
}

// secretbox is the configuration of a provider whose key stands in it.
func secretbox(b *testing.B) string {
	b.Helper()
	key := sha256.Sum256([]byte("a key that protects nothing"))
	return inlineConfig(b, fmt.Sprintf("secretbox: {keys: [{name: key1, secret: %s}]}", base64.StdEncoding.EncodeToString(key[:])))
}

// inlineConfig writes an EncryptionConfiguration of one provider.
func inlineConfig(b *testing.B, provider string) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "encryption.yaml")
	text := fmt.Sprintf(`apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  - resources: [secrets]
    providers: [{%s}]
`, provider)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		b.Fatalf("write the EncryptionConfiguration: %v", err)
	}
	return path
}

// secretName and secretValue are those of the i-th Secret. No value is like
// another, and none can be compressed.
func secretName(i int) string { return fmt.Sprintf("speed-%07d", i) }

func secretValue(name string) []byte {
	var v []byte
	for i := byte(0); len(v) < valueSize; i++ {
		block := sha256.Sum256(append([]byte(name), i))
		v = append(v, block[:]...)
	}
	return v[:valueSize]
}

// create creates n Secrets from the first on, by so many workers at once. It
// returns the error of the first request that failed.
func (c *cluster) create(ctx context.Context, first, n, workers int) (measurement, error) {
	secrets := make(chan *corev1.Secret, n)
	for i := first; i < first+n; i++ {
		name := secretName(i)
		secrets <- &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Data:       map[string][]byte{"value": secretValue(name)},
		}
	}
	close(secrets)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	latencies := make([][]time.Duration, workers)
	m, err := c.measure(func() error {
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for s := range secrets {
					before := time.Now()
					if err := c.createOne(ctx, s); err != nil {
						cancel(fmt.Errorf("create secret %s: %w", s.Name, err))
						return
					}
					latencies[w] = append(latencies[w], time.Since(before))
				}
			})
		}
		wg.Wait()
		return context.Cause(ctx)
	})
	m.latencies = slices.Concat(latencies...)
	return m, err
}

// measure measures what f takes.
func (c *cluster) measure(f func() error) (measurement, error) {
	before, err := c.cpu()
	if err != nil {
		return measurement{}, err
	}
	start := time.Now()
	err = f()
	m := measurement{took: time.Since(start)}
	if err != nil {
		return measurement{}, err
	}
	after, err := c.cpu()
	m.cpu = after - before
	return m, err
}

// cpu is the processor time that kube-apiserver has used.
func (c *cluster) cpu() (time.Duration, error) { return harness.ProcessorTime(c.server.PID()) }

func (c *cluster) createOne(ctx context.Context, s *corev1.Secret) error {
	ctx, cancel := atMost(ctx)
	defer cancel()
	// A retry would hide a failure.
	return c.client.Post().Namespace(metav1.NamespaceDefault).Resource("secrets").Body(s).MaxRetries(0).Do(ctx).Error()
}

// list lists all Secrets and measures that until the last byte. Off the clock it
// compares all of them.
func (c *cluster) list(ctx context.Context, from source, want int) (measurement, error) {
	ctx, cancel := atMost(ctx)
	defer cancel()
	var o metav1.ListOptions
	switch from {
	case fromCacheInPages:
		o.Limit = pageSize
	case fromEtcd:
		o.ResourceVersion, o.ResourceVersionMatch = c.revision, metav1.ResourceVersionMatchExact
	}
	var all measurement
	next := 0 // Secrets come in the order of their names
	for {
		var raw []byte
		m, err := c.measure(func() (err error) {
			raw, err = c.client.Get().Namespace(metav1.NamespaceDefault).Resource("secrets").
				VersionedParams(&o, scheme.ParameterCodec).MaxRetries(0).Do(ctx).Raw()
			return err
		})
		if err != nil {
			return measurement{}, err
		}
		all.took += m.took
		all.cpu += m.cpu
		var page corev1.SecretList
		if _, _, err := scheme.Codecs.UniversalDeserializer().Decode(raw, nil, &page); err != nil {
			return measurement{}, fmt.Errorf("decode: %w", err)
		}
		for _, s := range page.Items {
			if name := secretName(next); s.Name != name || !bytes.Equal(s.Data["value"], secretValue(name)) {
				return measurement{}, fmt.Errorf("secret %s, number %d, reads back wrong", s.Name, next)
			}
			next++
		}
		if o.Continue = page.Continue; o.Continue == "" {
			break
		}
	}
	if next != want {
		return measurement{}, fmt.Errorf("%d Secrets, want %d", next, want)
	}
	return all, nil
}

// restart ends kube-apiserver and kekd and starts them again.
func (c *cluster) restart(b *testing.B, secrets int) restart {
	b.Helper()
	c.revision = c.moveOn(b)
	c.server.Kill(b)
	if c.kekd != nil {
		c.kekd.Stop(b)
		c.kekd.StartReady(b)
	}
	start := time.Now()
	c.server.StartReady(b)
	first, err := c.list(b.Context(), fromCache, secrets)
	if err != nil {
		b.Fatalf("%s: first list after a restart: %v", c.name, err)
	}
	r := restart{firstList: first.took, untilListed: time.Since(start)}
	if r.cpu, err = c.cpu(); err != nil {
		b.Fatalf("%s: %v", c.name, err)
	}
	r.since = c.read(b)
	r.cacheFilled = cacheFilled(b, c.server.Metrics(b))
	return r
}

// moveOn returns etcd's revision of now and makes it an old one by a write.
func (c *cluster) moveOn(b *testing.B) string {
	b.Helper()
	ctx, cancel := atMost(b.Context())
	defer cancel()
	var now corev1.SecretList
	err := c.client.Get().Namespace(metav1.NamespaceDefault).Resource("secrets").
		VersionedParams(&metav1.ListOptions{Limit: 1}, scheme.ParameterCodec).MaxRetries(0).Do(ctx).Into(&now)
	if err != nil {
		b.Fatalf("%s: read the revision: %v", c.name, err)
	}
	marker := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "later-"}}
	if err := c.client.Post().Namespace(metav1.NamespaceDefault).Resource("configmaps").Body(marker).MaxRetries(0).Do(ctx).Error(); err != nil {
		b.Fatalf("%s: write something: %v", c.name, err)
	}
	return now.ResourceVersion
}

// readings are the counters that say what a measurement caused.
type readings struct {
	// toStorage and fromStorage are Secrets that kube-apiserver encoded for etcd
	// and decoded from it, whatever the provider.
	toStorage, fromStorage float64
	// encrypts and decrypts are its calls of the plugin.
	encrypts, decrypts float64
	// uses are HSM operations that calls caused: wraps and unwraps.
	uses float64
	// background are all other HSM operations: probes, readings of the ring.
	background float64
	// kekdCPU is seconds of processor time, without the worker process.
	kekdCPU float64
}

func (r readings) minus(o readings) readings {
	return readings{
		toStorage: r.toStorage - o.toStorage, fromStorage: r.fromStorage - o.fromStorage,
		encrypts: r.encrypts - o.encrypts, decrypts: r.decrypts - o.decrypts,
		uses: r.uses - o.uses, background: r.background - o.background,
		kekdCPU: r.kekdCPU - o.kekdCPU,
	}
}

func (c *cluster) read(b *testing.B) readings {
	b.Helper()
	m := c.server.Metrics(b)
	transformed := func(direction string) float64 {
		return m.Sum("apiserver_storage_transformation_operations_total",
			map[string]string{"resource": "secrets", "transformation_type": direction, "status": "OK"})
	}
	called := func(method string) float64 {
		return m.Sum("apiserver_envelope_encryption_kms_operations_latency_seconds",
			map[string]string{"provider_name": provider, "method_name": "/v2.KeyManagementService/" + method})
	}
	r := readings{
		toStorage: transformed("to_storage"), fromStorage: transformed("from_storage"),
		encrypts: called("Encrypt"), decrypts: called("Decrypt"),
	}
	if c.kekd != nil {
		k := c.kekd.Metrics(b)
		for op, n := range k.By("kekd_hsm_operations_total", "op") {
			if op == "wrap" || op == "unwrap" {
				r.uses += n
			} else {
				r.background += n
			}
		}
		r.kekdCPU = k.Sum("process_cpu_seconds_total", nil)
	}
	return r
}

// cacheFilled reads how long filling the watch cache of Secrets took.
func cacheFilled(b *testing.B, m harness.Metrics) time.Duration {
	b.Helper()
	for _, metric := range m["apiserver_watch_cache_initialization_duration_seconds"].GetMetric() {
		for _, label := range metric.GetLabel() {
			if label.GetName() == "resource" && label.GetValue() == "secrets" && metric.GetHistogram().GetSampleCount() == 1 {
				return time.Duration(metric.GetHistogram().GetSampleSum() * float64(time.Second))
			}
		}
	}
	b.Fatal("kube-apiserver does not say that it filled its watch cache of Secrets once")
	return 0
}
