package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"go.uber.org/zap"
)

// The limits of a connection. Answers are small and come from memory, so a client
// that needs longer is broken or hostile.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	writeTimeout  = 15 * time.Second // longer than a scrape may take
	idleTimeout   = 2 * time.Minute  // longer than Prometheus waits between scrapes
	maxHeader     = 16 << 10
	// stopTimeout is how long requests may take to end when kekd stops.
	stopTimeout = 2 * time.Second
)

// Listen opens the listener of the configured address.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("http.address: %w; choose another port, or turn the endpoint off with an empty address", err)
	}
	return l, nil
}

// Serve answers on l until ctx ends, then lets running requests end and closes l.
// It returns nil when it was stopped by ctx.
func Serve(ctx context.Context, l net.Listener, handler http.Handler, log *zap.Logger) error {
	return serve(ctx, l, &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          zap.NewStdLog(log),
	})
}

func serve(ctx context.Context, l net.Listener, server *http.Server) error {
	stopped := make(chan error, 1)
	cancel := context.AfterFunc(ctx, func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err := server.Shutdown(limited)
		if errors.Is(err, context.DeadlineExceeded) {
			err = server.Close()
		}
		stopped <- err
	})
	err := server.Serve(l)
	if cancel() {
		// ctx has not ended: the listener broke.
		return fmt.Errorf("serve HTTP: %w", errors.Join(err, server.Close()))
	}
	if err := <-stopped; err != nil {
		return fmt.Errorf("stop serving HTTP: %w", err)
	}
	return nil
}
