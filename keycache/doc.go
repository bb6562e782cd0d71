// Package keycache seals and opens the small secrets that kube-apiserver sends
// (its own 32-byte seeds), and calls the HSM as rarely as it can.
//
// # The seed scheme
//
// A seed is 32 random bytes. The HSM wraps it under the KEK once. Seal derives
// a one-time key from the seed and a random salt and encrypts with it; the
// wrapped seed and the salt travel in the result, so any node, now or in ten
// years, needs nothing but the KEK to open it. Open takes the seed from the
// cache, or has the HSM unwrap it once.
//
// In direct mode no seed is ever kept: each request is one HSM operation. Both
// modes open what either has sealed.
//
// # Envelope, version 1
//
//	 1    version, 0x01
//	 1    scheme: 1 seeded, 2 direct
//	 1    mechanism of the HSM's wrap (kek.Mechanism)
//	 1+n  CKA_ID of the KEK, length first, n = 1..64
//	 3    check value of the KEK; zeros where the token cannot compute one
//	 2+n  wrapped seed, length first (big endian), n = 48..512   (seeded only)
//	32    salt                                                   (seeded only)
//	      seeded: nonce(12) ‖ ciphertext ‖ tag(16), AES-256-GCM
//	      direct: what the HSM returned
//
// The whole is at most 1024 bytes, the limit of the KMS v2 contract. Nothing is
// optional and nothing may follow.
//
//	one-time key = HKDF-SHA256-Expand(seed, "kekd/v1/dek" ‖ salt, 32 bytes)
//
// # What is bound to what
//
// Every byte before the nonce (seeded) or before the HSM's blob (direct),
// followed by the key_id, is the additional authenticated data (AAD) of the
// inner encryption. The AAD of a seed's wrap is
//
//	"kekd/v1/seed" ‖ 0x00 ‖ ring label ‖ 0x00 ‖ CKA_ID
//
// A label holds no zero byte, so the parts cannot be shifted; and an envelope
// starts with 0x01, so neither kind of AAD can stand for the other. Hence a seed
// does not unwrap in another ring or under another key, and a flipped bit in an
// envelope or in its key_id is an error.
//
// The key_id that comes with an envelope must be the one that its header spells
// (ring label, CKA_ID, check value as sealed), whatever the token can compute
// today. That, and whether the ring lets the key decrypt, is settled before the
// HSM is asked.
//
// # Limits
//
// Each sealed value has a key of its own: 2^64 values under one seed would repeat
// one with a probability of 2^-129. Config.MaxUses and Config.MaxAge
// are far below that: they bound what one stolen seed opens. In direct mode with
// an AES-GCM mechanism every request draws a nonce under the KEK itself, so uses
// are counted and end at MaxDirectUses (NIST SP 800-38D, section 8.3).
//
// # Where seeds live
//
// Seeds that are kept live in a secret.Arena and are wiped when they leave it. A
// seed on its way from or to the HSM is a secret.Bytes on the Go heap and is
// wiped at once, as are one-time keys. What cannot be wiped is the key schedule
// inside a cipher.Block, which the garbage collector frees: it belongs to a
// one-time key and so opens one value only.
//
// # Standing before the HSM
//
// kube-apiserver 1.37 answers a failing LIST by about a hundred Decrypts a
// second, and asks for the same seed ten times at once when it starts cold.
// Hence: one flight per wrapped seed however many callers wait for it; a bound
// on the flights; a short memory for wraps that the HSM refused; and a breaker
// that fails fast for half a second after the HSM did not answer. A flight has a
// deadline of its own, and a caller who gives up harms nobody but himself.
package keycache
