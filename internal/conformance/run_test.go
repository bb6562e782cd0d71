package conformance_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsv2 "k8s.io/kms/apis/v2"

	"kekd/internal/conformance"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testOptions are small enough for a run within a fraction of a second. No
// planted fault hangs, so the deadline may be long: a busy machine is no fault.
func testOptions(s *referenceServer) conformance.Options {
	return conformance.Options{CallTimeout: 30 * time.Second, Callers: 4, RoundTrips: 5, Positions: 96, Clock: s.clock.Now}
}

// outcomes keeps what is not ok, by check.
func outcomes(r conformance.Report) map[string]conformance.Outcome {
	found := map[string]conformance.Outcome{}
	for _, res := range r.Results {
		if res.Outcome != conformance.OK {
			found[res.Name] = res.Outcome
		}
	}
	return found
}

func TestRunFindsNothingWrongWithACorrectPlugin(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		setUp func(*referenceServer)
	}{
		{"without annotations", func(*referenceServer) {}},
		{"with annotations that are bound to the ciphertext", func(s *referenceServer) {
			s.annotations = map[string][]byte{"version.kms.example": []byte("1"), "empty.kms.example": nil}
		}},
		{"with the longest key_id and the largest annotations", func(s *referenceServer) {
			s.rotate(strings.Repeat("k", 1024))
			s.annotations = map[string][]byte{"a.b": make([]byte, 32*1024-3)}
		}},
		{"with a key_id that is not ASCII", func(s *referenceServer) { s.rotate("schlüssel/ö") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newReferenceServer(t)
			tt.setUp(s)
			report := conformance.Run(t.Context(), s.serve(t), testOptions(s))
			if diff := cmp.Diff(map[string]conformance.Outcome{}, outcomes(report)); diff != "" {
				t.Errorf("findings on a correct plugin (-want +got):\n%s\n%+v", diff, report.Results)
			}
			if !report.Passed() {
				t.Error("Passed() = false")
			}
			if keyID, _ := s.key(""); report.KeyID != keyID || report.Version != "v2" {
				t.Errorf("report has key_id %q and version %q", report.KeyID, report.Version)
			}
			for _, res := range report.Results {
				if res.Detail == "" || res.Remedy != "" {
					t.Errorf("%s: a passed check has detail %q and remedy %q", res.Name, res.Detail, res.Remedy)
				}
			}
		})
	}
}

// plantedFault is one thing that a plugin does wrong, and all that the suite
// must say about it.
type plantedFault struct {
	name  string
	plant func(*referenceServer)
	// found lists each check that must not be ok; no other may be.
	found map[string]conformance.Outcome
	// either names checks that see the fault or not, by chance of timing.
	either []string
	// detail must occur in one of those findings.
	detail string
}

const (
	warn = conformance.Warn
	fail = conformance.Fail
)

type found = map[string]conformance.Outcome

var plantedFaults = []plantedFault{
	{
		name: "the version is of KMS v1",
		plant: func(s *referenceServer) {
			s.onStatus = func(_ context.Context, next statusFunc) (*kmsv2.StatusResponse, error) {
				resp, err := next()
				resp.Version = "v1beta1"
				return resp, err
			}
		},
		found:  found{"status-version": fail},
		detail: `"v1beta1"`,
	},
	{
		name: "the version has its older name",
		plant: func(s *referenceServer) {
			s.onStatus = func(_ context.Context, next statusFunc) (*kmsv2.StatusResponse, error) {
				resp, err := next()
				resp.Version = "v2beta1"
				return resp, err
			}
		},
		found: found{"status-version": warn},
	},
	{
		name: "healthz is not ok",
		plant: func(s *referenceServer) {
			s.onStatus = func(_ context.Context, next statusFunc) (*kmsv2.StatusResponse, error) {
				resp, err := next()
				resp.Healthz = "session pool low\x1b[2J"
				return resp, err
			}
		},
		found:  found{"status-healthz": fail, "healthy-at-end": fail},
		detail: `"session pool low\x1b[2J"`, // quoted: no escape reaches the terminal
	},
	{
		name: "Status has no key_id",
		plant: func(s *referenceServer) {
			s.onStatus = func(_ context.Context, next statusFunc) (*kmsv2.StatusResponse, error) {
				resp, err := next()
				resp.KeyId = ""
				return resp, err
			}
		},
		found: found{"status-key-id": fail, "encrypt-key-id": fail, "concurrent-round-trips": fail},
	},
	{
		name:   "the key_id is too long",
		plant:  func(s *referenceServer) { s.rotate(strings.Repeat("k", 1025)) },
		found:  found{"status-key-id": fail, "round-trip": fail},
		detail: "1025 bytes",
	},
	{
		name: "only Encrypt's key_id is too long",
		plant: func(s *referenceServer) {
			s.alias(strings.Repeat("k", 1025))
		},
		found: found{"encrypt-limits": fail, "encrypt-key-id": fail, "concurrent-round-trips": fail},
	},
	{
		name: "Encrypt names another KEK than Status",
		plant: func(s *referenceServer) {
			s.alias("reference/local-key")
		},
		found:  found{"encrypt-key-id": fail, "concurrent-round-trips": fail},
		detail: `Encrypt says "reference/local-key"`,
	},
	{
		name: "the key_id goes back and forth",
		plant: func(s *referenceServer) {
			var calls atomic.Int64
			s.onStatus = func(_ context.Context, next statusFunc) (*kmsv2.StatusResponse, error) {
				resp, err := next()
				if calls.Add(1)%2 == 0 {
					resp.KeyId = "reference/key-0"
				}
				return resp, err
			}
		},
		found:  found{"status-stable": fail, "encrypt-key-id": fail},
		either: []string{"concurrent-round-trips", "healthy-at-end"},
		detail: "went back",
	},
	{
		name: "the key_id is new with every Status",
		plant: func(s *referenceServer) {
			var calls atomic.Int64
			s.onStatus = func(_ context.Context, next statusFunc) (*kmsv2.StatusResponse, error) {
				s.rotate(fmt.Sprintf("reference/key-%d", calls.Add(1)))
				return next()
			}
		},
		found:  found{"status-stable": fail, "encrypt-key-id": fail, "healthy-at-end": warn},
		detail: "20 times",
	},
	{
		name: "the key rotates between two Status calls",
		plant: func(s *referenceServer) {
			var calls atomic.Int64
			s.onStatus = func(_ context.Context, next statusFunc) (*kmsv2.StatusResponse, error) {
				if calls.Add(1) == 5 {
					s.rotate("reference/key-2")
				}
				return next()
			}
		},
		found:  found{"status-stable": warn, "healthy-at-end": warn},
		detail: "run this again if a rotation is going on",
	},
	{
		// A rotation during the run is no fault: only the end says that it was seen.
		name: "the key rotates between Status and Encrypt",
		plant: func(s *referenceServer) {
			var calls atomic.Int64
			s.onEncrypt = func(_ context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
				if n := calls.Add(1); n%7 == 0 {
					s.rotate(fmt.Sprintf("reference/rotated-%d", n))
				}
				return next(req)
			}
		},
		found: found{"healthy-at-end": warn},
	},
	{
		name: "the version changes while it runs",
		plant: func(s *referenceServer) {
			var calls atomic.Int64
			s.onStatus = func(_ context.Context, next statusFunc) (*kmsv2.StatusResponse, error) {
				resp, err := next()
				if calls.Add(1) > 3 {
					resp.Version = "v2beta1"
				}
				return resp, err
			}
		},
		found: found{"status-stable": fail},
	},
	{
		name: "a repeated Status fails",
		plant: func(s *referenceServer) {
			var calls atomic.Int64
			s.onStatus = func(_ context.Context, next statusFunc) (*kmsv2.StatusResponse, error) {
				if calls.Add(1) == 3 {
					return nil, status.Error(codes.ResourceExhausted, "one call at a time")
				}
				return next()
			}
		},
		found: found{"status-stable": fail},
	},
	{
		name: "the plaintext stands in an annotation",
		plant: func(s *referenceServer) {
			s.onEncrypt = func(_ context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
				resp, err := next(req)
				if err == nil {
					resp.Annotations = map[string][]byte{"debug.kms.example": req.GetPlaintext()}
				}
				return resp, err
			}
			s.onDecrypt = ignoringAnnotations
		},
		found:  found{"encrypt-confidential": fail, "decrypt-annotations": warn},
		detail: "debug.kms.example",
	},
	{
		name: "the plaintext stands in the ciphertext",
		plant: func(s *referenceServer) {
			s.onEncrypt = func(_ context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
				resp, err := next(req)
				if err == nil {
					resp.Ciphertext = append(resp.Ciphertext, req.GetPlaintext()...)
				}
				return resp, err
			}
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				// Half of what follows the magic, nonce and tag is the plaintext.
				const overhead = len(magic) + 12 + 16
				size := (len(req.GetCiphertext()) - overhead) / 2
				if size < 0 {
					return next(req)
				}
				tail := req.GetCiphertext()[len(req.GetCiphertext())-size:]
				resp, err := next(withCiphertext(req, req.GetCiphertext()[:len(req.GetCiphertext())-size]))
				if err == nil && !bytes.Equal(resp.GetPlaintext(), tail) {
					return nil, status.Error(codes.InvalidArgument, "the ciphertext is damaged")
				}
				return resp, err
			}
		},
		// A 512-byte plaintext becomes too long a ciphertext.
		found: found{"encrypt-confidential": fail, "round-trip-sizes": warn},
	},
	{
		name:  "the nonce is always the same",
		plant: func(s *referenceServer) { s.nonce = make([]byte, 12) },
		found: found{"encrypt-distinct": warn, "encrypt-confidential": fail},
	},
	{
		name: "encryption is deterministic",
		plant: func(s *referenceServer) {
			var mu sync.Mutex
			made := map[string]*kmsv2.EncryptResponse{}
			s.onEncrypt = func(_ context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
				mu.Lock()
				defer mu.Unlock()
				key := string(req.GetPlaintext())
				if made[key] == nil {
					resp, err := next(req)
					if err != nil {
						return nil, err
					}
					made[key] = resp
				}
				return made[key], nil
			}
		},
		found:  found{"encrypt-distinct": warn},
		detail: "1 different",
	},
	{
		name: "the ciphertext is a byte too long",
		plant: func(s *referenceServer) {
			padding := func(size int) []byte { return make([]byte, 1025-size) }
			s.onEncrypt = func(_ context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
				resp, err := next(req)
				if err == nil && len(req.GetPlaintext()) == 32 {
					resp.Ciphertext = append(resp.Ciphertext, padding(len(resp.GetCiphertext()))...)
				}
				return resp, err
			}
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				const sealed = len(magic) + 12 + 32 + 16
				if len(req.GetCiphertext()) == 1025 && bytes.Equal(req.GetCiphertext()[sealed:], padding(sealed)) {
					return next(withCiphertext(req, req.GetCiphertext()[:sealed]))
				}
				return next(req)
			}
		},
		found:  found{"encrypt-limits": fail},
		detail: "1025 bytes",
	},
	{
		name: "a later ciphertext is empty",
		plant: func(s *referenceServer) {
			var calls atomic.Int64
			s.onEncrypt = func(_ context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
				resp, err := next(req)
				// After round-trip (1) and round-trip-sizes (5) comes encrypt-limits.
				if calls.Add(1) == 8 {
					resp.Ciphertext = nil
				}
				return resp, err
			}
		},
		found:  found{"encrypt-limits": fail},
		detail: "empty",
	},
	{
		name:   "an annotation key is no domain name",
		plant:  func(s *referenceServer) { s.annotations = map[string][]byte{"version": []byte("1")} },
		found:  found{"encrypt-limits": fail},
		detail: `"version"`,
	},
	{
		name:   "the annotations are too large",
		plant:  func(s *referenceServer) { s.annotations = map[string][]byte{"a.b": make([]byte, 32*1024-2)} },
		found:  found{"encrypt-limits": fail},
		detail: "32769 bytes",
	},
	{
		name: "annotations are not bound to the ciphertext",
		plant: func(s *referenceServer) {
			s.onEncrypt = func(_ context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
				resp, err := next(req)
				if err == nil {
					resp.Annotations = map[string][]byte{"note.kms.example": []byte("1")}
				}
				return resp, err
			}
			s.onDecrypt = ignoringAnnotations
		},
		found:  found{"decrypt-annotations": warn},
		detail: "ignored",
	},
	{
		name: "an annotation steers what Decrypt returns",
		plant: func(s *referenceServer) {
			s.onEncrypt = func(_ context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
				resp, err := next(req)
				if err == nil {
					resp.Annotations = map[string][]byte{"length.kms.example": {}}
				}
				return resp, err
			}
			s.onDecrypt = func(ctx context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				resp, err := ignoringAnnotations(ctx, req, next)
				if err == nil {
					resp.Plaintext = resp.GetPlaintext()[len(req.GetAnnotations()["length.kms.example"]):]
				}
				return resp, err
			}
		},
		found:  found{"decrypt-annotations": fail},
		detail: "another plaintext",
	},
	{
		name: "a ciphertext decrypts only once",
		plant: func(s *referenceServer) {
			var used sync.Map
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				resp, err := next(req)
				if _, again := used.LoadOrStore(string(req.GetCiphertext()), true); err == nil && again {
					return nil, status.Error(codes.NotFound, "no such handle")
				}
				return resp, err
			}
		},
		found:  found{"decrypt-repeatable": fail, "healthy-at-end": fail},
		detail: "time 2",
	},
	{
		name: "a ciphertext decrypts to something else later",
		plant: func(s *referenceServer) {
			var used sync.Map
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				resp, err := next(req)
				if _, again := used.LoadOrStore(string(req.GetCiphertext()), true); err == nil && again {
					clear(resp.GetPlaintext())
				}
				return resp, err
			}
		},
		found: found{"decrypt-repeatable": fail, "healthy-at-end": fail},
	},
	{
		name: "Decrypt returns something else",
		plant: func(s *referenceServer) {
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				resp, err := next(req)
				if err == nil {
					resp.Plaintext = append(resp.GetPlaintext(), 0)
				}
				return resp, err
			}
		},
		found:  found{"round-trip": fail},
		detail: "something else",
	},
	{
		name: "Encrypt does not work",
		plant: func(s *referenceServer) {
			s.onEncrypt = func(context.Context, *kmsv2.EncryptRequest, encryptFunc) (*kmsv2.EncryptResponse, error) {
				return nil, status.Error(codes.FailedPrecondition, "no key")
			}
		},
		found:  found{"round-trip": fail},
		detail: `FailedPrecondition "no key"`,
	},
	{
		name: "Decrypt does not work",
		plant: func(s *referenceServer) {
			s.onDecrypt = func(context.Context, *kmsv2.DecryptRequest, decryptFunc) (*kmsv2.DecryptResponse, error) {
				return nil, errors.New("access denied")
			}
		},
		found:  found{"round-trip": fail},
		detail: `Unknown "access denied"`,
	},
	{
		name: "Status does not work",
		plant: func(s *referenceServer) {
			s.onStatus = func(context.Context, statusFunc) (*kmsv2.StatusResponse, error) {
				return nil, status.Error(codes.Unavailable, "starting")
			}
		},
		found:  found{"status-answers": fail},
		detail: `Unavailable "starting"`,
	},
	{
		name: "KMS v2 is not served",
		plant: func(s *referenceServer) {
			s.onStatus = func(context.Context, statusFunc) (*kmsv2.StatusResponse, error) {
				return nil, status.Error(codes.Unimplemented, "unknown service v2.KeyManagementService")
			}
		},
		found:  found{"status-answers": fail},
		detail: "does not serve KMS v2",
	},
	{
		name: "one size comes back wrong",
		plant: func(s *referenceServer) {
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				resp, err := next(req)
				if n := len(resp.GetPlaintext()); err == nil && n < 32 {
					resp.Plaintext = append(resp.GetPlaintext(), make([]byte, 32-n)...)
				}
				return resp, err
			}
		},
		found:  found{"round-trip-sizes": fail},
		detail: "1 bytes",
	},
	{
		name: "only seeds are encrypted",
		plant: func(s *referenceServer) {
			s.onEncrypt = func(_ context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
				if len(req.GetPlaintext()) != 32 {
					return nil, status.Error(codes.InvalidArgument, "want 32 bytes")
				}
				return next(req)
			}
		},
		found:  found{"round-trip-sizes": warn},
		detail: `refused: InvalidArgument "want 32 bytes"`,
	},
	{
		name: "Status is slow",
		plant: func(s *referenceServer) {
			s.onStatus = func(_ context.Context, next statusFunc) (*kmsv2.StatusResponse, error) {
				s.clock.advance(150 * time.Millisecond)
				return next()
			}
		},
		found:  found{"status-under-load": warn},
		detail: "150ms",
	},
	{
		name: "Status fails while others encrypt",
		plant: func(s *referenceServer) {
			// No check before status-under-load encrypts so much without a Status.
			var encrypts atomic.Int64
			s.onEncrypt = func(_ context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
				encrypts.Add(1)
				return next(req)
			}
			s.onStatus = func(_ context.Context, next statusFunc) (*kmsv2.StatusResponse, error) {
				if encrypts.Swap(0) > 32 {
					return nil, status.Error(codes.DeadlineExceeded, "waiting for a session")
				}
				return next()
			}
		},
		found:  found{"status-under-load": fail},
		either: []string{"concurrent-round-trips", "healthy-at-end"},
		detail: "waiting for a session",
	},
	{
		name: "Encrypt is slow",
		plant: func(s *referenceServer) {
			s.onEncrypt = func(_ context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
				s.clock.advance(120 * time.Millisecond)
				return next(req)
			}
		},
		found: found{"latency": warn},
		// The clock of this test is one for all callers.
		either: []string{"status-under-load"},
		detail: "the median Encrypt takes 120ms",
	},
	{
		name: "Decrypt is slow",
		plant: func(s *referenceServer) {
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				s.clock.advance(11 * time.Millisecond)
				return next(req)
			}
		},
		found:  found{"latency": warn},
		detail: "the median Decrypt takes 11ms",
	},
	{
		name: "only one Encrypt runs at a time",
		plant: func(s *referenceServer) {
			var running atomic.Int64
			s.onEncrypt = func(ctx context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
				defer running.Add(-1)
				if running.Add(1) > 1 {
					return nil, status.Error(codes.ResourceExhausted, "busy")
				}
				lingers(ctx)
				return next(req)
			}
		},
		found:  found{"concurrent-round-trips": fail, "abandoned-calls": fail},
		detail: `ResourceExhausted "busy"`,
	},
	{
		name: "any known key_id will do",
		plant: func(s *referenceServer) {
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				keyID, _ := s.key("")
				return next(&kmsv2.DecryptRequest{Ciphertext: req.GetCiphertext(), KeyId: keyID, Annotations: req.GetAnnotations()})
			}
		},
		found:  found{"decrypt-wrong-key-id": fail},
		detail: "a foreign key_id: accepted",
	},
	{
		name: "the key_id is compared without case",
		plant: func(s *referenceServer) {
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				return next(&kmsv2.DecryptRequest{Ciphertext: req.GetCiphertext(), KeyId: strings.ToLower(req.GetKeyId()), Annotations: req.GetAnnotations()})
			}
		},
		found:  found{"decrypt-wrong-key-id": fail},
		detail: "in other letters: accepted",
	},
	{
		name: "a header of the ciphertext is not authenticated",
		plant: func(s *referenceServer) {
			s.onEncrypt = func(_ context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
				resp, err := next(req)
				if err == nil {
					resp.Ciphertext = append([]byte{1}, resp.GetCiphertext()...)
				}
				return resp, err
			}
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				return next(withCiphertext(req, req.GetCiphertext()[min(1, len(req.GetCiphertext())):]))
			}
		},
		found:  found{"decrypt-tampered": fail},
		detail: "bit 0 of byte 0 flipped: accepted",
	},
	{
		name: "what follows the ciphertext is ignored",
		plant: func(s *referenceServer) {
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				const sealed = len(magic) + 12 + 32 + 16
				resp, err := next(req)
				if err != nil && len(req.GetCiphertext()) > sealed {
					return next(withCiphertext(req, req.GetCiphertext()[:sealed]))
				}
				return resp, err
			}
		},
		found:  found{"decrypt-wrong-length": fail},
		detail: "a byte appended: accepted",
	},
	{
		name: "what is foreign is handed back as it is",
		plant: func(s *referenceServer) {
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				if len(req.GetCiphertext()) > 0 && !bytes.HasPrefix(req.GetCiphertext(), []byte(magic[:1])) {
					return &kmsv2.DecryptResponse{Plaintext: req.GetCiphertext()}, nil
				}
				return next(req)
			}
		},
		found: found{"decrypt-tampered": fail, "decrypt-foreign": fail, "decrypt-wrong-length": fail, "decrypt-oversize": fail},
	},
	{
		name: "an empty ciphertext is an empty plaintext",
		plant: func(s *referenceServer) {
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				if len(req.GetCiphertext()) == 0 {
					return &kmsv2.DecryptResponse{}, nil
				}
				return next(req)
			}
		},
		found: found{"decrypt-empty": fail},
	},
	{
		name:  "an empty plaintext is encrypted",
		plant: func(s *referenceServer) { s.onEncrypt = s.sealingEmpty },
		found: found{"encrypt-empty": warn},
	},
	{
		name: "an empty plaintext is encrypted and cannot be read",
		plant: func(s *referenceServer) {
			s.onEncrypt = s.sealingEmpty
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				resp, err := next(req)
				if err == nil && len(resp.GetPlaintext()) == 0 {
					return nil, status.Error(codes.InvalidArgument, "nothing to return")
				}
				return resp, err
			}
		},
		found: found{"encrypt-empty": fail},
	},
	{
		name: "an empty plaintext comes back as something else",
		plant: func(s *referenceServer) {
			s.onEncrypt = s.sealingEmpty
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				resp, err := next(req)
				if err == nil && len(resp.GetPlaintext()) == 0 {
					resp.Plaintext = make([]byte, 16)
				}
				return resp, err
			}
		},
		found: found{"encrypt-empty": fail},
	},
	{
		name: "an empty plaintext looks like an outage",
		plant: func(s *referenceServer) {
			s.onEncrypt = func(_ context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
				if len(req.GetPlaintext()) == 0 {
					return nil, status.Error(codes.Unavailable, "CKR_DATA_LEN_RANGE")
				}
				return next(req)
			}
		},
		found:  found{"encrypt-empty": fail},
		detail: "looks like an outage",
	},
	{
		name: "any size is encrypted",
		plant: func(s *referenceServer) {
			s.onEncrypt = func(_ context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
				if len(req.GetPlaintext()) > 900 {
					return s.seal(req.GetPlaintext()), nil
				}
				return next(req)
			}
		},
		found:  found{"encrypt-oversize": fail},
		detail: "1025 bytes are accepted and become a ciphertext of 1057",
	},
	{
		name: "an oversize ciphertext is accepted",
		plant: func(s *referenceServer) {
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				if len(req.GetCiphertext()) > 1024 {
					return &kmsv2.DecryptResponse{}, nil
				}
				return next(req)
			}
		},
		found: found{"decrypt-oversize": fail},
	},
	{
		name: "an oversize ciphertext ends the plugin",
		plant: func(s *referenceServer) {
			s.onDecrypt = func(ctx context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				if len(req.GetCiphertext()) > 1024 {
					go s.stop()
					<-ctx.Done()
				}
				return next(req)
			}
		},
		found:  found{"decrypt-oversize": fail, "abandoned-calls": fail, "healthy-at-end": fail},
		detail: "Unavailable",
	},
	{
		name: "damage has no code",
		plant: func(s *referenceServer) {
			s.onDecrypt = recoding(codes.Unknown)
		},
		found: found{
			"decrypt-wrong-key-id": warn, "decrypt-tampered": warn, "decrypt-wrong-length": warn,
			"decrypt-foreign": warn, "decrypt-empty": warn, "decrypt-oversize": warn,
		},
		detail: "does not say that the request is at fault",
	},
	{
		name: "damage looks like an outage",
		plant: func(s *referenceServer) {
			s.onDecrypt = recoding(codes.Unavailable)
		},
		found: found{
			"decrypt-wrong-key-id": fail, "decrypt-tampered": fail, "decrypt-wrong-length": fail,
			"decrypt-foreign": fail, "decrypt-empty": fail, "decrypt-oversize": fail,
		},
		detail: "looks like an outage",
	},
	{
		name: "one damaged object makes the plugin unhealthy",
		plant: func(s *referenceServer) {
			var sick atomic.Bool
			s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
				resp, err := next(req)
				if err != nil {
					sick.Store(true)
				}
				return resp, err
			}
			s.onStatus = func(_ context.Context, next statusFunc) (*kmsv2.StatusResponse, error) {
				resp, err := next()
				if sick.Load() {
					resp.Healthz = "CKR_ENCRYPTED_DATA_INVALID"
				}
				return resp, err
			}
		},
		found:  found{"healthy-at-end": fail},
		detail: "CKR_ENCRYPTED_DATA_INVALID",
	},
	{
		name: "an abandoned Encrypt takes the session with it",
		plant: func(s *referenceServer) {
			var lost atomic.Bool
			s.onEncrypt = func(ctx context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
				if lost.Load() {
					return nil, status.Error(codes.Unavailable, "no session left")
				}
				if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < 200*time.Millisecond {
					<-ctx.Done()
					lost.Store(true)
				}
				return next(req)
			}
		},
		found:  found{"abandoned-calls": fail, "healthy-at-end": fail},
		detail: "no session left",
	},
}

// alias makes Encrypt name its key otherwise than Status does; Decrypt knows.
func (s *referenceServer) alias(name string) {
	keyID, _ := s.key("")
	s.onEncrypt = func(_ context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
		resp, err := next(req)
		if err == nil {
			resp.KeyId = name
		}
		return resp, err
	}
	s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
		if req.GetKeyId() == name {
			return next(&kmsv2.DecryptRequest{Ciphertext: req.GetCiphertext(), KeyId: keyID, Annotations: req.GetAnnotations()})
		}
		return next(req)
	}
}

// sealingEmpty encrypts an empty plaintext like any other.
func (s *referenceServer) sealingEmpty(_ context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
	if len(req.GetPlaintext()) == 0 {
		return s.seal(nil), nil
	}
	return next(req)
}

// lingers keeps a call in the plugin long enough for the other callers to come.
func lingers(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(2 * time.Millisecond):
	}
}

// ignoringAnnotations decrypts as if there had never been any.
func ignoringAnnotations(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
	return next(&kmsv2.DecryptRequest{Ciphertext: req.GetCiphertext(), KeyId: req.GetKeyId()})
}

// recoding gives each refused Decrypt another code.
func recoding(code codes.Code) func(context.Context, *kmsv2.DecryptRequest, decryptFunc) (*kmsv2.DecryptResponse, error) {
	return func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
		resp, err := next(req)
		if err != nil {
			return nil, status.Error(code, "CKR_GENERAL_ERROR")
		}
		return resp, nil
	}
}

func withCiphertext(req *kmsv2.DecryptRequest, ciphertext []byte) *kmsv2.DecryptRequest {
	return &kmsv2.DecryptRequest{Ciphertext: ciphertext, KeyId: req.GetKeyId(), Annotations: req.GetAnnotations(), Uid: req.GetUid()}
}

func TestRunFindsPlantedFaults(t *testing.T) {
	t.Parallel()
	for _, tt := range plantedFaults {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newReferenceServer(t)
			tt.plant(s)
			report := conformance.Run(t.Context(), s.serve(t), testOptions(s))
			got := outcomes(report)
			for _, name := range tt.either {
				if _, must := tt.found[name]; !must {
					delete(got, name)
				}
			}
			// What is skipped follows from what failed; TestRunSkips looks at it.
			maps.DeleteFunc(got, func(_ string, o conformance.Outcome) bool { return o == conformance.Skip })
			if diff := cmp.Diff(tt.found, got); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
			wantPassed := true
			for _, res := range report.Results {
				if res.Outcome == conformance.Fail || res.Outcome == conformance.Skip {
					wantPassed = false
				}
				if named := res.Outcome == conformance.Fail || res.Outcome == conformance.Warn; named != (res.Remedy != "") {
					t.Errorf("%s is %s with the remedy %q", res.Name, res.Outcome, res.Remedy)
				}
				if strings.ContainsAny(res.Detail, "\x1b\n") {
					t.Errorf("%s: detail %q would upset a terminal", res.Name, res.Detail)
				}
			}
			if report.Passed() != wantPassed {
				t.Errorf("Passed() = %v", report.Passed())
			}
			var details strings.Builder
			for _, res := range report.Results {
				if _, ok := tt.found[res.Name]; ok {
					fmt.Fprintf(&details, "%s: %s\n", res.Name, res.Detail)
				}
			}
			if !strings.Contains(details.String(), tt.detail) {
				t.Errorf("no finding says %q:\n%s", tt.detail, details.String())
			}
		})
	}
}

// TestEveryCheckHasAPlantedFault keeps a check from being added that no wrong
// plugin has ever failed.
func TestEveryCheckHasAPlantedFault(t *testing.T) {
	t.Parallel()
	covered := map[string]bool{}
	for _, tt := range plantedFaults {
		for name := range tt.found {
			covered[name] = true
		}
	}
	s := newReferenceServer(t)
	names := map[string]bool{}
	for _, res := range conformance.Run(t.Context(), s.serve(t), testOptions(s)).Results {
		if names[res.Name] {
			t.Errorf("two checks are called %s", res.Name)
		}
		names[res.Name] = true
	}
	if diff := cmp.Diff(names, covered); diff != "" {
		t.Errorf("checks and the planted faults that they find (-checks +found):\n%s", diff)
	}
}

func TestRunSkips(t *testing.T) {
	t.Parallel()
	t.Run("what builds on a Status that failed", func(t *testing.T) {
		t.Parallel()
		conn, err := conformance.Dial("/nonexistent/kms.sock")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		report := conformance.Run(t.Context(), conn, conformance.Options{})
		if report.Results[0].Outcome != conformance.Fail || !strings.Contains(report.Results[0].Detail, "no such file") {
			t.Errorf("first result: %+v", report.Results[0])
		}
		for _, res := range report.Results[1:] {
			if res.Outcome != conformance.Skip || res.Detail != "not run: status-answers failed" {
				t.Errorf("%+v", res)
			}
		}
		if report.Passed() || report.KeyID != "" {
			t.Errorf("Passed() = %v, KeyID = %q", report.Passed(), report.KeyID)
		}
	})
	t.Run("what builds on a round trip that failed", func(t *testing.T) {
		t.Parallel()
		s := newReferenceServer(t)
		s.onEncrypt = func(context.Context, *kmsv2.EncryptRequest, encryptFunc) (*kmsv2.EncryptResponse, error) {
			return nil, status.Error(codes.FailedPrecondition, "no key")
		}
		report := conformance.Run(t.Context(), s.serve(t), testOptions(s))
		if got := report.Count(conformance.OK); got != 5 { // the checks on Status
			t.Errorf("%d checks passed, want 5", got)
		}
		for _, res := range report.Results[6:] {
			if res.Outcome != conformance.Skip || res.Detail != "not run: round-trip failed" {
				t.Errorf("%+v", res)
			}
		}
	})
	t.Run("the rest of an interrupted run", func(t *testing.T) {
		t.Parallel()
		s := newReferenceServer(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		var decrypts atomic.Int64
		s.onDecrypt = func(_ context.Context, req *kmsv2.DecryptRequest, next decryptFunc) (*kmsv2.DecryptResponse, error) {
			if decrypts.Add(1) == 2 { // in round-trip-sizes
				cancel(errors.New("interrupted by the test"))
			}
			return next(req)
		}
		report := conformance.Run(ctx, s.serve(t), testOptions(s))
		if got := report.Count(conformance.OK); got != 6 {
			t.Errorf("%d checks passed, want 6", got)
		}
		for _, res := range report.Results[6:] {
			if res.Outcome != conformance.Skip || res.Detail != "not run to its end: interrupted by the test" {
				t.Errorf("%+v", res)
			}
		}
		if report.Passed() {
			t.Error("an interrupted run passed")
		}
	})
	t.Run("a run that is interrupted under load", func(t *testing.T) {
		t.Parallel()
		s := newReferenceServer(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var running atomic.Int64
		s.onEncrypt = func(ctx context.Context, req *kmsv2.EncryptRequest, next encryptFunc) (*kmsv2.EncryptResponse, error) {
			defer running.Add(-1)
			if running.Add(1) > 1 {
				cancel()
			}
			lingers(ctx)
			return next(req)
		}
		if conformance.Run(ctx, s.serve(t), testOptions(s)).Passed() {
			t.Error("an interrupted run passed")
		}
	})
}

func TestReportJSON(t *testing.T) {
	t.Parallel()
	report := conformance.Report{
		Version: "v2",
		KeyID:   "ring/01/abcdef",
		Results: []conformance.Result{
			{Name: "status-answers", Outcome: conformance.OK, Detail: "Status answered"},
			{Name: "latency", Outcome: conformance.Warn, Detail: "slow", Remedy: "be quick"},
		},
	}
	got, err := json.Marshal(report)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"version":"v2","keyID":"ring/01/abcdef","results":[` +
		`{"name":"status-answers","status":"ok","detail":"Status answered"},` +
		`{"name":"latency","status":"warn","detail":"slow","remedy":"be quick"}]}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
	if !report.Passed() {
		t.Error("a warning must pass")
	}
	if (conformance.Report{}).Passed() {
		t.Error("a report without results must not pass")
	}
}
