package plugin

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// HTTP/2 by hand (RFC 9113), for what no client library does.

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Frame types and flags.
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	frameRST          = 0x3
	frameSettings     = 0x4
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9

	flagAck        = 0x1
	flagEndStream  = 0x1
	flagEndHeaders = 0x4
)

// frame spells a frame.
func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	b = binary.BigEndian.AppendUint32(append(b, flags), stream)
	return append(b, payload...)
}

// headerBlock spells a request's headers by HPACK, each as a literal that enters
// no table. Names and values are shorter than 127 bytes.
func headerBlock(method string, more ...string) []byte {
	fields := append([]string{
		":method", "POST", ":scheme", "http", ":path", methodPrefix + method, ":authority", "localhost",
		"content-type", "application/grpc", "te", "trailers",
	}, more...)
	var b []byte
	for i := 0; i < len(fields); i += 2 {
		b = append(b, 0, byte(len(fields[i])))
		b = append(append(b, fields[i]...), byte(len(fields[i+1])))
		b = append(b, fields[i+1]...)
	}
	return b
}

// message spells a gRPC message, not compressed.
func message(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

// rawClient is a connection whose bytes a test writes itself.
type rawClient struct {
	*net.UnixConn
}

func dialRaw(tb testing.TB, path string) rawClient {
	tb.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		tb.Fatal(err)
	}
	c := rawClient{conn}
	tb.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		tb.Fatal(err)
	}
	return c
}

// greet sends the preface and empty SETTINGS, and waits for the server's.
func (c rawClient) greet() error {
	if err := c.send([]byte(preface), frame(frameSettings, 0, 0, nil)); err != nil {
		return err
	}
	kind, _, _, _, err := c.next()
	if err == nil && kind != frameSettings {
		err = fmt.Errorf("the server greets with a frame of type %d", kind)
	}
	return err
}

func (c rawClient) send(parts ...[]byte) error {
	_, err := c.Write(bytes.Join(parts, nil))
	return err
}

// next reads one frame.
func (c rawClient) next() (kind, flags byte, stream uint32, payload []byte, err error) {
	return readFrame(c)
}

func readFrame(r io.Reader) (kind, flags byte, stream uint32, payload []byte, err error) {
	var head [9]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, 0, 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:]) >> 8
	if n > 16<<10 {
		return 0, 0, 0, nil, fmt.Errorf("a frame of %d bytes", n)
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, 0, 0, nil, fmt.Errorf("in a frame: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	return head[3], head[4], binary.BigEndian.Uint32(head[5:]), payload, nil
}

// live answers pings and SETTINGS, as a client does that only looks well-behaved,
// and passes on all other frames until the connection ends.
func (c rawClient) live() <-chan heard {
	frames := make(chan heard, 1<<14)
	go func() {
		defer close(frames)
		for {
			kind, flags, stream, payload, err := c.next()
			if err != nil {
				return
			}
			switch {
			case kind == framePing && flags&flagAck == 0:
				_, _ = c.Write(frame(framePing, flagAck, 0, payload))
			case kind == frameSettings && flags&flagAck == 0:
				_, _ = c.Write(frame(frameSettings, flagAck, 0, nil))
			default:
				select {
				case frames <- heard{kind, flags, stream, payload}:
				default: // nobody listens
				}
			}
		}
	}()
	return frames
}

// heard is a frame that the server sent.
type heard struct {
	kind, flags byte
	stream      uint32
	payload     []byte
}

// ended reports whether the frame is the last of its stream.
func (h heard) ended() bool {
	return h.kind == frameRST || h.flags&flagEndStream != 0 && (h.kind == frameHeaders || h.kind == frameData)
}

// drain reads until the server ends the connection, and reports whether it did.
func (c rawClient) drain() bool {
	for {
		if _, _, _, _, err := c.next(); err != nil {
			return !errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
}
