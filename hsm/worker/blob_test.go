package worker

import (
	"errors"
	"testing"

	"kekd/internal/kek"
)

// What can't be a blob never reaches a module: short inputs crash some.
func TestPlausible(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		m    kek.Mechanism
		n    int
		want bool
	}{
		{kek.GCMCallerIV, 0, false}, {kek.GCMCallerIV, 12 + 16, false}, {kek.GCMCallerIV, 12 + 16 + 1, true},
		{kek.GCMWrittenIV, 12 + 16, false}, {kek.GCMWrittenIV, 12 + 16 + 1, true},
		{kek.GCMAppendedIV, 16 + 16, false}, {kek.GCMAppendedIV, 16 + 16 + 1, true},
		{kek.KWP, 0, false}, {kek.KWP, 8 + 32, false}, {kek.KWP, 8 + 32 + 8, true}, {kek.KWP, 8 + 32 + 9, false},
		{kek.CBCHMAC, 0, false}, {kek.CBCHMAC, 16 + 32, false}, {kek.CBCHMAC, 16 + 16 + 32, true}, {kek.CBCHMAC, 16 + 17 + 32, false},
	} {
		if got := plausible(c.m, c.n); got != c.want {
			t.Errorf("%s of %d bytes: plausible %t, want %t", c.m, c.n, got, c.want)
		}
	}
}

func TestCheckRequest(t *testing.T) {
	t.Parallel()
	aad := []byte("a")
	for name, c := range map[string]struct {
		m    kek.Mechanism
		aad  []byte
		size int
		want error
	}{
		"fine": {kek.KWP, aad, 1, nil}, "no mechanism": {0, aad, 1, kek.ErrCorrupt}, "unknown one": {6, aad, 1, kek.ErrCorrupt},
		"no AAD": {kek.KWP, nil, 1, kek.ErrCorrupt}, "nothing": {kek.KWP, aad, 0, kek.ErrCorrupt},
	} {
		if err := checkRequest(c.m, c.aad, c.size); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// The MAC's input tells apart what stands in the AAD and what in the ciphertext.
func TestMACInput(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, c := range [][2]string{{"", "ab"}, {"a", "b"}, {"ab", ""}} {
		in := string(macInput([]byte(c[0]), []byte(c[1])))
		if seen[in] {
			t.Errorf("%q and another pair have one MAC", c)
		}
		seen[in] = true
	}
}

func TestOfRing(t *testing.T) {
	t.Parallel()
	for label, want := range map[string]bool{
		"k8s": true, "k8s/disabled": true, "k8s/": true, "k8s-other": false, "k8": false, "": false, "K8S": false, "other/k8s": false,
	} {
		if ofRing(label, "k8s") != want {
			t.Errorf("label %q of ring k8s: %t, want %t", label, !want, want)
		}
	}
}
