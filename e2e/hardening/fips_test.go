package hardening

import (
	"strings"
	"testing"
)

// TestFIPS: kekd does all its work in FIPS 140-3 mode, and also where whatever is not
// approved fails. The worker's environment is hsm.env, so that there the build alone
// decides (GOFIPS140).
func TestFIPS(t *testing.T) {
	for _, mode := range []string{"on", "only"} {
		t.Run(mode, func(t *testing.T) {
			c := asInAPod()
			c.Env = []string{"GODEBUG=fips140=" + mode}
			k := newKekd(t, c)
			journey(t, k)
			if !strings.Contains(k.Log(t), "FIPS 140-3 module") {
				t.Error("kekd does not say that it is in FIPS 140-3 mode")
			}
		})
	}
}
