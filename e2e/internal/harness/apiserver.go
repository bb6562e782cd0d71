package harness

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	// apiServerServesWithin bounds a start on a small and busy machine.
	apiServerServesWithin = 90 * time.Second
	// apiServerStopsWithin bounds the graceful stop, which waits for watches.
	apiServerStopsWithin = 90 * time.Second
)

// APIServer is a kube-apiserver with its own certificates. Its address and its
// certificates stay over restarts, so clients do too.
type APIServer struct {
	// URL is https on loopback.
	URL string

	etcd    *Etcd
	address string // host and port
	certs   certificates
	service *service
	client  *http.Client
}

// NewAPIServer configures a server on a store and an EncryptionConfiguration,
// and does not start it.
func NewAPIServer(tb testing.TB, etcd *Etcd, encryptionConfig string) *APIServer {
	tb.Helper()
	return newAPIServer(tb, etcd, newCertificates(tb), encryptionConfig)
}

// Sibling configures another server of the same cluster: on the same store, and
// with the same certificates and service account keys. It does not start it.
func (a *APIServer) Sibling(tb testing.TB, encryptionConfig string) *APIServer {
	tb.Helper()
	return newAPIServer(tb, a.etcd, a.certs, encryptionConfig)
}

func newAPIServer(tb testing.TB, etcd *Etcd, certs certificates, encryptionConfig string) *APIServer {
	tb.Helper()
	address := freeAddresses(tb, 1)[0]
	a := &APIServer{URL: "https://" + address, etcd: etcd, address: address, certs: certs}
	a.service = newService(tb, "kube-apiserver", kubeBinary(tb, "kube-apiserver"), nil, nil)
	a.Configure(tb, encryptionConfig)
	a.client = a.newClient(tb)
	return a
}

// Configure gives the server another EncryptionConfiguration and further flags, which
// take effect with the next start. An empty path is a server without encryption.
func (a *APIServer) Configure(tb testing.TB, encryptionConfig string, flags ...string) {
	tb.Helper()
	if encryptionConfig != "" {
		flags = append([]string{"--encryption-provider-config=" + encryptionConfig}, flags...)
	}
	a.service.args = append([]string{
		"--bind-address=" + loopback,
		"--secure-port=" + port(tb, a.address),
		"--etcd-servers=" + a.etcd.Endpoint,
		"--client-ca-file=" + a.certs.caFile,
		"--tls-cert-file=" + a.certs.serverCert,
		"--tls-private-key-file=" + a.certs.serverKey,
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-signing-key-file=" + a.certs.serviceAccountKey,
		"--service-account-key-file=" + a.certs.serviceAccountVerifyingKey,
		"--service-cluster-ip-range=10.0.0.0/24",
		"--authorization-mode=RBAC",
		// Nobody reaches the cluster by its service: a loopback address is no
		// valid endpoint and would be refused.
		"--advertise-address=" + loopback,
		"--endpoint-reconciler-type=none",
		// Tests look at errors in the log of KMS; the rest is noise.
		"--v=1",
	}, flags...)
}

// Start starts the server and waits until it answers at all; nothing is said of
// its health.
func (a *APIServer) Start(tb testing.TB) time.Duration {
	tb.Helper()
	a.service.start(tb)
	return Eventually(tb, apiServerServesWithin, "kube-apiserver answers", func(ctx context.Context) error {
		if err := a.service.alive(); err != nil {
			return err
		}
		_, _, err := get(ctx, a.client, a.URL+"/livez/ping")
		return err
	})
}

// StartReady starts the server and waits until it is ready.
func (a *APIServer) StartReady(tb testing.TB) time.Duration {
	tb.Helper()
	took := a.Start(tb)
	return took + a.WaitStatus(tb, "/readyz", http.StatusOK, apiServerServesWithin)
}

// Stop ends the server with SIGTERM and waits.
func (a *APIServer) Stop(tb testing.TB) time.Duration {
	tb.Helper()
	a.client.CloseIdleConnections()
	return a.service.stop(tb, apiServerStopsWithin)
}

// Kill ends the server with SIGKILL.
func (a *APIServer) Kill(tb testing.TB) {
	tb.Helper()
	a.service.kill(tb)
}

// Running tells whether the server was started and has not ended.
func (a *APIServer) Running() bool { return a.service.running() }

// Log is all that the server has printed so far, over all its starts.
func (a *APIServer) Log(tb testing.TB) string { return readFile(tb, a.service.log) }

// PID is the running server's process id.
func (a *APIServer) PID() int { return a.service.run.pid }

// Get asks for a path, as system:masters.
func (a *APIServer) Get(ctx context.Context, path string) (status int, body string, err error) {
	return get(ctx, a.client, a.URL+path)
}

// RESTConfig is for clients of the group system:masters. It has no rate limit: the
// tests' own concurrency is one.
func (a *APIServer) RESTConfig() *rest.Config {
	return &rest.Config{
		Host:            a.URL,
		TLSClientConfig: rest.TLSClientConfig{CAFile: a.certs.caFile, CertFile: a.certs.adminCert, KeyFile: a.certs.adminKey},
		QPS:             -1,
	}
}

// Kubeconfig writes a kubeconfig file for a client of the group system:masters and
// returns its path.
func (a *APIServer) Kubeconfig(tb testing.TB) string {
	tb.Helper()
	const name = "e2e"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: a.URL, CertificateAuthority: a.certs.caFile}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificate: a.certs.adminCert, ClientKey: a.certs.adminKey}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	path := filepath.Join(shortDir(tb), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		tb.Fatalf("write the kubeconfig: %v", err)
	}
	return path
}

// WaitStatus waits until a path answers with the status and returns how long
// that took.
func (a *APIServer) WaitStatus(tb testing.TB, path string, want int, within time.Duration) time.Duration {
	tb.Helper()
	what := fmt.Sprintf("kube-apiserver answers %s with %d", path, want)
	return Eventually(tb, within, what, func(ctx context.Context) error {
		if err := a.service.alive(); err != nil {
			return err
		}
		status, body, err := a.Get(ctx, path)
		if err == nil && status != want {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
}

// Metrics reads the server's metrics.
func (a *APIServer) Metrics(tb testing.TB) Metrics {
	tb.Helper()
	m, err := scrape(tb.Context(), a.client, a.URL+"/metrics")
	if err != nil {
		tb.Fatalf("read the metrics of kube-apiserver: %v", err)
	}
	return m
}

// newClient is the client of the harness itself, which no limit slows down.
func (a *APIServer) newClient(tb testing.TB) *http.Client {
	tb.Helper()
	config, err := rest.TLSConfigFor(a.RESTConfig())
	if err != nil {
		tb.Fatalf("load the client's certificates: %v", err)
	}
	transport := &http.Transport{TLSClientConfig: config}
	tb.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}
