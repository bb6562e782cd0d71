// Package harness starts what the end-to-end tests talk to: a SoftHSM token, a
// KEK on it, kekd, etcd, kube-apiserver and kube-controller-manager, all built
// binaries, all on loopback and in temporary directories; and kekctl. It knows
// nothing of kekd's code.
//
// Every process belongs to one test: it is ended when the test ends, and by the
// kernel when the test binary dies first. A program that is missing fails the
// test; nothing is skipped. The end of every log is shown when its test failed.
//
// The types are for one goroutine, the test's own, unless they say otherwise.
//
// Environment:
//
//	KEKD_BIN, KEKCTL_BIN  the binaries under test, default bin/ of the repository
//	KEKD_CLOCK_BIN        kekd built with -tags e2eclock, default bin/e2e/kekd-clock
//	KEKD_KUBE_BIN         the directory with etcd and Kubernetes (e2e/kube/build.sh prints it)
//	KEKD_SOFTHSM_MODULE   libsofthsm2.so, default where Debian and Fedora put it
//	KEKD_E2E_LOGS         a directory to keep all logs in, default temporary
package harness
