// Package wire is the protocol between kekd and its worker process, over an
// inherited stream socketpair. Both ends are the same binary, so it needs no
// versions; it is parsed strictly all the same, because the worker runs a
// vendor's code.
//
// A frame, integers big endian:
//
//	4  length of all that follows, at most MaxFrame
//	8  call id, chosen by the parent, echoed in the reply
//	1  kind: an operation in a request; ReplyOK or ReplyError in a reply
//	4  length of the metadata
//	n  metadata, JSON: nothing secret
//	…  the secret, raw: a PIN, or the bytes to wrap or just unwrapped
//
// The secret stands apart so that it never passes through a marshaller, whose
// buffers nobody could wipe.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"kekd/internal/secret"
)

// MaxFrame is the longest frame in bytes, length field excluded. A list of
// 1,000 keys fits.
const MaxFrame = 1 << 20

const headerSize = 8 + 1 + 4

// Kind is what a frame asks for, or how a call ended.
type Kind uint8

// The operations of the worker, then the two replies.
const (
	OpLoad Kind = iota + 1
	OpLogin
	OpKeys
	OpCreate
	OpProve
	OpWrap
	OpUnwrap
	OpSetUse
	OpDestroy
	OpImportState
	OpImportBegin
	OpImport
	OpImportAbort
	OpEvidence
	OpAuditKeys
	OpAuditCreate
	OpAuditSign
	OpAbandon
	OpClose
	ReplyOK
	ReplyError
)

// String returns the operation as logs and metrics spell it.
func (k Kind) String() string {
	names := [...]string{"", "load", "login", "keys", "create", "prove", "wrap", "unwrap", "set-use", "destroy",
		"import-state", "import-begin", "import", "import-abort", "evidence", "audit-keys", "audit-create", "audit-sign", "abandon", "close", "ok", "error"}
	if int(k) < len(names) && k > 0 {
		return names[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// ErrFrame marks bytes that are no frame. The connection is of no use afterwards.
var ErrFrame = errors.New("malformed worker frame")

// Frame is one message. Whoever receives a frame owns its Secret and wipes it.
type Frame struct {
	ID     uint64
	Kind   Kind
	Meta   json.RawMessage
	Secret secret.Bytes
}

// Append encodes f behind dst.
func Append(dst []byte, f Frame) ([]byte, error) {
	n := headerSize + len(f.Meta) + len(f.Secret)
	if n > MaxFrame {
		return dst, fmt.Errorf("%w: %d bytes, at most %d", ErrFrame, n, MaxFrame)
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(n))
	dst = binary.BigEndian.AppendUint64(dst, f.ID)
	dst = append(dst, byte(f.Kind))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(f.Meta))) //nolint:gosec // G115: at most MaxFrame
	dst = append(dst, f.Meta...)
	return append(dst, f.Secret...), nil
}

// Read reads one frame. It returns io.EOF when the other end is gone between
// frames, and ErrFrame for anything that Append would not have written.
func Read(r io.Reader) (Frame, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return Frame{}, fmt.Errorf("%w: cut off in its length", ErrFrame)
		}
		return Frame{}, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n < headerSize || n > MaxFrame {
		return Frame{}, fmt.Errorf("%w: length %d", ErrFrame, n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		clear(body)                 // may hold a part of the secret
		if errors.Is(err, io.EOF) { // which means the end between two frames
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, fmt.Errorf("%w: cut off: %w", ErrFrame, err)
	}
	f := Frame{ID: binary.BigEndian.Uint64(body), Kind: Kind(body[8])}
	if f.Kind < OpLoad || f.Kind > ReplyError {
		return Frame{}, fmt.Errorf("%w: kind %d", ErrFrame, body[8])
	}
	meta := binary.BigEndian.Uint32(body[9:])
	rest := body[headerSize:]
	if uint64(meta) > uint64(len(rest)) {
		return Frame{}, fmt.Errorf("%w: metadata of %d bytes in %d", ErrFrame, meta, len(rest))
	}
	if meta > 0 {
		f.Meta = json.RawMessage(rest[:meta:meta])
	}
	if len(rest) > int(meta) {
		f.Secret = secret.Bytes(rest[meta:])
	}
	return f, nil
}

// Conn sends and receives frames. Send may be called from many goroutines,
// Receive from one.
type Conn struct {
	rw io.ReadWriter
	mu sync.Mutex // serialises writes
}

// NewConn makes a connection of one end of the socketpair.
func NewConn(rw io.ReadWriter) *Conn { return &Conn{rw: rw} }

// Send marshals meta (nil for none) and writes one frame. The buffer that the
// secret passed through is wiped; the caller's secret is left as it is.
func (c *Conn) Send(id uint64, kind Kind, meta any, sec secret.Bytes) error {
	f := Frame{ID: id, Kind: kind, Secret: sec}
	if meta != nil {
		b, err := json.Marshal(meta)
		if err != nil {
			return fmt.Errorf("encode %s: %w", kind, err)
		}
		f.Meta = b
	}
	// Sized up front, so that append never leaves a copy of the secret behind.
	buf, err := Append(make([]byte, 0, 4+headerSize+len(f.Meta)+len(sec)), f)
	if err != nil {
		return err
	}
	defer clear(buf)
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.rw.Write(buf); err != nil {
		return fmt.Errorf("write %s to the worker socket: %w", kind, err)
	}
	return nil
}

// Receive reads the next frame.
func (c *Conn) Receive() (Frame, error) { return Read(c.rw) }

// checked is a message whose values are not all good ones.
type checked interface{ check() error }

// Decode reads a frame's metadata into v, strictly enough for two ends that
// are the same binary: the JSON must parse and match the types, and what the
// parent would act on without looking must be in its bounds.
func (f Frame) Decode(v any) error {
	err := json.Unmarshal(f.Meta, v)
	if m, ok := v.(checked); ok && err == nil {
		err = m.check()
	}
	if err != nil {
		return fmt.Errorf("%w: metadata of %s: %w", ErrFrame, f.Kind, err)
	}
	return nil
}
