package main

import (
	"context"
	"time"

	"go.uber.org/zap"

	"kekd/internal/config"
	"kekd/internal/tracing"
	"kekd/internal/tracing/otlp"
	"kekd/internal/version"
)

// closeTraces is how long the last spans may take to be exported.
const closeTraces = 3 * time.Second

// traces is how the parts of kekd make spans. Without tracing.endpoint they make none.
type traces struct {
	tracer   *tracing.Tracer // nil for none
	exporter *otlp.Exporter  // nil for none
}

// openTraces sets tracing up where it is configured.
func openTraces(cfg config.Tracing, log *zap.Logger, observer otlp.Observer) (traces, error) {
	if cfg.Endpoint == "" {
		return traces{}, nil
	}
	exporter, err := otlp.New(cfg, version.Read().Version, log, observer)
	if err != nil {
		return traces{}, err
	}
	return traces{exporter.Tracer(), exporter}, nil
}

// close exports what is still waiting, within closeTraces.
func (t traces) close(ctx context.Context) error {
	if t.exporter == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTraces)
	defer cancel()
	return t.exporter.Shutdown(ctx)
}
