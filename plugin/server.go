package plugin

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/tracing"
)

const (
	// DefaultMaxInFlight is the cap on Encrypts and Decrypts at once. The seeds'
	// fast path never comes near it; it bounds what waits for a slow HSM.
	DefaultMaxInFlight = 256
	// DefaultRequestTimeout is the longest a request may take. kube-apiserver
	// gives up after 3 seconds unless told otherwise.
	DefaultRequestTimeout = 5 * time.Second
)

// spareStreams is how many requests a connection may have above the cap. gRPC
// makes a client wait that has too many, Status included; with room to spare the
// cap answers instead, at once.
const spareStreams = 256

// Tuning for small messages on a local socket, measured against grpc-go's
// defaults at 1, 8 and 64 callers by processor time per request: together they
// save 10 to 25 percent. The size of the buffers makes no difference to that.
const (
	// workersPerCPU: goroutines that live on keep their grown stacks. Requests
	// that find all of them busy get a goroutine of their own, so that a hung one
	// delays nobody.
	workersPerCPU = 8
	// A fixed window stops gRPC's bandwidth estimation, which sends a ping for
	// nearly every message and is of no use on one machine.
	streamWindow     = maxMessageSize
	connectionWindow = 16 * streamWindow
	// A quarter of gRPC's: an idle connection costs 23 KiB of memory instead of 46.
	readBuffer = 8 << 10
)

// Config is what a Server needs. Sealer, Health and AllowedUIDs have no default.
type Config struct {
	Sealer Sealer
	Health Health
	// AllowedUIDs are the users that may connect.
	AllowedUIDs []uint32
	// MaxInFlight is the cap on Encrypts and Decrypts served at once; more get
	// ResourceExhausted at once. Status is not counted. 0 means DefaultMaxInFlight.
	MaxInFlight int
	// RequestTimeout bounds every request whose client gave no earlier deadline,
	// from the arrival of its headers. 0 means DefaultRequestTimeout.
	RequestTimeout time.Duration
	// Log is nil for none.
	Log *zap.Logger
	// Observer is nil for none.
	Observer Observer
	// Auditor is nil for none.
	Auditor Auditor
	// Tracer is nil for none.
	Tracer *tracing.Tracer
	// Clock times requests and log lines; nil means time.Now. Deadlines run on
	// the real clock.
	Clock func() time.Time

	limits limits // zero means defaultLimits; for tests
}

// Server serves the KMS v2 plugin API. It is safe for concurrent use.
type Server struct {
	log        *zap.Logger
	grpc       *grpc.Server
	peers      *peerCredentials
	watchEvery time.Duration
}

// New returns a Server that is not serving yet. The caller ends it with Shutdown
// even if Run was never called.
func New(cfg Config) (*Server, error) {
	if cfg.Sealer == nil || cfg.Health == nil {
		return nil, errors.New("plugin server: Config.Sealer and Config.Health must be set")
	}
	if len(cfg.AllowedUIDs) == 0 {
		return nil, errors.New("socket.allowedUIDs: the list is empty, so nobody could connect; name kube-apiserver's uid, usually 0")
	}
	if cfg.MaxInFlight < 0 || cfg.RequestTimeout < 0 {
		return nil, fmt.Errorf("socket.maxInFlight and socket.requestTimeout must not be negative, got %d and %v", cfg.MaxInFlight, cfg.RequestTimeout)
	}
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = DefaultMaxInFlight
	}
	if cfg.RequestTimeout == 0 {
		cfg.RequestTimeout = DefaultRequestTimeout
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Observer == nil {
		cfg.Observer = nopObserver{}
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}

	if cfg.limits == (limits{}) {
		cfg.limits = defaultLimits().withinDescriptors()
	}

	lines := newThrottle(cfg.Clock)
	g := &guard{
		log: cfg.Log, observer: cfg.Observer, clock: cfg.Clock, throttle: lines,
		auditor: cfg.Auditor, tracer: cfg.Tracer, max: int64(cfg.MaxInFlight),
	}
	warn := func(class, text string, p PeerInfo) {
		if ok, dropped := lines.allow(throttleKind{class: class}); ok {
			cfg.Log.Warn(text, zap.Uint32("peer_uid", p.UID), zap.Uint32("peer_gid", p.GID),
				zap.Int32("peer_pid", p.PID), zap.Uint64("left_out", dropped))
		}
	}
	peers := &peerCredentials{
		allowed: cfg.AllowedUIDs,
		refused: func(p PeerInfo) {
			cfg.Observer.Refused(p.UID)
			if cfg.Auditor != nil {
				cfg.Auditor.CallerRefused(p)
			}
			warn("peer", "caller refused, its uid is not in socket.allowedUIDs", p)
		},
		max: cfg.limits.connections, open: new(atomic.Int64),
		tooMany: func(p PeerInfo) {
			cfg.Observer.TooMany()
			warn("connections", "connection refused, too many are open", p)
		},
	}
	server := grpc.NewServer(
		grpc.Creds(peers),
		grpc.UnaryInterceptor(g.unary),
		grpc.InTapHandle(arrivals(cfg.RequestTimeout, cfg.Observer.Arrived)),
		grpc.ConnectionTimeout(cfg.limits.handshake),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: cfg.limits.silence, Timeout: cfg.limits.answer}),
		grpc.MaxRecvMsgSize(maxMessageSize),
		grpc.MaxHeaderListSize(maxHeaderSize),
		grpc.MaxConcurrentStreams(uint32(cfg.MaxInFlight)+spareStreams),    //nolint:gosec // G115: not negative
		grpc.NumStreamWorkers(workersPerCPU*uint32(runtime.GOMAXPROCS(0))), //nolint:gosec // G115: not negative
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.ReadBufferSize(readBuffer),
	)
	kmsapi.RegisterKeyManagementServiceServer(server, &service{sealer: cfg.Sealer, health: cfg.Health})
	return &Server{log: cfg.Log, grpc: server, peers: peers, watchEvery: watchInterval}, nil
}

// Run serves the socket and keeps it at its path until Shutdown, and then
// returns nil once Shutdown is done. Any other return is an error after which no
// new connection is accepted. Run closes the socket in either case. Call it once.
func (s *Server) Run(socket *Socket) error {
	ctx, cancel := context.WithCancel(context.Background())
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		socket.watch(ctx, s.watchEvery, s.log)
	}()
	err := s.grpc.Serve(acceptor{socket})
	cancel()
	<-watching
	if errors.Is(err, grpc.ErrServerStopped) {
		err = nil // Shutdown came first
	}
	if err != nil {
		err = fmt.Errorf("serve %s: %w", socket.path, err)
	}
	return errors.Join(err, socket.Close())
}

// Shutdown stops accepting and waits for the requests in flight. When ctx ends
// first, it closes their connections, which cancels their contexts, and returns
// ctx's error; handlers that ignore their context may then still be running. A
// connection in its handshake can hold it up by another five seconds.
func (s *Server) Shutdown(ctx context.Context) error {
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		s.grpc.GracefulStop()
	}()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		// This ends GracefulStop too, but for a handler that hangs: nobody waits
		// for that.
		s.grpc.Stop()
		return fmt.Errorf("drain requests: %w", ctx.Err())
	}
}
