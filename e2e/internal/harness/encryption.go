package harness

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// EncryptionConfig writes an EncryptionConfiguration that encrypts the
// resources by the plugin at the socket, reads what is not encrypted, and
// returns its path. The provider's name is part of every stored value.
func EncryptionConfig(tb testing.TB, provider, socket string, resources ...string) string {
	tb.Helper()
	path := filepath.Join(shortDir(tb), "encryption.yaml")
	writeFile(tb, path, fmt.Sprintf(`apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  - resources: [%s]
    providers:
      - kms:
          apiVersion: v2
          name: %s
          endpoint: unix://%s
          timeout: 3s
      - identity: {}
`, strings.Join(resources, ", "), provider, socket))
	return path
}
