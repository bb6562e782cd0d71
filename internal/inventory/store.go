// Package inventory tells under which key every object in a cluster's etcd
// stands. It reads etcd as kube-apiserver lays it out, page by page in bounded
// memory, decodes what encryption at rest puts around an object, and never opens
// it: it needs neither the HSM nor a plugin. What etcd holds may be damaged or
// hostile; that ends up in the counts and stops nothing.
//
// Aggregated apiservers with an etcd of their own, and resources that
// kube-apiserver's --etcd-servers-overrides puts elsewhere, are not seen.
package inventory

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"path"
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
	// Prefix is kube-apiserver's --etcd-prefix, such as /registry.
	Prefix string
	// TLS is needed for https endpoints.
	TLS *tls.Config
	// Dial connects to host:port; nil connects over TCP. TLS, if any, is spoken
	// over what it returns.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// requestTimeout bounds each request to etcd, retries included. A page of 4 MiB
// takes milliseconds; a store that needs longer is in trouble, and reading on
// would not help it.
const requestTimeout = 20 * time.Second

// maxAnswer is the largest answer of etcd that is taken into memory, in bytes.
const maxAnswer = 64 << 20

// reader is what reading needs of etcd's client.
type reader interface {
	Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error)
	Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error)
}

// Store is a cluster's etcd. It is safe for concurrent use.
type Store struct {
	kv       reader
	endpoint string // for messages
	prefix   string // ends with a slash
	close    func() error
}

// Open prepares the client. Nothing is sent before the first read.
func Open(cfg Config) (*Store, error) {
	options := []grpc.DialOption{grpc.WithChainUnaryInterceptor(failFast)}
	if cfg.Dial != nil {
		options = append(options, grpc.WithContextDialer(cfg.Dial))
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:          cfg.Endpoints,
		TLS:                cfg.TLS,
		MaxCallRecvMsgSize: maxAnswer,
		DialOptions:        options,
		Logger:             zap.NewNop(), // its default writes to stderr
	})
	if err != nil {
		return nil, fmt.Errorf("make a client of etcd: %w", err)
	}
	return newStore(client, strings.Join(cfg.Endpoints, ","), cfg.Prefix, client.Close), nil
}

// failFast lets a request fail with what is wrong with the connection. The client
// tries again for some three seconds. Without this it would wait for a connection
// until the request's time is over, and nobody would learn why.
func failFast(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoker(ctx, method, req, reply, conn, append(opts, grpc.WaitForReady(false))...)
}

func newStore(kv reader, endpoint, prefix string, closing func() error) *Store {
	// kube-apiserver takes the prefix with and without slashes around it.
	prefix = strings.TrimSuffix(path.Join("/", prefix), "/") + "/"
	return &Store{kv: kv, endpoint: endpoint, prefix: prefix, close: closing}
}

// Close ends the connection.
func (s *Store) Close() error { return s.close() }

// get makes one request.
func (s *Store) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, requestTimeout, fmt.Errorf("no answer within %v", requestTimeout))
	defer cancel()
	resp, err := s.kv.Get(ctx, key, opts...)
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	return resp, nil
}

// failed says what went wrong with a request that had this context.
func (s *Store) failed(ctx context.Context, err error) error {
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
