package plugin

import (
	"fmt"
	"unicode/utf8"

	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/kek"
)

// Sizes of the KMS v2 contract as kube-apiserver enforces them, in bytes.
const (
	maxKeyIDSize      = 1024
	maxCiphertextSize = 1024
	// maxPlaintextSize refuses early what no envelope could carry. The Sealer
	// knows the exact limit, which is lower.
	maxPlaintextSize = maxCiphertextSize
	// maxMessageSize bounds a whole request: far above what the fields need, far
	// below gRPC's 4 MiB.
	maxMessageSize = 64 << 10
	// maxHeaderSize bounds a request's headers.
	maxHeaderSize = 16 << 10
)

// requestError is a request that breaks the contract. Its text is fixed, so
// clients may see it.
type requestError string

func (e requestError) Error() string { return string(e) }

const (
	errCiphertextSize = requestError("ciphertext must have 1 to 1024 bytes")
	errKeyIDSize      = requestError("key_id must have 1 to 1024 bytes")
	errAnnotations    = requestError("annotations must be empty: this plugin makes none")
)

// contractError is an answer that would break the contract: a bug of ours,
// caught before kube-apiserver stores it.
type contractError string

func (e contractError) Error() string { return string(e) }

func checkEncrypt(req *kmsapi.EncryptRequest) error {
	switch n := len(req.Plaintext); {
	case n == 0:
		return kek.ErrEmpty
	case n > maxPlaintextSize:
		return fmt.Errorf("%d bytes: %w", n, kek.ErrTooLarge)
	}
	return nil
}

func checkDecrypt(req *kmsapi.DecryptRequest) error {
	switch {
	case len(req.Ciphertext) == 0 || len(req.Ciphertext) > maxCiphertextSize:
		return errCiphertextSize
	case len(req.KeyId) == 0 || len(req.KeyId) > maxKeyIDSize:
		return errKeyIDSize
	case len(req.Annotations) != 0:
		// They are stored in the clear and nothing binds them: accepting them
		// would let whoever writes to etcd vary what we read.
		return errAnnotations
	}
	return nil
}

func checkSealed(sealed kek.Sealed) error {
	if n := len(sealed.Ciphertext); n == 0 || n > maxCiphertextSize {
		return contractError(fmt.Sprintf("the sealer made a ciphertext of %d bytes", n))
	}
	return checkOwnKeyID(sealed.KeyID)
}

func checkOwnKeyID(keyID string) error {
	if n := len(keyID); n == 0 || n > maxKeyIDSize {
		return contractError(fmt.Sprintf("own key_id has %d bytes", n))
	}
	if !utf8.ValidString(keyID) {
		return contractError(fmt.Sprintf("own key_id %q is not UTF-8", keyID))
	}
	return nil
}
