package conformance

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	kmsv2 "k8s.io/kms/apis/v2"
)

var decryptRepeatable = check{
	name:   "decrypt-repeatable",
	needs:  needSample,
	remedy: "keep no state per ciphertext: kube-apiserver decrypts in any order, again and again, for as long as the object lives",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		const count, passes = 8, 2
		samples := make([]*sample, 0, count)
		for range count {
			s, err := r.encryptNew(ctx, seedSize)
			if err != nil {
				return Fail, "Encrypt: " + describe(err)
			}
			samples = append(samples, s)
		}
		for pass := range passes {
			for i, s := range slices.Backward(samples) {
				plaintext, err := r.decrypt(ctx, s.sealed)
				if err != nil {
					return Fail, fmt.Sprintf("ciphertext %d, time %d: %s", i+1, pass+1, describe(err))
				}
				if !bytes.Equal(plaintext, s.plaintext) {
					return Fail, fmt.Sprintf("ciphertext %d, time %d: Decrypt returned something else than was encrypted", i+1, pass+1)
				}
			}
		}
		return OK, fmt.Sprintf("%d ciphertexts decrypt %d times, last one first", count, passes)
	},
}

var decryptWrongKeyID = check{
	name:   "decrypt-wrong-key-id",
	needs:  needSample,
	remedy: "bind the key_id to the ciphertext and refuse any other with InvalidArgument, NotFound or FailedPrecondition: etcd's writer controls it, and operators trust it to tell which KEK is still in use",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		id := r.sample.sealed.GetKeyId()
		_, last := utf8.DecodeLastRuneInString(id)
		rows := []struct{ name, id string }{
			{"a foreign key_id", "kms-conformance.invalid/no-such-key"},
			{"the key_id with a letter more", id + "0"},
			{"the key_id with a letter less", id[:len(id)-last]},
			{"the key_id in other letters", otherCase(id)},
			{"an empty key_id", ""},
			{"an oversize key_id", strings.Repeat("k", maxKeyID+1)},
		}
		var f findings
		tried := 0
		for _, row := range rows {
			if row.id == id {
				continue
			}
			tried++
			r.mustRefuse(ctx, &f, row.name, &kmsv2.EncryptResponse{
				Ciphertext: r.sample.sealed.GetCiphertext(), KeyId: row.id, Annotations: r.sample.sealed.GetAnnotations(),
			})
		}
		return f.result(fmt.Sprintf("%d wrong key_ids are refused", tried))
	},
}

// otherCase swaps the case of ASCII letters, which a lenient comparison misses.
func otherCase(s string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			return c ^ 0x20
		}
		return c
	}, s)
}

var decryptTampered = check{
	name:   "decrypt-tampered",
	needs:  needSample,
	remedy: "authenticate every byte of the ciphertext, headers too, and refuse a damaged one with InvalidArgument",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		ciphertext := r.sample.sealed.GetCiphertext()
		positions := spread(len(ciphertext), r.opts.Positions)
		var f findings
		for _, i := range positions {
			flipped := bytes.Clone(ciphertext)
			flipped[i] ^= 1 << (i % 8)
			r.mustRefuse(ctx, &f, fmt.Sprintf("bit %d of byte %d flipped", i%8, i), damaged(r.sample.sealed, flipped))
		}
		return f.result(fmt.Sprintf("a flipped bit in each of %d bytes is refused", len(positions)))
	},
}

var decryptWrongLength = check{
	name:   "decrypt-wrong-length",
	needs:  needSample,
	remedy: "check the length of each part of the ciphertext and refuse what is missing or left over with InvalidArgument",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		ciphertext := r.sample.sealed.GetCiphertext()
		// The whole is not among them: spread picks from 0 to len-1.
		lengths := spread(len(ciphertext), max(r.opts.Positions/4, 2))
		var f findings
		for _, n := range lengths {
			if n == 0 {
				continue // decrypt-empty
			}
			r.mustRefuse(ctx, &f, fmt.Sprintf("cut to %d of %d bytes", n, len(ciphertext)), damaged(r.sample.sealed, ciphertext[:n]))
		}
		r.mustRefuse(ctx, &f, "a byte appended", damaged(r.sample.sealed, append(bytes.Clone(ciphertext), 0)))
		r.mustRefuse(ctx, &f, "a byte put in front", damaged(r.sample.sealed, append([]byte{0}, ciphertext...)))
		r.mustRefuse(ctx, &f, "doubled", damaged(r.sample.sealed, append(bytes.Clone(ciphertext), ciphertext...)))
		return f.result("truncated and extended ciphertexts are refused")
	},
}

var decryptForeign = check{
	name:   "decrypt-foreign",
	needs:  needSample,
	remedy: "refuse with InvalidArgument what the plugin did not make; never hand it back as it is",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		n := len(r.sample.sealed.GetCiphertext())
		rows := []struct {
			name       string
			ciphertext []byte
		}{
			{"one zero byte", []byte{0}},
			{"random bytes of the same length", randomBytes(n)},
			{"zeros of the same length", make([]byte, n)},
			{"0xff bytes of the same length", bytes.Repeat([]byte{0xff}, n)},
			{"random bytes of the greatest length", randomBytes(maxCiphertext)},
			{"plain text", []byte("not a ciphertext, however long one looks at it")},
			{"an envelope of another plugin", []byte("vault:v1:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")},
		}
		var f findings
		for _, row := range rows {
			r.mustRefuse(ctx, &f, row.name, damaged(r.sample.sealed, row.ciphertext))
		}
		return f.result(fmt.Sprintf("%d foreign ciphertexts are refused", len(rows)))
	},
}

var decryptAnnotations = check{
	name:   "decrypt-annotations",
	needs:  needSample,
	remedy: "bind the annotations to the ciphertext as additional authenticated data, or make none: etcd's writer controls them",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		sealed := r.sample.sealed
		if len(sealed.GetAnnotations()) == 0 {
			return OK, "the plugin makes no annotations"
		}
		var f findings
		for _, key := range slices.Sorted(maps.Keys(sealed.GetAnnotations())) {
			changed, removed := maps.Clone(sealed.GetAnnotations()), maps.Clone(sealed.GetAnnotations())
			changed[key] = append(bytes.Clone(changed[key]), 0)
			delete(removed, key)
			for _, row := range []struct {
				name        string
				annotations map[string][]byte
			}{{"changed", changed}, {"removed", removed}} {
				// Unlike the ciphertext, an annotation may be a mere note. So what
				// is ignored is a warning, and what changes the plaintext a failure.
				plaintext, err := r.decrypt(ctx, &kmsv2.EncryptResponse{
					Ciphertext: sealed.GetCiphertext(), KeyId: sealed.GetKeyId(), Annotations: row.annotations,
				})
				switch {
				case err != nil:
					outcome, why := judgeRefusal(err)
					f.addf(outcome, "%s %s: %s", quote(key), row.name, why)
				case !bytes.Equal(plaintext, r.sample.plaintext):
					f.failf("%s %s: accepted, with another plaintext", quote(key), row.name)
				default:
					f.warnf("%s %s: ignored", quote(key), row.name)
				}
			}
		}
		return f.result("changed and removed annotations are refused")
	},
}

var decryptEmpty = check{
	name:   "decrypt-empty",
	needs:  needSample,
	remedy: "refuse an empty ciphertext with InvalidArgument",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		var f findings
		r.mustRefuse(ctx, &f, "empty ciphertext", damaged(r.sample.sealed, nil))
		return f.result("refused")
	},
}

var decryptOversize = check{
	name:   "decrypt-oversize",
	needs:  needSample,
	remedy: "refuse a ciphertext over 1024 bytes with InvalidArgument before anything reads it, and cap the size of messages",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		var f findings
		for _, size := range oversizes {
			_, err := r.decrypt(ctx, damaged(r.sample.sealed, randomBytes(size)))
			if err == nil {
				f.failf("%d bytes: accepted", size)
				continue
			}
			outcome, why := judgeOversize(err)
			f.addf(outcome, "%d bytes: %s", size, why)
		}
		return f.result(fmt.Sprintf("ciphertexts of %d bytes to %d MiB are refused", oversizes[0], oversizes[len(oversizes)-1]>>20))
	},
}

// mustRefuse asks for the decryption of something that was never made and notes
// whatever is not a clean refusal.
func (r *runner) mustRefuse(ctx context.Context, f *findings, what string, sealed *kmsv2.EncryptResponse) {
	plaintext, err := r.decrypt(ctx, sealed)
	switch {
	case err != nil:
		outcome, why := judgeRefusal(err)
		f.addf(outcome, "%s: %s", what, why)
	case bytes.Equal(plaintext, r.sample.plaintext):
		f.failf("%s: accepted", what)
	default:
		f.failf("%s: accepted, with another plaintext", what)
	}
}
