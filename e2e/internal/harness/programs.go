package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// program returns the absolute path of the executable that the environment
// variable names, or of fallback below the repository's root when it is unset.
func program(tb testing.TB, variable, fallback, remedy string) string {
	tb.Helper()
	path := os.Getenv(variable)
	if path == "" {
		path = filepath.Join(repository(tb), fallback)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		tb.Fatalf("find the program of %s: %v", variable, err)
	}
	if _, err := exec.LookPath(path); err != nil {
		tb.Fatalf("%v: %s, or set %s", err, remedy, variable)
	}
	return path
}

// repository returns the root of the checkout, found from this source file: the
// tests run in their own package's directory, wherever that is.
func repository(tb testing.TB) string {
	tb.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		tb.Fatal("this binary was built without the path of its source (-trimpath); set KEKD_BIN and KEKCTL_BIN")
	}
	return filepath.Join(filepath.Dir(file), "..", "..", "..")
}

// KekdBinary returns the path of kekd.
func KekdBinary(tb testing.TB) string {
	tb.Helper()
	return program(tb, "KEKD_BIN", "bin/kekd", "run `make build`")
}

// clockBinary returns the path of a kekd whose clock the environment can set.
func clockBinary(tb testing.TB) string {
	tb.Helper()
	return program(tb, "KEKD_CLOCK_BIN", "bin/e2e/kekd-clock", "run `make e2e`")
}

// KekctlBinary returns the path of kekctl.
func KekctlBinary(tb testing.TB) string {
	tb.Helper()
	return program(tb, "KEKCTL_BIN", "bin/kekctl", "run `make build`")
}

// faultModule returns the path of the fault-injecting PKCS#11 module.
func faultModule(tb testing.TB) string {
	tb.Helper()
	return program(tb, "KEKD_FAULT_MODULE", "bin/kekd-faults.so", "run `make bin/kekd-faults.so`")
}

// kubeBinary returns the path of a program that e2e/kube/build.sh builds.
func kubeBinary(tb testing.TB, name string) string {
	tb.Helper()
	dir := os.Getenv("KEKD_KUBE_BIN")
	if dir == "" {
		tb.Fatal("KEKD_KUBE_BIN is not set: run `make e2e`, or set it to the directory that e2e/kube/build.sh prints")
	}
	path, err := exec.LookPath(filepath.Join(dir, name))
	if err != nil {
		tb.Fatalf("%v: KEKD_KUBE_BIN must be the directory that e2e/kube/build.sh prints", err)
	}
	return path
}

// KubectlBinary returns the path of kubectl.
func KubectlBinary(tb testing.TB) string {
	tb.Helper()
	return kubeBinary(tb, "kubectl")
}

// EtcdctlBinary returns the path of etcdctl.
func EtcdctlBinary(tb testing.TB) string {
	tb.Helper()
	return kubeBinary(tb, "etcdctl")
}

// softHSMModule returns the path of SoftHSM's PKCS#11 module.
func softHSMModule(tb testing.TB) string {
	tb.Helper()
	candidates := []string{
		"/usr/lib/softhsm/libsofthsm2.so",
		"/usr/lib/" + debianTriplet() + "/softhsm/libsofthsm2.so",
		"/usr/lib64/softhsm/libsofthsm2.so",
		"/usr/lib64/pkcs11/libsofthsm2.so",
	}
	if path := os.Getenv("KEKD_SOFTHSM_MODULE"); path != "" {
		candidates = []string{path}
	}
	for _, path := range candidates {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	tb.Fatalf("SoftHSM is at none of %q: install softhsm2, or set KEKD_SOFTHSM_MODULE", candidates)
	return ""
}

// debianTriplet is the directory name that Debian uses for this architecture.
func debianTriplet() string {
	if runtime.GOARCH == "arm64" {
		return "aarch64-linux-gnu"
	}
	return "x86_64-linux-gnu"
}
