package harness

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"
)

// KMS is a client of a daemon's socket, with one connection, which it makes when
// it is first used and again when it is lost. It is safe for concurrent use.
type KMS struct {
	conn   *grpc.ClientConn
	client kmsapi.KeyManagementServiceClient
}

// Sealed is what Encrypt answered: all that Decrypt needs.
type Sealed struct {
	Ciphertext  []byte
	KeyID       string
	Annotations map[string][]byte
}

// KMS makes a client that is closed with the test.
func (k *Kekd) KMS(tb testing.TB) *KMS {
	tb.Helper()
	conn, err := grpc.NewClient("unix://"+k.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Fatalf("make a client of kekd: %v", err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return &KMS{conn: conn, client: kmsapi.NewKeyManagementServiceClient(conn)}
}

// Close closes the client before the test ends.
func (c *KMS) Close() { _ = c.conn.Close() }

// Encrypt encrypts. Errors are those of gRPC.
func (c *KMS) Encrypt(ctx context.Context, plaintext []byte) (Sealed, error) {
	resp, err := c.client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: plaintext, Uid: "e2e"})
	if err != nil {
		return Sealed{}, err
	}
	return Sealed{Ciphertext: resp.GetCiphertext(), KeyID: resp.GetKeyId(), Annotations: resp.GetAnnotations()}, nil
}

// Decrypt decrypts. Errors are those of gRPC.
func (c *KMS) Decrypt(ctx context.Context, s Sealed) ([]byte, error) {
	resp, err := c.client.Decrypt(ctx, &kmsapi.DecryptRequest{
		Ciphertext: s.Ciphertext, KeyId: s.KeyID, Annotations: s.Annotations, Uid: "e2e",
	})
	return resp.GetPlaintext(), err
}

// Status asks for the key_id that Encrypt uses. Errors are those of gRPC.
func (c *KMS) Status(ctx context.Context) (keyID string, err error) {
	resp, err := c.client.Status(ctx, &kmsapi.StatusRequest{})
	return resp.GetKeyId(), err
}
