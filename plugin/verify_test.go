package plugin

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/kek"
)

// The header of kekctl verify sets apart what a request brings about itself. It hides
// neither what kekd cannot do nor what it opens, and all of it is audited.
func TestVerifyIsSetApart(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error // of the Decrypt
		// count is what is counted with the header, plain what is without.
		count, plain string
		code         codes.Code
		debug        bool // with the header the log has it at Debug
	}{
		{"served", nil, "Decrypt OK", "Decrypt OK", codes.OK, true},
		{"damaged", kek.ErrCorrupt, "Decrypt verify", "Decrypt InvalidArgument", codes.InvalidArgument, true},
		{"another key_id", kek.ErrWrongKeyID, "Decrypt verify", "Decrypt InvalidArgument", codes.InvalidArgument, true},
		{"foreign", kek.ErrUnknownKey, "Decrypt verify", "Decrypt NotFound", codes.NotFound, true},
		{"given up", context.DeadlineExceeded, "Decrypt verify", "Decrypt DeadlineExceeded", codes.DeadlineExceeded, true},
		{"revoked", kek.ErrRevoked, "Decrypt FailedPrecondition", "Decrypt FailedPrecondition", codes.FailedPrecondition, false},
		{"no HSM", kek.ErrUnavailable, "Decrypt Unavailable", "Decrypt Unavailable", codes.Unavailable, false},
		{"a bug", fmt.Errorf("oops"), "Decrypt Internal", "Decrypt Internal", codes.Internal, false},
	} {
		for _, marked := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/%t", c.name, marked), func(t *testing.T) {
				heard := &listed{}
				r := start(t, func(cfg *Config, _ *Server) { cfg.Auditor = heard })
				r.sealer.open = func(ctx context.Context, _ kek.Sealed) ([]byte, error) {
					if kek.Verifying(ctx) != marked {
						t.Errorf("the sealer hears %t", !marked)
					}
					return []byte("p"), c.err
				}
				ctx, want, debug := t.Context(), c.plain, c.err == nil
				if marked {
					ctx, want, debug = metadata.AppendToOutgoingContext(ctx, kek.VerifyHeader, "1"), c.count, c.debug
				}
				_, err := r.client(t).Decrypt(ctx, &kmsapi.DecryptRequest{Uid: testUID, KeyId: testKeyID, Ciphertext: []byte("x")})
				if status.Code(err) != c.code {
					t.Errorf("the client gets %v, want %s", err, c.code)
				}
				requests, _, _, _ := r.tally.snapshot()
				if diff := cmp.Diff(map[string]int{want: 1}, requests); diff != "" {
					t.Errorf("counted (-want +got):\n%s", diff)
				}
				loud := r.logs.Filter(func(e observer.LoggedEntry) bool { return e.Level > zap.DebugLevel && e.ContextMap()["uid"] == testUID }).Len()
				if (loud == 0) != debug {
					t.Errorf("%d lines above Debug", loud)
				}
				if records := heard.take(); len(records) != 1 || records[0].Verify != marked {
					t.Errorf("audited %+v, want one record with Verify %t", records, marked)
				}
			})
		}
	}
}
