package main

import (
	"bytes"
	"crypto/aes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"hash"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kekd/hsm/hsmtest"
	"kekd/hsm/wire"
)

// The lines that key import begin prints do what they say. Tokens are no part of
// this: not all methods are on one that tests can have.
func TestWrapCommands(t *testing.T) {
	t.Parallel()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	for _, m := range wire.ImportMethods() {
		for name, c := range map[string]struct {
			hashes []wire.OAEPHash
			hash   func() hash.Hash
		}{
			"unknown hashes": {nil, sha256.New},
			"both hashes":    {[]wire.OAEPHash{wire.SHA256, wire.SHA1}, sha256.New},
			"sha1 only":      {[]wire.OAEPHash{wire.SHA1}, sha1.New},
		} {
			t.Run(string(m)+" "+name, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				put := func(name string, content []byte) { must(t, os.WriteFile(filepath.Join(dir, name), content, 0o600)) }
				der, err := x509.MarshalPKIXPublicKey(private.Public())
				must(t, err)
				key, transport := make([]byte, 32), make([]byte, 32)
				_, _ = rand.Read(key)       // never fails
				_, _ = rand.Read(transport) // never fails
				put("import.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
				put("kek.bin", key)
				put("transport.bin", transport)

				text := wrapCommands([]wire.ImportMethod{m}, c.hashes)
				var script strings.Builder
				for line := range strings.Lines(text) {
					if strings.Contains(line, "openssl") {
						script.WriteString(line)
					}
				}
				cmd := exec.CommandContext(t.Context(), "sh", "-e", "-c", script.String())
				cmd.Dir = dir
				printed, err := cmd.Output()
				if err != nil {
					t.Fatalf("%v in\n%s", err, text)
				}
				block, err := aes.NewCipher(key)
				must(t, err)
				check := make([]byte, 16)
				block.Encrypt(check, check)
				if want := hex.EncodeToString(check[:3]); string(printed) != want {
					t.Errorf("printed %q, the check value is %s", printed, want)
				}
				wrapped, err := os.ReadFile(filepath.Join(dir, "kek.wrapped"))
				must(t, err)
				by, rest := transport, wrapped
				if m != wire.AESKWP {
					by, err = rsa.DecryptOAEP(c.hash(), nil, private, wrapped[:256], nil)
					must(t, err)
					rest = wrapped[256:]
				}
				got := by
				if m != wire.RSAOAEP {
					block, err := aes.NewCipher(by)
					must(t, err)
					got = hsmtest.KWPUnwrap(block, rest)
				}
				if !bytes.Equal(got, key) {
					t.Error("another key was wrapped")
				}
			})
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
