package conformance

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	kmsv2 "k8s.io/kms/apis/v2"
)

// What kube-apiserver enforces on every answer and on every stored object, in
// bytes. It throws an answer away that is over any of these.
const (
	maxCiphertext  = 1024
	maxKeyID       = 1024
	maxAnnotations = 32 * 1024
)

// seedSize is what kube-apiserver asks to encrypt: a 32-byte seed, always.
const seedSize = 32

// checkKeyID returns what is wrong with a key_id, or "".
func checkKeyID(id string) string {
	switch {
	case id == "":
		return "the key_id is empty"
	case len(id) > maxKeyID:
		return fmt.Sprintf("the key_id has %d bytes, at most %d are allowed", len(id), maxKeyID)
	}
	return ""
}

// checkSealed returns what is wrong with the sizes and names in an Encrypt
// answer, or "".
func checkSealed(resp *kmsv2.EncryptResponse) string {
	if problem := checkKeyID(resp.GetKeyId()); problem != "" {
		return problem
	}
	switch n := len(resp.GetCiphertext()); {
	case n == 0:
		return "the ciphertext is empty"
	case n > maxCiphertext:
		return fmt.Sprintf("the ciphertext has %d bytes, at most %d are allowed", n, maxCiphertext)
	}
	total := 0
	for _, key := range slices.Sorted(maps.Keys(resp.GetAnnotations())) {
		if !isFQDN(key) {
			return fmt.Sprintf("the annotation key %s is not a fully qualified domain name", quote(key))
		}
		total += len(key) + len(resp.GetAnnotations()[key])
	}
	if total > maxAnnotations {
		return fmt.Sprintf("the annotations have %d bytes, keys included, at most %d are allowed", total, maxAnnotations)
	}
	return ""
}

// isFQDN reports whether kube-apiserver takes s as the key of an annotation: a
// lower-case RFC 1123 name of two labels or more, at most 253 bytes with labels
// of 1 to 63, and perhaps one closing dot.
func isFQDN(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if len(s) > 253 {
		return false
	}
	labels := strings.Split(s, ".")
	return len(labels) >= 2 && !slices.ContainsFunc(labels, func(l string) bool { return !isLabel(l) })
}

func isLabel(l string) bool {
	if len(l) < 1 || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
		return false
	}
	return strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
