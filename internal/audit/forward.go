package audit

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// The sockets of syslog and journald.
const (
	SyslogSocket   = "/dev/log"
	JournaldSocket = "/run/systemd/journal/socket"
)

const (
	// forwardQueue is how many lines may wait for the other end.
	forwardQueue = 1024
	// redialPause is the wait after the other end was not there.
	redialPause = time.Second
	// priority is authpriv.info (RFC 5424): facility 10, severity 6.
	priority = 10<<3 | 6
)

// errNotTaken: the other end is gone or too slow. The line is in the file.
var errNotTaken = errors.New("a line could not be forwarded")

// datagrams is a Forwarder to a datagram socket. A goroutine of its own sends.
type datagrams struct {
	socket string
	frame  func(line []byte) []byte
	lines  chan []byte
	done   chan struct{}

	mu  sync.Mutex
	err error // of the last try
}

// NewSyslog forwards to syslog's socket, in the form that syslog(3) writes.
func NewSyslog(socket, program string) Forwarder {
	return newDatagrams(socket, func(line []byte) []byte {
		b := fmt.Appendf(nil, "<%d>%s %s[%d]: ", priority, time.Now().Format(time.Stamp), program, os.Getpid())
		return append(b, line...)
	})
}

// NewJournald forwards to journald's socket, in its native protocol.
func NewJournald(socket, program string) Forwarder {
	return newDatagrams(socket, func(line []byte) []byte {
		b := fmt.Appendf(nil, "PRIORITY=6\nSYSLOG_FACILITY=10\nSYSLOG_IDENTIFIER=%s\nMESSAGE=", program)
		return append(append(b, line...), '\n')
	})
}

func newDatagrams(socket string, frame func([]byte) []byte) *datagrams {
	d := &datagrams{socket: socket, frame: frame, lines: make(chan []byte, forwardQueue), done: make(chan struct{})}
	go d.run()
	return d
}

// Forward implements Forwarder. It never blocks.
func (d *datagrams) Forward(line []byte) error {
	select {
	case d.lines <- bytes.Clone(line):
	default:
		return fmt.Errorf("%w: %s takes them too slowly", errNotTaken, d.socket)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Close implements Forwarder. What waits is sent first.
func (d *datagrams) Close() error {
	close(d.lines)
	<-d.done
	return nil
}

func (d *datagrams) run() {
	defer close(d.done)
	var conn net.Conn
	var notBefore time.Time
	for line := range d.lines {
		if conn == nil && time.Now().Before(notBefore) {
			continue // lost, and told by the error that is set
		}
		var err error
		if conn == nil {
			conn, err = net.DialTimeout("unixgram", d.socket, time.Second)
		}
		if err == nil {
			_ = conn.SetWriteDeadline(time.Now().Add(time.Second)) // fails on a closed socket alone, as Write does
			if _, err = conn.Write(d.frame(line)); err != nil {
				_ = conn.Close()
				conn = nil
			}
		}
		if err != nil {
			notBefore = time.Now().Add(redialPause)
			err = fmt.Errorf("%w: %w", errNotTaken, err)
		}
		d.mu.Lock()
		d.err = err
		d.mu.Unlock()
	}
	if conn != nil {
		_ = conn.Close()
	}
}
