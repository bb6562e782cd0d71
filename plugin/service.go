package plugin

import (
	"context"

	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/kek"
)

// apiVersion is the version that Status reports. kube-apiserver latches it: it
// may not change while the apiserver runs.
const apiVersion = "v2"

// healthzOK is the only healthz that kube-apiserver takes for healthy.
const healthzOK = "ok"

// Sealer encrypts and decrypts. Its methods are called concurrently and return
// soon after ctx ends. Their errors wrap kek.Err* where a class fits; the texts
// go to the log, never to the client.
type Sealer interface {
	// Seal encrypts plaintext. It may not use plaintext after it returned: the
	// bytes are wiped then.
	Seal(ctx context.Context, plaintext []byte) (kek.Sealed, error)
	// Open decrypts. The plaintext it returns belongs to the caller.
	Open(ctx context.Context, sealed kek.Sealed) ([]byte, error)
}

// Health says what may be served. Both methods answer from memory, never wait,
// and are called concurrently. Their errors wrap a kek.Err* class and may be a
// PublicReasoner; one without a class counts as kek.ErrUnavailable.
type Health interface {
	// Status returns the key_id that Encrypt uses now, or why nothing may be
	// written.
	Status() (keyID string, err error)
	// MayEncrypt returns nil when Encrypt may be served.
	MayEncrypt() error
}

// service implements the three calls. It returns plain errors; guard turns them
// into gRPC statuses.
type service struct {
	kmsapi.UnimplementedKeyManagementServiceServer

	sealer Sealer
	health Health
}

// Status implements kmsapi.KeyManagementServiceServer.
func (s *service) Status(context.Context, *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	keyID, err := s.health.Status()
	if err != nil {
		return nil, &healthError{err}
	}
	if err := checkOwnKeyID(keyID); err != nil {
		return nil, err
	}
	return &kmsapi.StatusResponse{Version: apiVersion, Healthz: healthzOK, KeyId: keyID}, nil
}

// Encrypt implements kmsapi.KeyManagementServiceServer. The key_id it returns is
// the one that the Sealer sealed under, from the Sealer's own snapshot.
func (s *service) Encrypt(ctx context.Context, req *kmsapi.EncryptRequest) (*kmsapi.EncryptResponse, error) {
	// The plaintext is kube-apiserver's seed; gRPC's copy is out of reach, ours
	// need not wait for the garbage collector.
	defer clear(req.Plaintext)
	if err := checkEncrypt(req); err != nil {
		return nil, err
	}
	if err := s.health.MayEncrypt(); err != nil {
		return nil, &healthError{err}
	}
	sealed, err := s.sealer.Seal(ctx, req.Plaintext)
	if err != nil {
		return nil, err
	}
	if err := checkSealed(sealed); err != nil {
		return nil, err
	}
	return &kmsapi.EncryptResponse{Ciphertext: sealed.Ciphertext, KeyId: sealed.KeyID}, nil
}

// Decrypt implements kmsapi.KeyManagementServiceServer. Health has no say in it:
// warm reads go on when writes have stopped, and the Sealer knows which are warm.
func (s *service) Decrypt(ctx context.Context, req *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	if err := checkDecrypt(req); err != nil {
		return nil, err
	}
	plaintext, err := s.sealer.Open(ctx, kek.Sealed{KeyID: req.KeyId, Ciphertext: req.Ciphertext})
	if err != nil {
		return nil, err
	}
	if len(plaintext) == 0 {
		return nil, contractError("the sealer opened a ciphertext to no plaintext")
	}
	return &kmsapi.DecryptResponse{Plaintext: plaintext}, nil
}
