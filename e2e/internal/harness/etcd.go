package harness

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"
)

// Etcd is a store of one member.
type Etcd struct {
	// Endpoint is the URL for clients.
	Endpoint string
	// CAFile, CertFile and KeyFile are for clients; empty without TLS.
	CAFile, CertFile, KeyFile string

	service *service
	health  string // URL
}

// StartEtcd starts an empty store, with further flags, and waits until it serves.
func StartEtcd(tb testing.TB, args ...string) *Etcd {
	tb.Helper()
	return startEtcd(tb, "http://", args...)
}

// StartSecureEtcd is StartEtcd with TLS and client certificates, as kubeadm sets
// etcd up.
func StartSecureEtcd(tb testing.TB) *Etcd {
	tb.Helper()
	certs := newCertificates(tb)
	e := startEtcd(tb, "https://",
		"--cert-file="+certs.serverCert,
		"--key-file="+certs.serverKey,
		"--trusted-ca-file="+certs.caFile,
		"--client-cert-auth")
	e.CAFile, e.CertFile, e.KeyFile = certs.caFile, certs.adminCert, certs.adminKey
	return e
}

func startEtcd(tb testing.TB, scheme string, args ...string) *Etcd {
	tb.Helper()
	addresses := freeAddresses(tb, 3)
	client, peer, health := scheme+addresses[0], "http://"+addresses[1], "http://"+addresses[2]
	e := &Etcd{Endpoint: client, health: health + "/health"}
	e.service = newService(tb, "etcd", kubeBinary(tb, "etcd"), append(args,
		"--name=e2e",
		"--data-dir="+filepath.Join(shortDir(tb), "data"),
		"--listen-client-urls="+client,
		"--advertise-client-urls="+client,
		"--listen-metrics-urls="+health,
		"--listen-peer-urls="+peer,
		"--initial-advertise-peer-urls="+peer,
		"--initial-cluster=e2e="+peer,
		"--log-level=warn",
		// The data lives as long as the test: no power cut can matter.
		"--unsafe-no-fsync",
	), nil)
	e.Start(tb)
	return e
}

// Start starts a store that was killed, with the data it had, and waits until it
// serves.
func (e *Etcd) Start(tb testing.TB) {
	tb.Helper()
	e.service.start(tb)
	// With a gigabyte of data it takes a minute where others keep the machine busy.
	Eventually(tb, 2*time.Minute, "etcd serves", func(ctx context.Context) error {
		if err := e.service.alive(); err != nil {
			return err
		}
		status, body, err := get(ctx, http.DefaultClient, e.health)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("/health of etcd: %d %s", status, body)
		}
		return err
	})
}

// Kill ends it with SIGKILL. Its data stays.
func (e *Etcd) Kill(tb testing.TB) {
	tb.Helper()
	e.service.kill(tb)
}

// PID is its process id.
func (e *Etcd) PID() int { return e.service.run.pid }
