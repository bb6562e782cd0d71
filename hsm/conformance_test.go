package hsm_test

import (
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"kekd/hsm/hsmtest"
	"kekd/hsm/p11"
	"kekd/hsm/worker"
)

// TestMain makes this binary its own worker.
func TestMain(m *testing.M) {
	if worker.Is(os.Args) {
		os.Exit(worker.Main(func(path string) (p11.Cryptoki, error) {
			if strings.HasSuffix(path, hsmtest.FakeSuffix) {
				return hsmtest.OpenFake(path)
			}
			return worker.OpenModule(path)
		}))
	}
	goleak.VerifyTestMain(m)
}

func TestConformanceFake(t *testing.T) {
	t.Parallel()
	hsmtest.Conformance(t, func(t *testing.T) *hsmtest.Fixture { return hsmtest.NewFake(t, nil) })
}

func TestConformanceFakeLikeSoftHSM(t *testing.T) {
	t.Parallel()
	hsmtest.Conformance(t, func(t *testing.T) *hsmtest.Fixture {
		return hsmtest.NewFake(t, func(token *hsmtest.FakeToken) { token.AmbiguousDecrypt = true })
	})
}

func TestConformanceSoftHSM(t *testing.T) {
	t.Parallel()
	hsmtest.Conformance(t, hsmtest.NewSoftHSM)
}

func TestConformanceNSS(t *testing.T) {
	t.Parallel()
	hsmtest.Conformance(t, hsmtest.NewNSS)
}

func TestConformanceOpencryptoki(t *testing.T) {
	t.Parallel()
	hsmtest.Conformance(t, func(t *testing.T) *hsmtest.Fixture { return hsmtest.NewOpencryptoki(t).Fixture })
}
