package kek

import (
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
