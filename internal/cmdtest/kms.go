package cmdtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/conformance"
)

// sealed is the file that kms encrypt writes and kms decrypt reads.
type sealed struct {
	KeyID      string `json:"keyID"`
	Ciphertext []byte `json:"ciphertext"`
	// Digest is the SHA-256 of the plaintext, nil where it is not known.
	Digest []byte `json:"digest,omitempty"`
}

// kmsCall is the command line of kms:
//
//	kms [-code CODE] [-within TIME] [-match PATTERN] status   prints the key_id
//	kms [-code CODE] [-within TIME] [-size N] encrypt FILE
//	kms [-code CODE] [-within TIME] [-key-id ID] [-flip N] [-cut N] [-append N] decrypt FILE
//
// With a code the call must fail with it; the message goes to stderr. Without a
// size a new secret is encrypted. Decrypt checks that it comes back.
type kmsCall struct {
	code   string
	within time.Duration
	match  string
	size   int
	keyID  string
	flip   int
	cut    int
	extra  int

	verb, file string
}

// unset is the default of flags whose zero means something.
const unset = 1 << 30

func parseKMS(args []string) (kmsCall, error) {
	var c kmsCall
	flags := flag.NewFlagSet("kms", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&c.code, "code", "OK", "the gRPC code that the call must end with")
	flags.DurationVar(&c.within, "within", 3*time.Second, "the deadline, kube-apiserver's by default")
	flags.StringVar(&c.match, "match", "", "what the key_id must match")
	flags.IntVar(&c.size, "size", unset, "encrypt so many zero bytes")
	flags.StringVar(&c.keyID, "key-id", "", "send this key_id")
	flags.IntVar(&c.flip, "flip", unset, "flip a bit of this byte, counted from the end if negative")
	flags.IntVar(&c.cut, "cut", unset, "send so many bytes only, or so many less if negative")
	flags.IntVar(&c.extra, "append", 0, "append so many zero bytes")
	if err := flags.Parse(args); err != nil {
		return c, usageError("kms: " + err.Error())
	}
	c.verb, c.file = flags.Arg(0), flags.Arg(1)
	switch {
	case c.verb == "status" && flags.NArg() == 1:
	case (c.verb == "encrypt" || c.verb == "decrypt") && flags.NArg() == 2:
	default:
		return c, usageError("kms [FLAGS] status|encrypt FILE|decrypt FILE")
	}
	return c, nil
}

func cmdKMS(s *script, ts *testscript.TestScript, args []string) (output, error) {
	c, err := parseKMS(args)
	if err != nil {
		return output{}, err
	}
	if c.file != "" {
		c.file = ts.MkAbs(c.file)
	}
	conn, err := conformance.Dial(s.node(ts).socket())
	if err != nil {
		return output{}, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), c.within)
	defer cancel()
	client := kmsapi.NewKeyManagementServiceClient(conn)
	var out output
	switch c.verb {
	case "status":
		out.stdout, err = c.status(ctx, client)
	case "encrypt":
		err = c.encrypt(ctx, client, s)
	case "decrypt":
		err = c.decrypt(ctx, client)
	}
	answer, ok := status.FromError(err)
	switch {
	case !ok: // not the plugin's answer
		return out, err
	case answer.Code().String() != c.code:
		return out, fmt.Errorf("%s: %s %q, want %s", c.verb, answer.Code(), answer.Message(), c.code)
	}
	if message := answer.Message(); message != "" {
		out.stderr = message + "\n"
	}
	return out, nil
}

func (c kmsCall) status(ctx context.Context, client kmsapi.KeyManagementServiceClient) (string, error) {
	answer, err := client.Status(ctx, &kmsapi.StatusRequest{})
	if err != nil {
		return "", err
	}
	if answer.GetVersion() != "v2" || answer.GetHealthz() != "ok" || answer.GetKeyId() == "" {
		return "", fmt.Errorf("status answers %v, which kube-apiserver takes for unhealthy", answer)
	}
	if ok, err := regexp.MatchString(c.match, answer.GetKeyId()); err != nil {
		return "", usageError("kms: " + err.Error())
	} else if !ok {
		return "", fmt.Errorf("the key_id is %s", answer.GetKeyId())
	}
	return answer.GetKeyId() + "\n", nil
}

func (c kmsCall) encrypt(ctx context.Context, client kmsapi.KeyManagementServiceClient, s *script) error {
	var plaintext []byte
	if c.size != unset {
		plaintext = make([]byte, c.size)
	} else {
		plaintext = []byte(s.newSecret("plaintext"))
	}
	answer, err := client.Encrypt(ctx, &kmsapi.EncryptRequest{Uid: "test", Plaintext: plaintext})
	if err != nil {
		return err
	}
	if bytes.Contains(answer.GetCiphertext(), plaintext) {
		return errors.New("the ciphertext holds the plaintext")
	}
	digest := sha256.Sum256(plaintext)
	return writeSealed(c.file, sealed{answer.GetKeyId(), answer.GetCiphertext(), digest[:]})
}

func (c kmsCall) decrypt(ctx context.Context, client kmsapi.KeyManagementServiceClient) error {
	in, err := readSealed(c.file)
	if err != nil {
		return err
	}
	if err := c.damage(&in); err != nil {
		return err
	}
	answer, err := client.Decrypt(ctx, &kmsapi.DecryptRequest{Uid: "test", KeyId: in.KeyID, Ciphertext: in.Ciphertext})
	if err != nil {
		return err
	}
	if digest := sha256.Sum256(answer.GetPlaintext()); in.Digest != nil && !bytes.Equal(digest[:], in.Digest) {
		return errors.New("decrypt gave something else than what was encrypted")
	}
	return nil
}

// damage changes what was read as the flags say.
func (c kmsCall) damage(in *sealed) error {
	if c.keyID != "" {
		in.KeyID = c.keyID
	}
	if c.flip != unset {
		i := c.flip
		if i < 0 {
			i += len(in.Ciphertext)
		}
		if i < 0 || i >= len(in.Ciphertext) {
			return usageError(fmt.Sprintf("kms: no byte %d in %d", c.flip, len(in.Ciphertext)))
		}
		in.Ciphertext[i] ^= 1
	}
	if c.cut != unset {
		n := c.cut
		if n < 0 {
			n += len(in.Ciphertext)
		}
		if n < 0 || n > len(in.Ciphertext) {
			return usageError(fmt.Sprintf("kms: %d bytes cannot be cut to %d", len(in.Ciphertext), c.cut))
		}
		in.Ciphertext = in.Ciphertext[:n]
	}
	in.Ciphertext = append(in.Ciphertext, make([]byte, c.extra)...)
	return nil
}

func writeSealed(path string, v sealed) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

func readSealed(path string) (sealed, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return sealed{}, err
	}
	var v sealed
	if err := json.Unmarshal(b, &v); err != nil {
		return sealed{}, fmt.Errorf("read %s: %w", path, err)
	}
	return v, nil
}
