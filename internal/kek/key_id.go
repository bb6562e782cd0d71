package kek

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// ParseKeyID takes apart what KeyID spelled, but for the check value. The label
// may have slashes in it.
func ParseKeyID(s string) (ring string, id ID, err error) {
	rest, check, ok := cutLast(s)
	ring, hex, ok2 := cutLast(rest)
	if ok && ok2 && ring != "" && check != "" {
		id, err = ParseID(hex)
	}
	if id == "" || err != nil {
		return "", "", fmt.Errorf("key_id %q is not LABEL/CKA_ID/CHECK", s)
	}
	return ring, id, nil
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

// KeyIDHash is the hash of a key_id as the metrics of kube-apiserver spell it
// (apiserver_envelope_encryption_key_id_hash_total and others), and ours, so that
// they can be joined.
func KeyIDHash(keyID string) string {
	sum := sha256.Sum256([]byte(keyID))
	return "sha256:" + hex.EncodeToString(sum[:])
}
