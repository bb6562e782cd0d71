package plugin

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/tap"
)

// limits bound what connections cost, whatever their clients do. No client can
// hold a place for ever by doing nothing: a handshake ends after handshake, a
// request after Config.RequestTimeout, counted from its headers, and a connection
// on which no whole frame arrived after silence and answer together. A client
// that answers pings may be idle for as long as it likes, as kube-apiserver is
// between two looks at Status.
type limits struct {
	connections int           // at once, over all callers on the allow-list
	handshake   time.Duration // for the HTTP/2 preface and the first SETTINGS
	silence     time.Duration // without a frame, until a ping is sent
	answer      time.Duration // for the answer to it
}

// defaultLimits are the limits outside of tests. An apiserver has one connection
// for each provider in its configuration, two while it reloads that. A thousand
// idle ones cost some 20 MiB.
func defaultLimits() limits {
	return limits{connections: 1024, handshake: 5 * time.Second, silence: time.Minute, answer: 20 * time.Second}
}

// withinDescriptors lowers the cap on connections to half of the descriptors that
// the process may have: a new worker process and the state directory need some,
// whatever callers do. Go has raised the soft limit to the hard one already.
func (l limits) withinDescriptors() limits {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil && files.Cur/2 < uint64(l.connections) { //nolint:gosec // G115: not negative
		l.connections = int(files.Cur / 2) //nolint:gosec // G115: less than the cap
	}
	return l
}

// conn is an accepted connection. It counts among the open ones from admit to
// Close, which gRPC calls more than once.
type conn struct {
	*net.UnixConn

	open atomic.Pointer[atomic.Int64]
}

// admit counts the connection in open, unless there are max already.
func (c *conn) admit(open *atomic.Int64, maxOpen int) bool {
	if open.Add(1) > int64(maxOpen) {
		open.Add(-1)
		return false
	}
	c.open.Store(open)
	return true
}

// Close implements net.Conn.
func (c *conn) Close() error {
	if open := c.open.Swap(nil); open != nil {
		open.Add(-1)
	}
	return c.UnixConn.Close()
}

// arrivals tells of every request when its headers are there, and bounds it from then on, so that one whose message never
// comes ends too. No timer is set where the client's own deadline is earlier, as
// kube-apiserver's always is.
func arrivals(timeout time.Duration, arrived func()) tap.ServerInHandle {
	return func(ctx context.Context, _ *tap.Info) (context.Context, error) {
		arrived()
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= timeout {
			return ctx, nil
		}
		bounded, cancel := context.WithTimeout(ctx, timeout)
		context.AfterFunc(ctx, cancel) // gRPC ends ctx with the stream
		return bounded, nil
	}
}
