package conformance

import (
	"context"
	"crypto/rand"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	kmsv2 "k8s.io/kms/apis/v2"

	"kekd/internal/kek"
)

// Run checks the plugin behind conn and returns one result for each check, in
// a fixed order. It never returns early: once ctx is done the checks that are
// left are skipped, and the report says so. Run may be called concurrently.
func Run(ctx context.Context, conn grpc.ClientConnInterface, opts Options) Report {
	ctx = metadata.AppendToOutgoingContext(ctx, kek.VerifyHeader, "1")
	r := &runner{client: kmsv2.NewKeyManagementServiceClient(conn), opts: opts.withDefaults()}
	var report Report
	for _, c := range checks() {
		report.Results = append(report.Results, r.runCheck(ctx, c))
	}
	report.Version, report.KeyID = r.first.GetVersion(), r.first.GetKeyId()
	return report
}

// groundwork is what a check builds on.
type groundwork uint8

const (
	needNothing groundwork = iota
	needStatus             // a Status that answered
	needSample             // a ciphertext that decrypted
)

// check is one row of the suite. Run returns the outcome and a line on it.
type check struct {
	name   string
	needs  groundwork
	remedy string
	run    func(context.Context, *runner) (Outcome, string)
}

// checks lists the suite in its order: see the package comment.
func checks() []check {
	return []check{
		statusAnswers, statusVersion, statusHealthz, statusKeyID, statusStable,
		roundTrip, roundTripSizes, encryptLimits, encryptKeyID, encryptDistinct, encryptConfidential,
		decryptRepeatable, latency, statusUnderLoad, concurrentRoundTrips,
		decryptWrongKeyID, decryptTampered, decryptWrongLength, decryptForeign, decryptAnnotations,
		decryptEmpty, encryptEmpty, encryptOversize, decryptOversize,
		abandonedCalls, healthyAtEnd,
	}
}

// sample is a plaintext and what the plugin made of it.
type sample struct {
	plaintext []byte
	sealed    *kmsv2.EncryptResponse
}

// runner carries what one run knows. Checks run one at a time; what they start
// concurrently only reads the fields.
type runner struct {
	client kmsv2.KeyManagementServiceClient
	opts   Options

	first  *kmsv2.StatusResponse // the first Status, nil until it answered
	sample *sample               // a proven 32-byte round trip, nil until there is one
}

func (r *runner) runCheck(ctx context.Context, c check) Result {
	result := Result{Name: c.name, Outcome: Skip}
	switch {
	case ctx.Err() != nil:
	case c.needs >= needStatus && r.first == nil:
		result.Detail = fmt.Sprintf("not run: %s failed", statusAnswers.name)
		return result
	case c.needs >= needSample && r.sample == nil:
		result.Detail = fmt.Sprintf("not run: %s failed", roundTrip.name)
		return result
	default:
		outcome, detail := c.run(ctx, r)
		if ctx.Err() == nil {
			result.Outcome, result.Detail = outcome, detail
			if outcome != OK {
				result.Remedy = c.remedy
			}
			return result
		}
	}
	// What a check saw while it was being interrupted says nothing about the plugin.
	result.Detail = fmt.Sprintf("not run to its end: %v", context.Cause(ctx))
	return result
}

// status, encrypt and decrypt are single calls under the run's deadline. None
// waits for a connection: a missing plugin is a finding, not a reason to wait.

func (r *runner) status(ctx context.Context) (*kmsv2.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, r.opts.CallTimeout)
	defer cancel()
	return r.client.Status(ctx, &kmsv2.StatusRequest{})
}

func (r *runner) encrypt(ctx context.Context, plaintext []byte) (*kmsv2.EncryptResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, r.opts.CallTimeout)
	defer cancel()
	return r.client.Encrypt(ctx, &kmsv2.EncryptRequest{Plaintext: plaintext, Uid: newUID()})
}

func (r *runner) decrypt(ctx context.Context, sealed *kmsv2.EncryptResponse) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.opts.CallTimeout)
	defer cancel()
	resp, err := r.client.Decrypt(ctx, &kmsv2.DecryptRequest{
		Ciphertext:  sealed.GetCiphertext(),
		KeyId:       sealed.GetKeyId(),
		Annotations: sealed.GetAnnotations(),
		Uid:         newUID(),
	})
	return resp.GetPlaintext(), err
}

// encryptNew encrypts fresh random bytes.
func (r *runner) encryptNew(ctx context.Context, size int) (*sample, error) {
	plaintext := randomBytes(size)
	sealed, err := r.encrypt(ctx, plaintext)
	if err != nil {
		return nil, err
	}
	return &sample{plaintext: plaintext, sealed: sealed}, nil
}

// damaged returns a copy of an Encrypt answer with another ciphertext.
func damaged(sealed *kmsv2.EncryptResponse, ciphertext []byte) *kmsv2.EncryptResponse {
	return &kmsv2.EncryptResponse{Ciphertext: ciphertext, KeyId: sealed.GetKeyId(), Annotations: sealed.GetAnnotations()}
}

// randomBytes returns n random bytes. crypto/rand.Read never fails.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// newUID returns a random UUID, as kube-apiserver sends with every call.
func newUID() string {
	b := randomBytes(16)
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// spread picks at most limit of the numbers 0 to n-1, evenly, both ends included.
func spread(n, limit int) []int {
	if n <= limit {
		limit = n
	}
	picked := make([]int, 0, limit)
	for i := range limit {
		if limit == 1 {
			picked = append(picked, 0)
			break
		}
		picked = append(picked, i*(n-1)/(limit-1))
	}
	return picked
}
