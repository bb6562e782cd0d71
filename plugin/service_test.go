package plugin

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/kek"
)

func TestRoundTrip(t *testing.T) {
	r := start(t)
	client := r.client(t)

	got, err := client.Status(t.Context(), &kmsapi.StatusRequest{})
	if err != nil {
		t.Fatalf("Status: %v", err)
	}
	want := &kmsapi.StatusResponse{Version: "v2", Healthz: "ok", KeyId: testKeyID}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("Status (-want +got):\n%s", diff)
	}

	for _, size := range []int{1, 16, 32, 512} {
		t.Run(fmt.Sprintf("%d bytes", size), func(t *testing.T) {
			plaintext := []byte(strings.Repeat("p", size))
			enc, err := client.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: plaintext, Uid: testUID})
			if err != nil {
				t.Fatalf("Encrypt: %v", err)
			}
			want := &kmsapi.EncryptResponse{Ciphertext: append([]byte(sealedPrefix), plaintext...), KeyId: testKeyID}
			if diff := cmp.Diff(want, enc, protocmp.Transform()); diff != "" {
				t.Errorf("Encrypt (-want +got):\n%s", diff)
			}
			dec, err := client.Decrypt(t.Context(), &kmsapi.DecryptRequest{
				Ciphertext: enc.Ciphertext, KeyId: enc.KeyId, Annotations: enc.Annotations, Uid: testUID,
			})
			if err != nil {
				t.Fatalf("Decrypt: %v", err)
			}
			if diff := cmp.Diff(plaintext, dec.Plaintext); diff != "" {
				t.Errorf("plaintext (-want +got):\n%s", diff)
			}
		})
	}

	requests, inFlight, _, _ := r.tally.snapshot()
	if diff := cmp.Diff(map[string]int{"Status OK": 1, "Encrypt OK": 4, "Decrypt OK": 4}, requests); diff != "" {
		t.Errorf("requests observed (-want +got):\n%s", diff)
	}
	if inFlight != 0 {
		t.Errorf("%d requests in flight at the end", inFlight)
	}
	// Requests are on Debug, Status is not logged at all.
	if n := r.logs.FilterMessage("request served").Len(); n != 8 {
		t.Errorf("%d debug lines, want 8", n)
	}
	line := r.logs.FilterMessage("request served").All()[0]
	if line.Level != zap.DebugLevel || line.ContextMap()["uid"] != testUID || line.ContextMap()["key_id"] != testKeyID {
		t.Errorf("debug line is %v %v", line.Level, line.ContextMap())
	}
}

func TestDecryptPassesKeyID(t *testing.T) {
	r := start(t)
	r.sealer.open = func(_ context.Context, s kek.Sealed) ([]byte, error) {
		return []byte(s.KeyID + "|" + string(s.Ciphertext)), nil
	}
	got, err := r.client(t).Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("c"), KeyId: "k"})
	if err != nil || string(got.GetPlaintext()) != "k|c" {
		t.Errorf("Decrypt = %q, %v", got.GetPlaintext(), err)
	}
}

func TestRequestLimits(t *testing.T) {
	r := start(t)
	client := r.client(t)
	encrypt := func(plaintext string) error {
		_, err := client.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte(plaintext), Uid: testUID})
		return err
	}
	decrypt := func(req *kmsapi.DecryptRequest) error {
		_, err := client.Decrypt(t.Context(), req)
		return err
	}
	good := []byte(sealedPrefix + "p")
	long := func(n int) string { return strings.Repeat("x", n) }
	tests := []struct {
		name string
		err  error
		code codes.Code
		text string
	}{
		{"empty plaintext", encrypt(""), codes.InvalidArgument, "the plaintext is empty"},
		{"plaintext over any envelope", encrypt(long(1025)), codes.InvalidArgument, "the plaintext is too large: its ciphertext would exceed 1024 bytes"},
		{"plaintext over the message cap", encrypt(long(64 << 10)), codes.ResourceExhausted, "grpc: received message larger than max (65578 vs. 65536)"},
		{"empty ciphertext", decrypt(&kmsapi.DecryptRequest{KeyId: testKeyID}), codes.InvalidArgument, "ciphertext must have 1 to 1024 bytes"},
		{"largest ciphertext", decrypt(&kmsapi.DecryptRequest{KeyId: testKeyID, Ciphertext: []byte(sealedPrefix + long(1024-len(sealedPrefix)))}), codes.OK, ""},
		{"ciphertext too large", decrypt(&kmsapi.DecryptRequest{KeyId: testKeyID, Ciphertext: []byte(sealedPrefix + long(1025-len(sealedPrefix)))}), codes.InvalidArgument, "ciphertext must have 1 to 1024 bytes"},
		{"empty key_id", decrypt(&kmsapi.DecryptRequest{Ciphertext: good}), codes.InvalidArgument, "key_id must have 1 to 1024 bytes"},
		{"longest key_id", decrypt(&kmsapi.DecryptRequest{Ciphertext: good, KeyId: long(1024)}), codes.OK, ""},
		{"key_id too long", decrypt(&kmsapi.DecryptRequest{Ciphertext: good, KeyId: long(1025)}), codes.InvalidArgument, "key_id must have 1 to 1024 bytes"},
		{"annotations", decrypt(&kmsapi.DecryptRequest{Ciphertext: good, KeyId: testKeyID, Annotations: map[string][]byte{"a.b": {1}}}), codes.InvalidArgument, "annotations must be empty: this plugin makes none"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := status.Convert(tt.err); got.Code() != tt.code || got.Message() != tt.text {
				t.Errorf("got %v %q, want %v %q", got.Code(), got.Message(), tt.code, tt.text)
			}
		})
	}
	if err := encrypt("still served"); err != nil {
		t.Errorf("after all that, Encrypt: %v", err)
	}
}

// An answer that kube-apiserver would refuse, or must not store, is our bug.
func TestResponseLimits(t *testing.T) {
	long := strings.Repeat("x", 1025)
	sealed := func(keyID, ciphertext string) func(context.Context, []byte) (kek.Sealed, error) {
		return func(context.Context, []byte) (kek.Sealed, error) {
			return kek.Sealed{KeyID: keyID, Ciphertext: []byte(ciphertext)}, nil
		}
	}
	tests := []struct {
		name   string
		keyID  string // of Status
		sealer fakeSealer
		call   string
		detail string
	}{
		{name: "no ciphertext", sealer: fakeSealer{seal: sealed("k", "")}, call: "Encrypt", detail: "the sealer made a ciphertext of 0 bytes"},
		{name: "ciphertext too large", sealer: fakeSealer{seal: sealed("k", long)}, call: "Encrypt", detail: "the sealer made a ciphertext of 1025 bytes"},
		{name: "no key_id", sealer: fakeSealer{seal: sealed("", "c")}, call: "Encrypt", detail: "own key_id has 0 bytes"},
		{name: "key_id too long", sealer: fakeSealer{seal: sealed(long, "c")}, call: "Encrypt", detail: "own key_id has 1025 bytes"},
		{name: "key_id not UTF-8", sealer: fakeSealer{seal: sealed("\xff", "c")}, call: "Encrypt", detail: `own key_id "\xff" is not UTF-8`},
		{name: "no plaintext", sealer: fakeSealer{open: func(context.Context, kek.Sealed) ([]byte, error) { return nil, nil }}, call: "Decrypt", detail: "the sealer opened a ciphertext to no plaintext"},
		{name: "Status without key_id", keyID: "", call: "Status", detail: "own key_id has 0 bytes"},
		{name: "Status with a long key_id", keyID: long, call: "Status", detail: "own key_id has 1025 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := start(t)
			*r.sealer = tt.sealer
			r.health.keyID = tt.keyID
			err := call(t.Context(), r.client(t), tt.call)
			if got := status.Convert(err); got.Code() != codes.Internal || got.Message() != "internal error" {
				t.Errorf("got %v, want Internal without detail", got)
			}
			lines := r.logs.FilterMessage("request failed").All()
			if len(lines) != 1 || lines[0].Level != zap.ErrorLevel || lines[0].ContextMap()["error"] != tt.detail {
				t.Errorf("log is %v, want one error line with %q", lines, tt.detail)
			}
		})
	}
}

// call makes one well-formed call by its name.
func call(ctx context.Context, client kmsapi.KeyManagementServiceClient, method string) error {
	var err error
	switch method {
	case "Status":
		_, err = client.Status(ctx, &kmsapi.StatusRequest{})
	case "Encrypt":
		_, err = client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: seed, Uid: testUID})
	case "Decrypt":
		_, err = client.Decrypt(ctx, &kmsapi.DecryptRequest{
			Ciphertext: append([]byte(sealedPrefix), seed...), KeyId: testKeyID, Uid: testUID,
		})
	default:
		panic(method)
	}
	return err
}

// The table of states in the design: what Health says decides Status and
// Encrypt, and leaves Decrypt alone.
func TestHealthDecides(t *testing.T) {
	starting := &reasonError{class: kek.ErrUnavailable, reason: "starting: no proven key yet"}
	revoked := &reasonError{class: kek.ErrRevoked, reason: "revoked: the primary KEK is disabled"}
	plain := fmt.Errorf("probe: %w: %w", kek.ErrUnavailable, errDetail)
	tests := []struct {
		name   string
		health fakeHealth
		want   map[string]string
	}{
		{"ready", fakeHealth{keyID: testKeyID},
			map[string]string{"Status": "OK: ", "Encrypt": "OK: ", "Decrypt": "OK: "}},
		{"starting", fakeHealth{statusErr: starting, encryptOK: starting}, map[string]string{
			"Status": "Unavailable: starting: no proven key yet", "Encrypt": "Unavailable: starting: no proven key yet", "Decrypt": "OK: "}},
		{"revoked", fakeHealth{statusErr: revoked, encryptOK: revoked}, map[string]string{
			"Status": "FailedPrecondition: revoked: the primary KEK is disabled", "Encrypt": "FailedPrecondition: revoked: the primary KEK is disabled", "Decrypt": "OK: "}},
		{"no reason given", fakeHealth{statusErr: plain, encryptOK: plain}, map[string]string{
			"Status": "Unavailable: the HSM is unavailable or kekd is not ready", "Encrypt": "Unavailable: the HSM is unavailable or kekd is not ready", "Decrypt": "OK: "}},
		{"no class", fakeHealth{statusErr: errDetail, encryptOK: errDetail}, map[string]string{
			"Status": "Unavailable: kekd is not ready", "Encrypt": "Unavailable: kekd is not ready", "Decrypt": "OK: "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := start(t)
			*r.health = tt.health
			client := r.client(t)
			got := make(map[string]string)
			for _, method := range []string{"Status", "Encrypt", "Decrypt"} {
				s := status.Convert(call(t.Context(), client, method))
				got[method] = s.Code().String() + ": " + s.Message()
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlaintextIsWiped(t *testing.T) {
	for _, outcome := range []error{nil, kek.ErrUnavailable} {
		t.Run(fmt.Sprint(outcome), func(t *testing.T) {
			var kept []byte
			s := &service{health: &fakeHealth{keyID: testKeyID}, sealer: &fakeSealer{
				seal: func(_ context.Context, plaintext []byte) (kek.Sealed, error) {
					kept = plaintext
					return kek.Sealed{KeyID: testKeyID, Ciphertext: []byte("c")}, outcome
				}}}
			_, _ = s.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte(string(seed))})
			if diff := cmp.Diff(make([]byte, len(seed)), kept); diff != "" {
				t.Errorf("plaintext after the call (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDeadline(t *testing.T) {
	const own = time.Minute
	tests := []struct {
		name    string
		client  time.Duration // 0 sends none
		atMost  time.Duration
		atLeast time.Duration
	}{
		{"none from the client", 0, own, own - 30*time.Second},
		{"earlier from the client", 20 * time.Second, 20 * time.Second, 5 * time.Second},
		{"later from the client", time.Hour, own, own - 30*time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := start(t, func(c *Config, _ *Server) { c.RequestTimeout = own })
			left := make(chan time.Duration, 1)
			r.sealer.open = func(ctx context.Context, _ kek.Sealed) ([]byte, error) {
				deadline, ok := ctx.Deadline()
				if !ok {
					return nil, errDetail
				}
				left <- time.Until(deadline)
				return seed, nil
			}
			ctx := t.Context()
			if tt.client != 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, tt.client)
				defer cancel()
			}
			if err := call(ctx, r.client(t), "Decrypt"); err != nil {
				t.Fatal(err)
			}
			if got := <-left; got > tt.atMost || got < tt.atLeast {
				t.Errorf("the handler had %v, want %v to %v", got, tt.atLeast, tt.atMost)
			}
		})
	}
}

func TestDeadlineExpires(t *testing.T) {
	r := start(t, func(c *Config, _ *Server) { c.RequestTimeout = 20 * time.Millisecond })
	r.sealer.seal = func(ctx context.Context, _ []byte) (kek.Sealed, error) {
		<-ctx.Done()
		return kek.Sealed{}, fmt.Errorf("wrap seed: %w", ctx.Err())
	}
	err := call(t.Context(), r.client(t), "Encrypt")
	if got := status.Convert(err); got.Code() != codes.DeadlineExceeded || got.Message() != "the request took too long" {
		t.Errorf("got %v", got)
	}
}
