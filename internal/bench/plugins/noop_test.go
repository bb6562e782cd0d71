package plugins_test

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsv2 "k8s.io/kms/apis/v2"

	"kekd/internal/bench/plugins"
)

func TestNoop(t *testing.T) {
	t.Parallel()
	s := plugins.NewNoop()
	plaintext := []byte("0123456789abcdef0123456789abcdef")
	sealed, err := s.Encrypt(t.Context(), &kmsv2.EncryptRequest{Plaintext: plaintext})
	if err != nil {
		t.Fatal(err)
	}
	if got := len(sealed.GetCiphertext()); got != 178 { // kekd's own, for a 32-byte plaintext
		t.Errorf("ciphertext of %d bytes", got)
	}
	opened, err := s.Decrypt(t.Context(), &kmsv2.DecryptRequest{Ciphertext: sealed.GetCiphertext(), KeyId: sealed.GetKeyId()})
	if err != nil || string(opened.GetPlaintext()) != string(plaintext) {
		t.Errorf("Decrypt: %q, %v", opened.GetPlaintext(), err)
	}
	if _, err := s.Decrypt(t.Context(), &kmsv2.DecryptRequest{Ciphertext: make([]byte, plugins.NoopOverhead-1)}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a ciphertext that is too short: %v", err)
	}
	st, err := s.Status(t.Context(), &kmsv2.StatusRequest{})
	if err != nil || st.GetVersion() != "v2" || st.GetHealthz() != "ok" || st.GetKeyId() != sealed.GetKeyId() {
		t.Errorf("Status: %v, %v", st, err)
	}
}
