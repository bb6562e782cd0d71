package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsv2 "k8s.io/kms/apis/v2"
)

// seedSize is what kube-apiserver sends to Encrypt, in bytes.
const seedSize = 32

// ciphertexts is how many different ones the Decrypts take turns through.
const ciphertexts = 64

// openTimeout bounds the time until a target is ready to be measured.
const openTimeout = 10 * time.Second

// targetSpec is one -target.
type targetSpec struct {
	name       string
	socket     string
	metricsURL string // "" counts no HSM operations
	// counter counts them in another way; nil for none.
	counter hsmCounter
	// pids are the processes whose processor time is measured; none for unknown.
	pids []int
}

// hsmCounter tells how many HSM operations there were so far.
type hsmCounter interface {
	read(ctx context.Context) (float64, error)
}

// targetFlag collects -target flags.
type targetFlag []targetSpec

func (f *targetFlag) String() string {
	names := make([]string, 0, len(*f))
	for _, t := range *f {
		names = append(names, t.name)
	}
	return strings.Join(names, ",")
}

var targetName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$`)

func (f *targetFlag) Set(s string) error {
	name, rest, ok := strings.Cut(s, "=")
	if !ok {
		return errors.New("want name=socket or name=socket,metricsURL")
	}
	var t targetSpec
	t.name = name
	t.socket, t.metricsURL, ok = strings.Cut(rest, ",")
	if !targetName.MatchString(name) {
		return fmt.Errorf("the name %q must be letters, digits, spaces and ._- and at most 64 of them", name)
	}
	if !filepath.IsAbs(t.socket) {
		return fmt.Errorf("the socket %q must be an absolute path", t.socket)
	}
	if ok {
		u, err := url.Parse(t.metricsURL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("the metrics URL %q must be an http or https URL", t.metricsURL)
		}
	}
	if name == noopName || name == controlName {
		return fmt.Errorf("the name %q is taken by a no-op server", name)
	}
	for _, other := range *f {
		if other.name == name {
			return fmt.Errorf("the name %q is given twice", name)
		}
	}
	*f = append(*f, t)
	return nil
}

// target is a plugin that is ready to be measured. It is safe for concurrent
// use between openTarget and close.
type target struct {
	name    string
	conns   []*grpc.ClientConn
	clients []kmsv2.KeyManagementServiceClient // one for each of conns
	hsm     hsmCounter                         // nil: HSM operations are not counted
	pids    []int                              // none: processor time is not measured
	// requests counts the Encrypts and Decrypts that were measured or warmed up.
	requests atomic.Int64

	plaintext []byte
	sealed    []*kmsv2.EncryptResponse // of plaintext, each decrypted once
}

// openTarget connects, and makes and proves the ciphertexts that the Decrypts
// use. It does not wait for a plugin that is not there.
func openTarget(ctx context.Context, spec targetSpec, conns int, metric string) (_ *target, err error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	t := &target{name: spec.name, plaintext: make([]byte, seedSize), hsm: spec.counter, pids: spec.pids}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	_, _ = rand.Read(t.plaintext)
	if spec.metricsURL != "" {
		t.hsm = &counterReader{client: &http.Client{Timeout: 5 * time.Second}, url: spec.metricsURL, metric: metric}
	}
	for range conns {
		conn, err := dial(spec.socket)
		if err != nil {
			return nil, err
		}
		t.conns = append(t.conns, conn)
		client := kmsv2.NewKeyManagementServiceClient(conn)
		t.clients = append(t.clients, client)
		if _, err := client.Status(ctx, &kmsv2.StatusRequest{}); err != nil {
			return nil, fmt.Errorf("ask for the status at %s: %w", spec.socket, err)
		}
	}
	for range ciphertexts {
		sealed, err := t.clients[0].Encrypt(ctx, &kmsv2.EncryptRequest{Plaintext: t.plaintext, Uid: "bench"})
		if err != nil {
			return nil, fmt.Errorf("encrypt: %w", err)
		}
		t.sealed = append(t.sealed, sealed)
		if err := t.decrypt(ctx, 0, len(t.sealed)-1); err != nil {
			return nil, fmt.Errorf("decrypt: %w", err)
		}
	}
	if _, err := t.hsmOperations(ctx); err != nil {
		return nil, err
	}
	return t, nil
}

// dial prepares a connection to a socket, with grpc-go's defaults.
func dial(socket string) (*grpc.ClientConn, error) {
	// passthrough, since a resolver would read % and ? in a path as parts of a URL.
	return grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}))
}

// close ends the connections. Nobody may be calling.
func (t *target) close() {
	for _, conn := range t.conns {
		_ = conn.Close()
	}
	if r, ok := t.hsm.(*counterReader); ok {
		r.client.CloseIdleConnections()
	}
}

// encrypt does the n-th Encrypt of a caller.
func (t *target) encrypt(ctx context.Context, caller, _ int) error {
	_, err := t.clients[caller%len(t.clients)].Encrypt(ctx, &kmsv2.EncryptRequest{Plaintext: t.plaintext, Uid: "bench"})
	return err
}

// errWrongPlaintext stands for a Decrypt that answered with something else.
var errWrongPlaintext = errors.New("the plugin returned another plaintext")

// decrypt does the n-th Decrypt of a caller.
func (t *target) decrypt(ctx context.Context, caller, n int) error {
	sealed := t.sealed[(caller+n)%len(t.sealed)]
	resp, err := t.clients[caller%len(t.clients)].Decrypt(ctx, &kmsv2.DecryptRequest{
		Ciphertext: sealed.GetCiphertext(), KeyId: sealed.GetKeyId(), Annotations: sealed.GetAnnotations(), Uid: "bench",
	})
	if err == nil && !bytes.Equal(resp.GetPlaintext(), t.plaintext) {
		return errWrongPlaintext
	}
	return err
}

// status asks for the Status.
func (t *target) status(ctx context.Context) error {
	_, err := t.clients[0].Status(ctx, &kmsv2.StatusRequest{})
	return err
}

// hsmOperations returns the target's count of HSM operations; 0 where they are
// not counted.
func (t *target) hsmOperations(ctx context.Context) (float64, error) {
	if t.hsm == nil {
		return 0, nil
	}
	return t.hsm.read(ctx)
}
