// Package client runs kube-apiserver's own KMS v2 client, the code that it links
// and not a copy, against the real daemon. It needs no cluster.
package client

import (
	"context"
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"
	kmstypes "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"
	kmsservice "k8s.io/kms/pkg/service"

	"kekd/e2e/internal/harness"
)

const (
	// apiServerID is what metrics of the client carry.
	apiServerID = "e2e"
	// callTimeout is kube-apiserver's default for one call of the plugin.
	callTimeout = 3 * time.Second
	// reconnectWithin bounds the client's return to a kekd that was away for
	// seconds: its backoff begins at one second and grows by 1.6.
	reconnectWithin = 30 * time.Second
)

var secrets = schema.GroupResource{Resource: "secrets"}

// objectKey is the etcd key of an object: the client binds the value to it.
var objectKey = value.DefaultContext("/registry/secrets/default/one")

// startKekd starts a ready daemon with a token and a KEK of its own.
func startKekd(t *testing.T, options harness.KekdOptions) *harness.Kekd {
	t.Helper()
	k := harness.NewKekd(t, harness.NewToken(t), options)
	k.StartReady(t)
	return k
}

// apiServer is what one kube-apiserver process holds of the plugin.
type apiServer struct {
	secrets value.Transformer
	health  func(context.Context) error
}

// loadConfig does what kube-apiserver does at its start. The provider's name is
// stored in every value, so one cluster must keep it; tests that set the clock
// need a name of their own.
func loadConfig(t *testing.T, k *harness.Kekd, provider string) apiServer {
	t.Helper()
	config, err := encryptionconfig.LoadEncryptionConfig(t.Context(),
		harness.EncryptionConfig(t, provider, k.Socket, "secrets"), false, apiServerID)
	if err != nil {
		t.Fatalf("load the encryption configuration: %v", err)
	}
	if len(config.HealthChecks) != 1 {
		t.Fatalf("the configuration has %d health checks, want 1", len(config.HealthChecks))
	}
	return apiServer{
		secrets: config.Transformers[secrets],
		health: func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/readyz/kms-providers", http.NoBody)
			if err != nil {
				return err
			}
			return config.HealthChecks[0].Check(req)
		},
	}
}

// service returns the apiserver's gRPC client of the plugin.
func service(t *testing.T, k *harness.Kekd, timeout time.Duration) kmsservice.Service {
	t.Helper()
	s, err := kmsv2.NewGRPCService(t.Context(), "unix://"+k.Socket, "e2e", timeout)
	if err != nil {
		t.Fatalf("make the client: %v", err)
	}
	return s
}

// envelope is an apiserver's write state with the transformer around it, made by
// hand in place of the health check that makes it in an apiserver.
type envelope struct {
	transformer value.Transformer
	object      *kmstypes.EncryptedObject // without data
}

// newEnvelope asks for a new seed to be encrypted, as an apiserver does at its
// start and after a rotation.
func newEnvelope(t *testing.T, s kmsservice.Service) envelope {
	t.Helper()
	uid := string(uuid.NewUUID())
	transformer, object, cacheKey, err := kmsv2.GenerateTransformer(t.Context(), uid, s, true)
	if err != nil {
		t.Fatalf("make a seed: %v", err)
	}
	state := kmsv2.State{
		Transformer:                           transformer,
		EncryptedObjectKeyID:                  object.KeyID,
		EncryptedObjectEncryptedDEKSource:     object.EncryptedDEKSource,
		EncryptedObjectAnnotations:            object.Annotations,
		EncryptedObjectEncryptedDEKSourceType: object.EncryptedDEKSourceType,
		UID:                                   uid,
		ExpirationTimestamp:                   time.Now().Add(time.Hour),
		CacheKey:                              cacheKey,
	}
	return envelope{
		transformer: kmsv2.NewEnvelopeTransformer(s, "e2e", func() (kmsv2.State, error) { return state, nil }, apiServerID),
		object:      object,
	}
}

// seal encrypts a value for storage under objectKey.
func seal(t *testing.T, to value.Transformer, plaintext string) []byte {
	t.Helper()
	stored, err := to.TransformToStorage(t.Context(), []byte(plaintext), objectKey)
	if err != nil {
		t.Fatalf("transform to storage: %v", err)
	}
	return stored
}

// requireOpens decrypts a stored value, compares it, and requires that it is
// stale or not.
func requireOpens(t *testing.T, from value.Transformer, stored []byte, plaintext string, stale bool) {
	t.Helper()
	got, gotStale, err := from.TransformFromStorage(t.Context(), stored, objectKey)
	if err != nil {
		t.Fatalf("transform from storage: %v", err)
	}
	if string(got) != plaintext || gotStale != stale {
		t.Fatalf("transform from storage = %q, stale %v; want %q, stale %v", got, gotStale, plaintext, stale)
	}
}

// statusKeyID asks for the key_id and requires a healthy answer.
func statusKeyID(t *testing.T, s kmsservice.Service) string {
	t.Helper()
	resp, err := s.Status(t.Context())
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	if resp.Version != kmsv2.KMSAPIVersionv2 || resp.Healthz != "ok" {
		t.Fatalf("status = %+v, want version v2 and healthz ok", resp)
	}
	if _, err := kmsv2.ValidateKeyID(resp.KeyID); err != nil {
		t.Fatalf("key_id of status: %v", err)
	}
	return resp.KeyID
}

// decrypt asks the plugin to decrypt a seed.
func decrypt(ctx context.Context, s kmsservice.Service, o *kmstypes.EncryptedObject) error {
	_, err := s.Decrypt(ctx, string(uuid.NewUUID()), &kmsservice.DecryptRequest{
		Ciphertext:  o.EncryptedDEKSource,
		KeyID:       o.KeyID,
		Annotations: o.Annotations,
	})
	return err
}

// requireRefused requires an error that blames the request and neither the HSM
// nor kekd: the apiserver's operators look at the code.
func requireRefused(t *testing.T, err error) {
	t.Helper()
	switch code := status.Code(err); code {
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition:
	default:
		t.Errorf("the answer is %v (%v), want a refusal of the request", code, err)
	}
}

// unwraps is how often kekd has asked the HSM to unwrap since it started.
func unwraps(t *testing.T, k *harness.Kekd) float64 {
	t.Helper()
	return k.Metrics(t).By("kekd_hsm_operations_total", "op")["unwrap"]
}
