package conformance

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// maxSocketPath is the longest socket path in bytes that Linux takes: sun_path
// holds 108 with the closing NUL.
const maxSocketPath = 107

// Dial prepares a connection to a plugin's socket. The endpoint is a path or,
// as an EncryptionConfiguration spells it, a unix:// URL; "@name" is an
// abstract socket. Nothing is dialled before the first call, so a socket that
// is missing shows in the first check and not here. The caller closes the
// connection.
func Dial(endpoint string) (*grpc.ClientConn, error) {
	address, err := socketAddress(endpoint)
	if err != nil {
		return nil, err
	}
	// passthrough, since a resolver would read % and ? in a path as parts of a URL.
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", address)
		}),
		// gRPC's own backoff grows to two minutes. A plugin that a check made
		// restart should be met again while the next checks run.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: time.Second,
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare connection to %q: %w", endpoint, err)
	}
	return conn, nil
}

// socketAddress turns an endpoint into what net.Dial wants. It is stricter than
// kube-apiserver, which reads unix://run/x.sock as /x.sock without a word.
func socketAddress(endpoint string) (string, error) {
	address := endpoint
	if rest, isURL := strings.CutPrefix(endpoint, "unix://"); isURL {
		if !strings.HasPrefix(rest, "/") {
			return "", fmt.Errorf("endpoint %q: the path must be absolute; write three slashes, as in unix:///run/kekd/kekd.sock", endpoint)
		}
		address = rest
		if name, abstract := strings.CutPrefix(rest, "/@"); abstract {
			address = "@" + name
		}
	} else if scheme, _, isURL := strings.Cut(endpoint, "://"); isURL {
		return "", fmt.Errorf("endpoint %q: KMS v2 knows no scheme %q; use unix:///PATH or a plain path", endpoint, scheme)
	}
	switch {
	case address == "" || address == "@" || address == "/":
		return "", fmt.Errorf("endpoint %q names no socket; use unix:///PATH or a plain path", endpoint)
	case len(address) > maxSocketPath:
		return "", fmt.Errorf("endpoint %q: the path has %d bytes and Linux takes %d; use a shorter one", endpoint, len(address), maxSocketPath)
	}
	return address, nil
}
