// Command naive is a KMS v2 plugin that asks the token for every request, for
// package main of internal/bench: it serves the socket on descriptor 3 until
// stdin ends. See package naive for what it stands for.
//
//	naive -module FILE -token LABEL -key LABEL -pin-file FILE [-sessions N]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	kmsv2 "k8s.io/kms/apis/v2"

	"kekd/hsm/hsmtest/naive"
	"kekd/internal/bench/plugins"
	"kekd/internal/kek"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "naive: error:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	module := flag.String("module", "", "PKCS#11 module, a `file`")
	token := flag.String("token", "", "the token's `label`")
	key := flag.String("key", "", "the key's `label`")
	pinFile := flag.String("pin-file", "", "`file` with the user PIN")
	sessions := flag.Int("sessions", 16, "size of the pool of sessions")
	flag.Parse()
	pin, err := os.ReadFile(*pinFile)
	if err != nil {
		return err
	}
	t, err := naive.Open(*module, *token, strings.TrimSuffix(string(pin), "\n"), *key, *sessions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	return plugins.Serve(&service{token: t, keyID: kek.KeyID(*key, kek.ID(t.ID()), kek.CheckValue{})}, os.Stdin)
}

type service struct {
	kmsv2.UnimplementedKeyManagementServiceServer

	token *naive.Token
	keyID string
}

// Status answers from memory, which is the best that such a plugin can do.
func (s *service) Status(context.Context, *kmsv2.StatusRequest) (*kmsv2.StatusResponse, error) {
	return &kmsv2.StatusResponse{Version: "v2", Healthz: "ok", KeyId: s.keyID}, nil
}

func (s *service) Encrypt(_ context.Context, req *kmsv2.EncryptRequest) (*kmsv2.EncryptResponse, error) {
	ciphertext, err := s.token.Encrypt(req.GetPlaintext(), []byte(s.keyID))
	if err != nil {
		return nil, err
	}
	return &kmsv2.EncryptResponse{Ciphertext: ciphertext, KeyId: s.keyID}, nil
}

func (s *service) Decrypt(_ context.Context, req *kmsv2.DecryptRequest) (*kmsv2.DecryptResponse, error) {
	plaintext, err := s.token.Decrypt(req.GetCiphertext(), []byte(req.GetKeyId()))
	if err != nil {
		return nil, err
	}
	return &kmsv2.DecryptResponse{Plaintext: plaintext}, nil
}
