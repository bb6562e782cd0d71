package plugins

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsv2 "k8s.io/kms/apis/v2"

	"kekd/internal/kek"
)

// NoopOverhead is what the no-op adds to a plaintext, in bytes: as much as
// kekd's envelope, version 1, with a seed wrapped by AES-GCM under a key that
// kekd made. So both move the same number of bytes.
//
//	header 2+1 ‖ CKA_ID 1+17 ‖ check value 3 ‖ wrapped seed 2+60 ‖ salt 32 ‖ nonce 12 ‖ tag 16
const NoopOverhead = 3 + 18 + 3 + 62 + 32 + 12 + 16

// Noop is a KMS v2 plugin that keeps nothing secret: its ciphertext is the
// plaintext behind NoopOverhead zeros.
type Noop struct {
	kmsv2.UnimplementedKeyManagementServiceServer

	keyID string
}

// NewNoop returns a no-op plugin. It is safe for concurrent use.
func NewNoop() *Noop {
	id := make([]byte, 17)
	return &Noop{keyID: kek.KeyID("k8s-kek", kek.ID(id), kek.CheckValue{})}
}

// Status implements kmsv2.KeyManagementServiceServer.
func (s *Noop) Status(context.Context, *kmsv2.StatusRequest) (*kmsv2.StatusResponse, error) {
	return &kmsv2.StatusResponse{Version: "v2", Healthz: "ok", KeyId: s.keyID}, nil
}

// Encrypt implements kmsv2.KeyManagementServiceServer.
func (s *Noop) Encrypt(_ context.Context, req *kmsv2.EncryptRequest) (*kmsv2.EncryptResponse, error) {
	ciphertext := make([]byte, NoopOverhead, NoopOverhead+len(req.GetPlaintext()))
	return &kmsv2.EncryptResponse{Ciphertext: append(ciphertext, req.GetPlaintext()...), KeyId: s.keyID}, nil
}

// Decrypt implements kmsv2.KeyManagementServiceServer.
func (s *Noop) Decrypt(_ context.Context, req *kmsv2.DecryptRequest) (*kmsv2.DecryptResponse, error) {
	if len(req.GetCiphertext()) < NoopOverhead {
		return nil, status.Error(codes.InvalidArgument, "the ciphertext is too short")
	}
	return &kmsv2.DecryptResponse{Plaintext: req.GetCiphertext()[NoopOverhead:]}, nil
}
