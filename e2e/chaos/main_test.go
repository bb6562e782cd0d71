// Package chaos breaks a control plane of three nodes on one token while two
// administrators work on its keys: clocks that are wrong, kekctl stopped and killed, a
// token that goes away, full disks, wiped state. Everything is real: kekd, kekctl, the
// PKCS#11 module, etcd and kube-apiserver.
//
// One rule is behind every check: nothing that a kekd or a kube-apiserver has
// acknowledged is lost, unless an administrator said --force or revoke, and what kekctl
// reports is what the token holds.
//
// TestDirected plays the cases that once lost keys, TestRandom draws histories from a
// seed, and TestWitnesses fills the table in docs/reports/witnesses.md.
package chaos

import (
	"flag"
	"math/rand/v2"
	"os"
	"testing"
	"time"
)

// flags are the command line's, set before the first test.
var flags struct {
	length time.Duration
	seed   uint64
	update bool
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == tokenArgument {
		os.Exit(tokenMain(os.Args[2]))
	}
	flag.DurationVar(&flags.length, "length", time.Minute, "how long TestRandom breaks things before it repairs them")
	flag.Uint64Var(&flags.seed, "seed", rand.Uint64(), "what TestRandom draws from; each run prints its own")
	flag.BoolVar(&flags.update, "update", os.Getenv("KEKD_UPDATE_DOCS") == "1", "write docs/reports/witnesses.md")
	os.Exit(m.Run())
}
