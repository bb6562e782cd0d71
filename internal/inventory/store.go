// Package inventory counts the objects in a cluster's etcd under each key. It reads
// etcd as kube-apiserver lays it out, page by page in bounded memory, decodes what
// encryption at rest puts around an object, and never opens it: it needs neither the
// HSM nor a plugin. What etcd holds may be damaged or hostile; that ends up in the
// counts and stops nothing.
//
// Aggregated API servers with an etcd of their own are not seen.
package inventory

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Config says how etcd is reached.
type Config struct {
	// Endpoints are URLs, http or https.
	Endpoints []string
	// Overrides are the resources that kube-apiserver keeps elsewhere.
	Overrides []Override
	// Prefix is kube-apiserver's --etcd-prefix, such as /registry.
	Prefix string
	// TLS is needed for https endpoints.
	TLS *tls.Config
	// Dial connects to host:port; nil connects over TCP. TLS, if any, is spoken
	// over what it returns.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// requestTimeout bounds each request to etcd, retries included. A page takes
// milliseconds.
const requestTimeout = 20 * time.Second

const (
	// maxAnswer is the largest page that is taken into memory, in bytes.
	maxAnswer = 8 << 20
	// maxObject is the largest single object, keys and all. kube-apiserver and etcd
	// refuse more than 1.5 MiB by default.
	maxObject = 64 << 20
)

// reader is what reading needs of etcd's client.
type reader interface {
	Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error)
	Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error)
}

// Store is where a cluster keeps its objects: its etcd, and those to which
// kube-apiserver's --etcd-servers-overrides sends some resources. It is safe for
// concurrent use.
type Store struct {
	// sources are the cluster's own etcd first, then the others.
	sources []*source
	prefix  string // ends with a slash
}

// source is one etcd.
type source struct {
	kv       reader
	members  lister // nil in tests that need none
	endpoint string // for messages
	// resources are those that kube-apiserver keeps here because of an override;
	// none for the cluster's own etcd.
	resources []string
	close     func() error
}

// Open prepares the clients. Nothing is sent before the first read.
func Open(cfg Config) (*Store, error) {
	own, err := cfg.open(cfg.Endpoints)
	if err != nil {
		return nil, err
	}
	s := &Store{sources: []*source{own}, prefix: cleanPrefix(cfg.Prefix)}
	for _, o := range cfg.Overrides {
		if err := s.override(cfg, o); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// override adds a resource's own etcd. Several resources may share one, which is
// then read once.
func (s *Store) override(cfg Config, o Override) error {
	name := endpointName(o.Endpoints)
	i := slices.IndexFunc(s.sources, func(other *source) bool { return other.endpoint == name })
	switch {
	case i == 0: // the cluster's own
		return nil
	case i > 0:
		s.sources[i].resources = append(s.sources[i].resources, o.Resource)
		return nil
	}
	other, err := cfg.open(o.Endpoints)
	if err != nil {
		return fmt.Errorf("%s of --etcd-servers-overrides: %w", o.Resource, err)
	}
	other.resources = []string{o.Resource}
	s.sources = append(s.sources, other)
	return nil
}

// endpointName is the same for the same endpoints in any order.
func endpointName(endpoints []string) string {
	return strings.Join(slices.Sorted(slices.Values(endpoints)), ",")
}

func (cfg Config) open(endpoints []string) (*source, error) {
	options := []grpc.DialOption{grpc.WithChainUnaryInterceptor(perCall)}
	if cfg.Dial != nil {
		options = append(options, grpc.WithContextDialer(cfg.Dial))
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   endpoints,
		TLS:         cfg.TLS,
		DialOptions: options,
		Logger:      zap.NewNop(), // its default writes to stderr
	})
	if err != nil {
		return nil, fmt.Errorf("make a client of etcd: %w", err)
	}
	return &source{kv: client, members: client, endpoint: endpointName(endpoints), close: client.Close}, nil
}

// anySize marks the context of a request whose answer may be as large as maxObject.
type anySize struct{}

// perCall sets the options of each request.
//
// It lets a request fail with what is wrong with the connection; the client tries
// again for some three seconds. Without this it would wait for a connection until
// the request's time is over, and the reason would be lost.
//
// It also refuses an answer that would take too much memory, before it is received.
func perCall(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	size := maxAnswer
	if ctx.Value(anySize{}) != nil {
		size = maxObject
	}
	return invoker(ctx, method, req, reply, conn, append(opts, grpc.WaitForReady(false), grpc.MaxCallRecvMsgSize(size))...)
}

func newStore(kv reader, endpoint, prefix string, closing func() error) *Store {
	return &Store{sources: []*source{{kv: kv, endpoint: endpoint, close: closing}}, prefix: cleanPrefix(prefix)}
}

// cleanPrefix: kube-apiserver takes the prefix with and without slashes around it.
func cleanPrefix(prefix string) string {
	return strings.TrimSuffix(path.Join("/", prefix), "/") + "/"
}

// Close ends the connections.
func (s *Store) Close() error {
	var problems []error
	for _, src := range s.sources {
		problems = append(problems, src.close())
	}
	return errors.Join(problems...)
}

// get makes one request.
func (s *source) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, requestTimeout, errNoAnswer)
	defer cancel()
	resp, err := s.kv.Get(ctx, key, opts...)
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	return resp, nil
}

// failed says what went wrong with a request that had this context.
func (s *source) failed(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	remedy := ""
	if status.Code(err) == codes.Unavailable {
		// A client certificate that etcd refuses may show as no more than a
		// broken connection.
		remedy = "; see that etcd runs there and takes the client certificate"
	}
	return fmt.Errorf("read etcd at %s: %w%s", s.endpoint, err, remedy)
}

var errNoAnswer = fmt.Errorf("no answer within %v", requestTimeout)

// Object reads one object as it is now; false if there is none. It asks the etcd
// that kube-apiserver keeps the object's resource in.
func (s *Store) Object(ctx context.Context, key string) (Object, bool, error) {
	resp, err := s.source(key).get(context.WithValue(ctx, anySize{}, true), key)
	if err != nil || len(resp.Kvs) == 0 {
		return Object{}, false, err
	}
	return s.object(resp.Kvs[0].Key, resp.Kvs[0].Value, resp.Kvs[0].ModRevision), true, nil
}

// source is the etcd that kube-apiserver keeps an object's resource in.
func (s *Store) source(key string) *source {
	src := s.sources[0]
	resource, _ := s.split(key)
	for _, other := range s.sources[1:] {
		for _, overridden := range other.resources {
			if _, plural, _ := strings.Cut(overridden, "/"); plural == resource {
				src = other
			}
		}
	}
	return src
}
