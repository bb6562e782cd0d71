package plugin

import (
	"bytes"
	"errors"
	"io"
	"os"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	kmsapi "k8s.io/kms/apis/v2"
)

// rawCodec sends and receives messages as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// Whatever bytes arrive as a request, the answer is one of a few codes, nothing
// panics, and the next request is served.
func FuzzRequest(f *testing.F) {
	encode := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	f.Add("Encrypt", encode(&kmsapi.EncryptRequest{Plaintext: seed, Uid: testUID}))
	f.Add("Encrypt", encode(&kmsapi.EncryptRequest{Plaintext: make([]byte, 2000)}))
	f.Add("Decrypt", encode(&kmsapi.DecryptRequest{Ciphertext: append([]byte(sealedPrefix), seed...), KeyId: testKeyID, Uid: testUID}))
	f.Add("Decrypt", encode(&kmsapi.DecryptRequest{Ciphertext: []byte("x"), KeyId: "k", Annotations: map[string][]byte{"a.b": nil}}))
	f.Add("Decrypt", []byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add("Decrypt", []byte{0x1a, 0x01, 0xff})
	f.Add("Status", []byte{})
	f.Add("Status", []byte{0x08, 0x01})
	f.Add("Rotate", []byte("?"))

	r := start(f)
	conn := dial(f, r.path)
	f.Fuzz(func(t *testing.T, method string, request []byte) {
		var response []byte
		err := conn.Invoke(t.Context(), methodPrefix+method, &request, &response, grpc.ForceCodecV2(rawCodec{}))
		switch code := status.Code(err); code {
		case codes.OK, codes.InvalidArgument, codes.ResourceExhausted:
		case codes.Unimplemented:
			if method == "Status" || method == "Encrypt" || method == "Decrypt" {
				t.Errorf("%s: %v", method, err)
			}
		case codes.Internal: // undecodable, which gRPC answers itself
			if method == "Encrypt" && proto.Unmarshal(request, &kmsapi.EncryptRequest{}) == nil ||
				method == "Decrypt" && proto.Unmarshal(request, &kmsapi.DecryptRequest{}) == nil {
				t.Errorf("%s: %v", method, err)
			}
		default:
			t.Errorf("%s: %v", method, err)
		}
		if err == nil && method == "Decrypt" {
			var req kmsapi.DecryptRequest
			if uerr := proto.Unmarshal(request, &req); uerr != nil || len(req.Annotations) != 0 || !bytes.HasPrefix(req.Ciphertext, []byte(sealedPrefix)) {
				t.Errorf("Decrypt accepted %x", request)
			}
		}
		if _, _, _, panics := r.tally.snapshot(); panics != 0 {
			t.Fatalf("panicked:\n%s", logText(t, r.logs))
		}
		r.logs.TakeAll()
		if err := call(t.Context(), kmsapi.NewKeyManagementServiceClient(conn), "Status"); err != nil {
			t.Errorf("Status after it: %v", err)
		}
	})
}

// FuzzConnection: whatever bytes follow the client's preface, the server answers in
// whole frames, greets first, ends the connection when the client has, does not
// panic, and serves another one.
func FuzzConnection(f *testing.F) {
	settings := frame(frameSettings, 0, 0, nil)
	request := encryptRequest(f, 1)
	f.Add([]byte(nil))
	f.Add(settings)
	f.Add(append(bytes.Clone(settings), request...))
	f.Add(append(bytes.Clone(settings), request[:len(request)-5]...))
	f.Add(bytes.Join([][]byte{settings, request, encryptRequest(f, 3), frame(frameRST, 0, 3, []byte{0, 0, 0, 8})}, nil))
	f.Add(bytes.Join([][]byte{settings, frame(frameHeaders, 0, 1, headerBlock("Decrypt")[:9]), frame(frameContinuation, flagEndHeaders, 1, headerBlock("Decrypt")[9:])}, nil))
	f.Add(bytes.Join([][]byte{settings, frame(framePing, 0, 0, make([]byte, 8)), frame(frameSettings, flagAck, 0, nil), frame(frameWindowUpdate, 0, 0, []byte{0x7f, 0xff, 0xff, 0xff})}, nil))
	f.Add(bytes.Join([][]byte{settings, frame(frameHeaders, flagEndHeaders|flagEndStream, 1, headerBlock("Status", "grpc-timeout", "1n", "grpc-encoding", "gzip"))}, nil))
	f.Add(frame(frameGoAway, 0, 0, make([]byte, 8)))
	f.Add([]byte("\xff\xff\xff\x00\x00\x00\x00\x00\x00"))

	r := start(f)
	other := kmsapi.NewKeyManagementServiceClient(dial(f, r.path))
	f.Fuzz(func(t *testing.T, sent []byte) {
		c := dialRaw(t, r.path)
		// The server may end the connection in the middle of it.
		_, err := c.Write(append([]byte(preface), sent...))
		if err == nil {
			_ = c.CloseWrite()
		}
		for n := 0; ; n++ {
			kind, _, _, _, err := c.next()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the server does not end the connection")
			}
			// A server that ends a connection with bytes unread resets it.
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("frame %d of the answer: %v", n, err)
			}
			if err != nil {
				break
			}
			if n == 0 && kind != frameSettings || kind > frameContinuation {
				t.Errorf("frame %d of the answer is of type %d", n, kind)
			}
		}
		must(t, c.Close())
		if _, _, _, panics := r.tally.snapshot(); panics != 0 {
			t.Fatalf("panicked:\n%s", logText(t, r.logs))
		}
		r.logs.TakeAll()
		if err := call(t.Context(), other, "Status"); err != nil {
			t.Errorf("Status on another connection: %v", err)
		}
	})
}
