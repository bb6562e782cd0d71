package plugin

import (
	"bytes"
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
