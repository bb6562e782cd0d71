package otlp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"kekd/internal/config"
	"kekd/internal/tracing"
)

const (
	// maxQueued is how many spans wait at most, those that are being sent included;
	// a few MiB.
	maxQueued = 2048
	// maxBatch is how many are sent at once.
	maxBatch = 512
	// maxValue is the longest value of an attribute, in bytes. None of kekd's comes
	// near it.
	maxValue = 1024
)

// pace is how fast spans go.
type pace struct {
	// every is how long a span waits for others.
	every time.Duration
	// timeout is how long a batch is tried, repetitions included; and how long, at
	// most, a collector may be back unnoticed.
	timeout time.Duration
}

func defaultPace() pace { return pace{every: time.Second, timeout: 5 * time.Second} }

// What an Observer is told of spans; these are all the values there are.
const (
	Exported = "exported"
	Failed   = "failed"
	Dropped  = "dropped"
)

// Observer learns what became of spans. It is called concurrently and must not block.
type Observer interface {
	// TraceSpans: n spans were Exported, Failed (the collector did not take them in
	// time, or not all of their batch) or Dropped (too many were waiting).
	TraceSpans(result string, n int)
}

// Exporter takes spans from its Tracer and exports them. It is safe for concurrent
// use.
type Exporter struct {
	provider *sdktrace.TracerProvider
	conn     *grpc.ClientConn
	version  string
}

// New makes an Exporter for what the configuration names. It does not wait for the
// collector. An error means that the configuration is at fault, or its files are.
func New(cfg config.Tracing, version string, log *zap.Logger, observer Observer) (*Exporter, error) {
	return newExporter(cfg, version, log, observer, defaultPace())
}

func newExporter(cfg config.Tracing, version string, log *zap.Logger, observer Observer, p pace) (*Exporter, error) {
	endpoint, err := config.ParseEndpoint(cfg.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("tracing.endpoint: %w", err)
	}
	transport := insecure.NewCredentials()
	if endpoint.TLS {
		if transport, err = transportCredentials(cfg); err != nil {
			return nil, err
		}
	}
	wait := backoff.DefaultConfig
	wait.MaxDelay = p.timeout
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: wait, MinConnectTimeout: p.timeout}),
	}
	if cfg.HeadersFile != "" {
		headers := headersFile{cfg.HeadersFile}
		if _, err := headers.GetRequestMetadata(context.Background()); err != nil {
			return nil, err
		}
		dial = append(dial, grpc.WithPerRPCCredentials(headers))
	}
	conn, err := grpc.NewClient(endpoint.Address, dial...)
	if err != nil {
		return nil, fmt.Errorf("tracing.endpoint: %w", err)
	}
	client, err := otlptracegrpc.New(context.Background(), otlptracegrpc.WithGRPCConn(conn), // which does not wait for it
		otlptracegrpc.WithHeaders(map[string]string{}), // and none of the environment's
		otlptracegrpc.WithTimeout(p.timeout), otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{
			Enabled: true, InitialInterval: p.timeout / 10, MaxInterval: p.timeout / 2, MaxElapsedTime: p.timeout,
		}))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up the OTLP exporter: %w", err), conn.Close())
	}
	queue := &queue{observer: observer}
	queue.SpanProcessor = sdktrace.NewBatchSpanProcessor(&sender{next: client, queue: queue, log: log},
		sdktrace.WithMaxQueueSize(maxQueued), sdktrace.WithMaxExportBatchSize(maxBatch),
		sdktrace.WithBatchTimeout(p.every), sdktrace.WithExportTimeout(p.timeout))
	limits := sdktrace.NewSpanLimits()
	limits.AttributeValueLengthLimit = maxValue
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sampler(cfg.SampleRatio)), sdktrace.WithRawSpanLimits(limits),
		sdktrace.WithResource(describe(version)), sdktrace.WithSpanProcessor(queue))
	return &Exporter{provider: provider, conn: conn, version: version}, nil
}

// describe says whose spans they are. The instance is another one after each start.
func describe(version string) *resource.Resource {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return resource.NewWithAttributes(semconv.SchemaURL,
		semconv.ServiceName("kekd"), semconv.ServiceVersion(version),
		semconv.ServiceInstanceID(uuid.NewString()), semconv.HostName(host))
}

// Tracer returns the Tracer whose spans are exported.
func (e *Exporter) Tracer() *tracing.Tracer { return tracing.New(e.provider, e.version) }

// Shutdown exports what still waits, until ctx ends, and closes the connection.
func (e *Exporter) Shutdown(ctx context.Context) error {
	err := e.provider.Shutdown(ctx)
	if err != nil {
		err = fmt.Errorf("export the last spans: %w", err)
	}
	return errors.Join(err, e.conn.Close())
}

// transportCredentials are those of an https:// endpoint.
func transportCredentials(cfg config.Tracing) (credentials.TransportCredentials, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("tracing.caFile: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tracing.caFile: %s holds no certificate in PEM", cfg.CAFile)
		}
	}
	if cfg.ClientCertificateFile != "" {
		read := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cfg.ClientCertificateFile, cfg.ClientKeyFile)
			if err != nil {
				return nil, fmt.Errorf("tracing.clientCertificateFile: %w", err)
			}
			return &pair, nil
		}
		if _, err := read(nil); err != nil {
			return nil, err
		}
		c.GetClientCertificate = read
	}
	return credentials.NewTLS(c), nil
}

// sampler records the share of the requests, and all that is rare. Where a trace goes
// on, whoever began it has decided.
func sampler(ratio float64) sdktrace.Sampler {
	return sdktrace.ParentBased(roots{sdktrace.TraceIDRatioBased(ratio)})
}

type roots struct{ sdktrace.Sampler }

// ShouldSample implements sdktrace.Sampler.
func (r roots) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	if tracing.Rare(p.Name) {
		return sdktrace.AlwaysSample().ShouldSample(p)
	}
	return r.Sampler.ShouldSample(p)
}

// queue bounds and counts the spans before the batch processor, which would drop
// them silently.
type queue struct {
	sdktrace.SpanProcessor

	observer Observer
	waiting  atomic.Int64 // those that are being sent included
}

// OnEnd implements sdktrace.SpanProcessor.
func (q *queue) OnEnd(s sdktrace.ReadOnlySpan) {
	if q.waiting.Add(1) > maxQueued {
		q.waiting.Add(-1)
		q.observer.TraceSpans(Dropped, 1)
		return
	}
	q.SpanProcessor.OnEnd(s)
}

// sender counts and logs what becomes of batches. Its methods are called by the batch
// processor, one at a time.
type sender struct {
	next  sdktrace.SpanExporter
	queue *queue
	log   *zap.Logger

	failing bool
	logged  time.Time // when it last said so
	unsent  int       // spans since then
}

// remindInterval is how often a failure that lasts is logged.
const remindInterval = time.Minute

// ExportSpans implements sdktrace.SpanExporter. It returns no error: the processor
// would hand it to OpenTelemetry's global handler.
func (s *sender) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := s.next.ExportSpans(ctx, spans)
	s.queue.waiting.Add(-int64(len(spans)))
	if err == nil {
		s.queue.observer.TraceSpans(Exported, len(spans))
		if s.failing {
			s.failing = false
			s.log.Info("spans are exported again")
		}
		return nil
	}
	s.queue.observer.TraceSpans(Failed, len(spans))
	s.unsent += len(spans)
	if !s.failing || time.Since(s.logged) >= remindInterval {
		s.log.Warn("spans cannot be exported, and are lost", zap.Int("spans", s.unsent), zap.Error(err))
		s.logged, s.unsent = time.Now(), 0
	}
	s.failing = true
	return nil
}

// Shutdown implements sdktrace.SpanExporter.
func (s *sender) Shutdown(ctx context.Context) error { return s.next.Shutdown(ctx) }
