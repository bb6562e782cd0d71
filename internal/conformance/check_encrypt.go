package conformance

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/status"
	kmsv2 "k8s.io/kms/apis/v2"
)

// repeats is how often the checks that compare ciphertexts encrypt.
const repeats = 16

var roundTrip = check{
	name:   "round-trip",
	needs:  needStatus,
	remedy: "make Decrypt return what Encrypt was given; kube-apiserver needs both before it serves one encrypted object",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		s, err := r.encryptNew(ctx, seedSize)
		if err != nil {
			return Fail, "Encrypt: " + describe(err)
		}
		plaintext, err := r.decrypt(ctx, s.sealed)
		if err != nil {
			return Fail, "Decrypt: " + describe(err)
		}
		if !bytes.Equal(plaintext, s.plaintext) {
			return Fail, "Decrypt returned something else than was encrypted"
		}
		r.sample = s
		return OK, fmt.Sprintf("%d bytes became %d and came back", seedSize, len(s.sealed.GetCiphertext()))
	},
}

var roundTripSizes = check{
	name:   "round-trip-sizes",
	needs:  needSample,
	remedy: "encrypt other sizes too or refuse them with InvalidArgument; kube-apiserver sends 32 bytes today and does not promise to for ever",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		var f findings
		for _, size := range []int{1, 16, 24, 64, 512} {
			s, err := r.encryptNew(ctx, size)
			if err != nil {
				outcome, why := judgeRefusal(err)
				if outcome == OK {
					outcome, why = Warn, "refused: "+describe(err)
				}
				f.addf(outcome, "%d bytes: Encrypt: %s", size, why)
				continue
			}
			if len(s.sealed.GetCiphertext()) > maxCiphertext {
				f.warnf("%d bytes: the ciphertext has %d bytes, which kube-apiserver throws away", size, len(s.sealed.GetCiphertext()))
			}
			plaintext, err := r.decrypt(ctx, s.sealed)
			switch {
			case err != nil:
				f.failf("%d bytes: encrypted, but Decrypt: %s", size, describe(err))
			case !bytes.Equal(plaintext, s.plaintext):
				f.failf("%d bytes: Decrypt returned something else than was encrypted", size)
			}
		}
		return f.result("1, 16, 24, 64 and 512 bytes came back")
	},
}

var encryptLimits = check{
	name:   "encrypt-limits",
	needs:  needSample,
	remedy: "keep the answer within what kube-apiserver takes: ciphertext and key_id 1 to 1024 bytes each, annotations at most 32 KiB with domain names as keys",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		if problem := checkSealed(r.sample.sealed); problem != "" {
			return Fail, problem
		}
		for range repeats {
			s, err := r.encryptNew(ctx, seedSize)
			if err != nil {
				return Fail, "Encrypt: " + describe(err)
			}
			if problem := checkSealed(s.sealed); problem != "" {
				return Fail, problem
			}
		}
		return OK, fmt.Sprintf("ciphertext %d bytes, key_id %d, annotations %d",
			len(r.sample.sealed.GetCiphertext()), len(r.sample.sealed.GetKeyId()), len(r.sample.sealed.GetAnnotations()))
	},
}

var encryptKeyID = check{
	name:   "encrypt-key-id",
	needs:  needSample,
	remedy: "take the key_id of Status and of Encrypt from one snapshot; while they differ kube-apiserver throws the answer away, and after three minutes writes stop",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		const calls, attempts = 5, 3
		for range calls {
			settled := false
			for range attempts {
				m, err := r.matchKeyID(ctx)
				if err != nil {
					return Fail, describe(err)
				}
				if m.disagrees() {
					return Fail, fmt.Sprintf("Status says %s, Encrypt says %s", quote(m.before), quote(m.sealed.GetKeyId()))
				}
				// A key_id that changed around the Encrypt is a rotation: ask again,
				// it has to come to rest.
				if settled = m.before == m.after; settled {
					break
				}
			}
			if !settled {
				return Fail, "the key_id of Status changes from call to call"
			}
		}
		return OK, "Status and Encrypt name the same KEK"
	},
}

// keyIDMatch is an Encrypt between two Status calls.
type keyIDMatch struct {
	*sample
	before, after string
}

// disagrees reports whether Encrypt named a KEK that Status named neither
// before nor after.
func (m keyIDMatch) disagrees() bool {
	id := m.sealed.GetKeyId()
	return id != m.before && id != m.after
}

func (r *runner) matchKeyID(ctx context.Context) (keyIDMatch, error) {
	before, err := r.status(ctx)
	if err != nil {
		return keyIDMatch{}, err
	}
	s, err := r.encryptNew(ctx, seedSize)
	if err != nil {
		return keyIDMatch{}, err
	}
	after, err := r.status(ctx)
	if err != nil {
		return keyIDMatch{}, err
	}
	return keyIDMatch{sample: s, before: before.GetKeyId(), after: after.GetKeyId()}, nil
}

var encryptDistinct = check{
	name:   "encrypt-distinct",
	needs:  needSample,
	remedy: "draw a fresh nonce for each Encrypt; a deterministic wrap such as AES-KWP is safe for random seeds, but shows which stored seeds are equal",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		seen := make(map[string]bool, repeats)
		for range repeats {
			sealed, err := r.encrypt(ctx, r.sample.plaintext)
			if err != nil {
				return Fail, "Encrypt: " + describe(err)
			}
			seen[fingerprint(sealed)] = true
		}
		if len(seen) < repeats {
			return Warn, fmt.Sprintf("%d Encrypts of one plaintext gave %d different answers", repeats, len(seen))
		}
		return OK, fmt.Sprintf("%d Encrypts of one plaintext all differ", repeats)
	},
}

// fingerprint is equal for two Encrypt answers that store the same.
func fingerprint(sealed *kmsv2.EncryptResponse) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q", sealed.GetCiphertext(), sealed.GetKeyId())
	for _, key := range slices.Sorted(maps.Keys(sealed.GetAnnotations())) {
		fmt.Fprintf(&b, " %q %q", key, sealed.GetAnnotations()[key])
	}
	return b.String()
}

var encryptConfidential = check{
	name:   "encrypt-confidential",
	needs:  needSample,
	remedy: "encrypt with an authenticated cipher and a nonce that never repeats, and put nothing of the plaintext beside the ciphertext: etcd stores all of it in the clear",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		samples := make([]*sample, 0, repeats)
		for range repeats {
			s, err := r.encryptNew(ctx, seedSize)
			if err != nil {
				return Fail, "Encrypt: " + describe(err)
			}
			if bytes.Contains(s.sealed.GetCiphertext(), s.plaintext) {
				return Fail, "the ciphertext holds the plaintext"
			}
			if strings.Contains(s.sealed.GetKeyId(), string(s.plaintext)) {
				return Fail, "the key_id holds the plaintext"
			}
			for key, value := range s.sealed.GetAnnotations() {
				if bytes.Contains(value, s.plaintext) {
					return Fail, fmt.Sprintf("the annotation %s holds the plaintext", quote(key))
				}
			}
			samples = append(samples, s)
		}
		for i, a := range samples {
			for _, b := range samples[:i] {
				if sameKeystream(a, b) {
					return Fail, "two Encrypts used the same keystream: whoever knows one plaintext can read the other"
				}
			}
		}
		return OK, fmt.Sprintf("%d Encrypts show neither plaintext nor a repeated keystream", repeats)
	},
}

// sameKeystream reports whether the difference of two ciphertexts holds the
// difference of their plaintexts, which a stream cipher (GCM, CTR, ChaCha20)
// shows when a nonce repeats. By chance it happens once in 2^256.
func sameKeystream(a, b *sample) bool {
	ca, cb := a.sealed.GetCiphertext(), b.sealed.GetCiphertext()
	return bytes.Contains(xor(ca, cb), xor(a.plaintext, b.plaintext))
}

// xor cuts the longer input.
func xor(a, b []byte) []byte {
	out := make([]byte, min(len(a), len(b)))
	for i := range out {
		out[i] = a[i] ^ b[i]
	}
	return out
}

var encryptEmpty = check{
	name:   "encrypt-empty",
	needs:  needSample,
	remedy: "refuse an empty plaintext with InvalidArgument: nobody means to encrypt nothing",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		sealed, err := r.encrypt(ctx, nil)
		if err != nil {
			if outcome, why := judgeRefusal(err); outcome != OK {
				return outcome, why
			}
			return OK, "refused: " + status.Code(err).String()
		}
		plaintext, err := r.decrypt(ctx, sealed)
		switch {
		case err != nil:
			return Fail, "an empty plaintext is accepted and cannot be read back: " + describe(err)
		case len(plaintext) != 0:
			return Fail, "an empty plaintext is accepted and comes back as something else"
		}
		return Warn, "an empty plaintext is accepted"
	},
}

var encryptOversize = check{
	name:   "encrypt-oversize",
	needs:  needSample,
	remedy: "refuse a plaintext whose ciphertext would be over 1024 bytes with InvalidArgument, and cap the size of messages",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		var f findings
		for _, size := range oversizes {
			s, err := r.encryptNew(ctx, size)
			if err != nil {
				outcome, why := judgeOversize(err)
				f.addf(outcome, "%d bytes: %s", size, why)
				continue
			}
			// A plugin could keep the data itself and hand out a handle.
			if n := len(s.sealed.GetCiphertext()); n > maxCiphertext {
				f.failf("%d bytes are accepted and become a ciphertext of %d, which kube-apiserver throws away", size, n)
			}
		}
		return f.result(fmt.Sprintf("no plaintext of %d bytes to %d MiB becomes a ciphertext over the limit", oversizes[0], oversizes[len(oversizes)-1]>>20))
	},
}

// oversizes are sizes in bytes that no part of a message may have: just over
// the contract's limit, over a sensible cap of messages, over gRPC's default.
var oversizes = []int{maxCiphertext + 1, 128 << 10, 5 << 20}
