package plugin

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/kek"
)

// Every class, as kube-apiserver sees it on a Decrypt. The detail stays inside.
func TestErrorTable(t *testing.T) {
	const key = ` (key_id "` + testKeyID + `")`
	tests := []struct {
		name string
		err  error
		code codes.Code
		text string
	}{
		{"unavailable", kek.ErrUnavailable, codes.Unavailable, "the HSM is unavailable or kekd is not ready"},
		{"no key", kek.ErrNoKey, codes.Unavailable, "the key ring has no usable KEK"},
		{"ambiguous", kek.ErrAmbiguous, codes.Unavailable, "several tokens or KEKs match where one is meant"},
		{"PIN", kek.ErrPIN, codes.Unavailable, "the HSM is unavailable: the token refused the PIN"},
		{"state", fmt.Errorf("%w: %w", kek.ErrUnavailable, kek.ErrState), codes.Unavailable, "kekd cannot use its state directory"},
		{"busy", kek.ErrBusy, codes.ResourceExhausted, "too many requests wait for the HSM"},
		{"corrupt", kek.ErrCorrupt, codes.InvalidArgument, "the ciphertext is damaged or was not made by this key ring" + key},
		{"wrong key_id", kek.ErrWrongKeyID, codes.InvalidArgument, "the key_id does not belong to the ciphertext" + key},
		{"too large", kek.ErrTooLarge, codes.InvalidArgument, "the plaintext is too large: its ciphertext would exceed 1024 bytes"},
		{"empty", kek.ErrEmpty, codes.InvalidArgument, "the plaintext is empty"},
		{"unknown key", kek.ErrUnknownKey, codes.NotFound, "the KEK is not on the token" + key},
		{"revoked", kek.ErrRevoked, codes.FailedPrecondition, "the KEK is disabled, scheduled for destruction or gone" + key},
		{"refused", kek.ErrRefused, codes.FailedPrecondition, "the token refuses this use of the KEK" + key},
		{"deadline", context.DeadlineExceeded, codes.DeadlineExceeded, "the request took too long"},
		{"canceled", context.Canceled, codes.Canceled, "the client canceled the request"},
		{"class over context", fmt.Errorf("%w: %w", context.DeadlineExceeded, kek.ErrUnavailable), codes.Unavailable, "the HSM is unavailable or kekd is not ready"},
		{"foreign status", status.Error(codes.DataLoss, "secret"), codes.Internal, "internal error"},
		{"foreign reason", &reasonError{class: kek.ErrUnavailable, reason: "not from health"}, codes.Unavailable, "the HSM is unavailable or kekd is not ready"},
		{"anything else", errDetail, codes.Internal, "internal error"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := start(t)
			r.sealer.open = func(context.Context, kek.Sealed) ([]byte, error) {
				return nil, fmt.Errorf("unwrap: %w (%w)", tt.err, errDetail)
			}
			got := status.Convert(call(t.Context(), r.client(t), "Decrypt"))
			if got.Code() != tt.code || got.Message() != tt.text {
				t.Errorf("got %v %q, want %v %q", got.Code(), got.Message(), tt.code, tt.text)
			}
			lines := r.logs.FilterMessage("request failed").All()
			if len(lines) != 1 {
				t.Fatalf("%d log lines, want 1", len(lines))
			}
			fields := lines[0].ContextMap()
			if fields["uid"] != testUID || fields["key_id"] != testKeyID || fields["method"] != "Decrypt" || fields["code"] != tt.code.String() {
				t.Errorf("log fields are %v", fields)
			}
			if detail, ok := fields["error"].(string); !ok || !strings.Contains(detail, errDetail.Error()) {
				t.Errorf("log misses the detail: %v", fields["error"])
			}
			requests, _, _, _ := r.tally.snapshot()
			if requests["Decrypt "+tt.code.String()] != 1 {
				t.Errorf("observed %v", requests)
			}
		})
	}
}

// What a client chose is repeated cut to size and escaped.
func TestClientTextIsBounded(t *testing.T) {
	r := start(t)
	r.sealer.open = func(context.Context, kek.Sealed) ([]byte, error) { return nil, kek.ErrUnknownKey }
	_, err := r.client(t).Decrypt(t.Context(), &kmsapi.DecryptRequest{
		Ciphertext: []byte("c"), KeyId: "a\n\"b" + strings.Repeat("k", 1000), Uid: strings.Repeat("u", 10000),
	})
	if got, want := status.Convert(err).Message(), `the KEK is not on the token (key_id "a\n\"bkkk`; !strings.HasPrefix(got, want) || len(got) > 400 {
		t.Errorf("public text is %q", got)
	}
	if n := len(logText(t, r.logs)); n > 1000 {
		t.Errorf("the log took %d bytes", n)
	}
}

func TestSecretsAreNotLogged(t *testing.T) {
	r := start(t)
	client := r.client(t)
	for _, method := range []string{"Encrypt", "Decrypt"} {
		if err := call(t.Context(), client, method); err != nil {
			t.Fatal(err)
		}
	}
	r.sealer.seal = func(_ context.Context, plaintext []byte) (kek.Sealed, error) { panic(string(plaintext)) }
	r.sealer.open = func(_ context.Context, s kek.Sealed) ([]byte, error) { panic(s.Ciphertext) }
	for _, method := range []string{"Encrypt", "Decrypt"} {
		if code := status.Code(call(t.Context(), client, method)); code != codes.Internal {
			t.Fatalf("%s after a panic: %v", method, code)
		}
	}
	if text := logText(t, r.logs); strings.Contains(text, string(seed)) || !strings.Contains(text, "panic of type string") {
		t.Errorf("log:\n%s", text)
	}
}
