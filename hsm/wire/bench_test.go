package wire_test

import (
	"bytes"
	"testing"

	"kekd/hsm/wire"
	"kekd/internal/kek"
	"kekd/internal/secret"
)

// BenchmarkFrame is what a wrap costs on the way to the worker: encoding, writing,
// reading and decoding, without the socket.
func BenchmarkFrame(b *testing.B) {
	var buf bytes.Buffer
	conn := wire.NewConn(&buf)
	seed := secret.Bytes("thirty-two bytes of a plain seed")
	meta := wire.WrapRequest{ID: make([]byte, 17), Mechanism: kek.GCMCallerIV, AAD: make([]byte, 40)}
	b.ReportAllocs()
	for b.Loop() {
		if err := conn.Send(1, wire.OpWrap, meta, seed); err != nil {
			b.Fatal(err)
		}
		f, err := conn.Receive()
		if err != nil {
			b.Fatal(err)
		}
		var got wire.WrapRequest
		if err := f.Decode(&got); err != nil {
			b.Fatal(err)
		}
	}
}
