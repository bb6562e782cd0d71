package kek

import "testing"

func TestParseKeyID(t *testing.T) {
	tests := []struct {
		name, keyID string
		ring        string
		id          ID
		ok          bool
	}{
		{"a key_id", KeyID("k8s-kek", "\x01\x02", CheckValue{1, 2, 3}), "k8s-kek", "\x01\x02", true},
		{"without a check value", KeyID("k8s-kek", "\x01", CheckValue{}), "k8s-kek", "\x01", true},
		{"a label with slashes", "a/b/c/01/000000", "a/b/c", "\x01", true},
		{"nothing", "", "", "", false},
		{"no label", "/01/000000", "", "", false},
		{"no check value", "k8s-kek/01/", "", "", false},
		{"two parts", "01/000000", "", "", false},
		{"no CKA_ID", "k8s-kek//000000", "", "", false},
		{"an id of another plugin", "projects/p/locations/l/keyRings/r/cryptoKeys/k", "", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ring, id, err := ParseKeyID(tt.keyID)
			if ring != tt.ring || id != tt.id || (err == nil) != tt.ok {
				t.Errorf("ParseKeyID(%q) = %q, %s, %v, want %q, %s", tt.keyID, ring, id, err, tt.ring, tt.id)
			}
		})
	}
}

// The spelling of kube-apiserver's key_id_hash labels.
func TestKeyIDHash(t *testing.T) {
	const want = "sha256:9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0"
	if got := KeyIDHash("aaa"); got != want {
		t.Errorf("KeyIDHash = %s, want %s", got, want)
	}
}
