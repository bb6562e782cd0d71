package harness

import "testing"

// StartControllerManager starts a kube-controller-manager with what storage version
// migrations need, for as long as the test takes. It waits for nothing.
func StartControllerManager(tb testing.TB, a *APIServer) {
	tb.Helper()
	newService(tb, "kube-controller-manager", kubeBinary(tb, "kube-controller-manager"), []string{
		"--kubeconfig=" + a.Kubeconfig(tb),
		// The migrator takes the objects from the garbage collector's cache.
		"--controllers=storage-version-migrator-controller,garbage-collector-controller",
		"--leader-elect=false",
		"--use-service-account-credentials=false",
		"--secure-port=0",
	}, nil).start(tb)
}
