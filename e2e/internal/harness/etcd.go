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

	service *service
}

// StartEtcd starts an empty store and waits until it serves.
func StartEtcd(tb testing.TB) *Etcd {
	tb.Helper()
	addresses := freeAddresses(tb, 2)
	client, peer := "http://"+addresses[0], "http://"+addresses[1]
	e := &Etcd{Endpoint: client}
	e.service = newService(tb, "etcd", kubeBinary(tb, "etcd"), []string{
		"--name=e2e",
		"--data-dir=" + filepath.Join(shortDir(tb), "data"),
		"--listen-client-urls=" + client,
		"--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer,
		"--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=e2e=" + peer,
		"--log-level=warn",
		// The data lives as long as the test: no power cut can matter.
		"--unsafe-no-fsync",
	}, nil)
	e.service.start(tb)
	Eventually(tb, 30*time.Second, "etcd serves", func(ctx context.Context) error {
		if err := e.service.alive(); err != nil {
			return err
		}
		status, body, err := get(ctx, http.DefaultClient, client+"/health")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("/health of etcd: %d %s", status, body)
		}
		return err
	})
	return e
}
