// Package secret keeps bytes that must not leak: a type that never prints, a
// pool of locked memory that is wiped, PIN sources, and the process settings
// that keep memory out of core dumps and away from other processes.
package secret

import (
	"fmt"

	"go.uber.org/zap/zapcore"
)

// redacted is what every secret prints as.
const redacted = "[secret]"

// Bytes are secret. Every way of printing or marshalling them yields
// "[secret]"; converting to []byte is the only way to the content, and stands
// out in a review. The zero value is empty.
type Bytes []byte

// Wipe overwrites the content with zeros. The caller must own it: no other
// goroutine may be reading.
func (b Bytes) Wipe() { clear(b) }

// String implements fmt.Stringer.
func (Bytes) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (Bytes) GoString() string { return redacted }

// Format implements fmt.Formatter, so that no verb reaches the content.
func (Bytes) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalText implements encoding.TextMarshaler, and so covers JSON and YAML.
func (Bytes) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON implements json.Marshaler.
func (Bytes) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalYAML implements yaml.Marshaler.
func (Bytes) MarshalYAML() (any, error) { return redacted, nil }

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (Bytes) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("value", redacted)
	return nil
}
