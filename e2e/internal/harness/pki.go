package harness

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// certificates are the files of a cluster's own authority, an hour long valid.
type certificates struct {
	caFile                     string
	serverCert, serverKey      string
	adminCert, adminKey        string
	serviceAccountKey          string
	serviceAccountVerifyingKey string
}

// newCertificates makes an authority, a server certificate for loopback, a
// client certificate of the group system:masters and a service account key.
func newCertificates(tb testing.TB) certificates {
	tb.Helper()
	dir := shortDir(tb)
	file := func(name string) string { return filepath.Join(dir, name) }
	c := certificates{
		caFile:     file("ca.crt"),
		serverCert: file("server.crt"), serverKey: file("server.key"),
		adminCert: file("admin.crt"), adminKey: file("admin.key"),
		serviceAccountKey:          file("sa.key"),
		serviceAccountVerifyingKey: file("sa.pub"),
	}
	ca := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "kekd e2e"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	caKey := issue(tb, ca, nil, nil, c.caFile, "")
	issue(tb, &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		IPAddresses: []net.IP{net.ParseIP(loopback)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, caKey, c.serverCert, c.serverKey)
	issue(tb, &x509.Certificate{
		Subject:     pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca, caKey, c.adminCert, c.adminKey)

	key := newKey(tb)
	writeKey(tb, c.serviceAccountKey, key)
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		tb.Fatalf("encode the service account key: %v", err)
	}
	writePEM(tb, c.serviceAccountVerifyingKey, "PUBLIC KEY", public)
	return c
}

// issue signs a certificate, by itself when there is no parent, and writes it
// and its key. An empty keyFile keeps the key in memory.
func issue(tb testing.TB, cert, parent *x509.Certificate, parentKey *ecdsa.PrivateKey, certFile, keyFile string) *ecdsa.PrivateKey {
	tb.Helper()
	key := newKey(tb)
	if parent == nil {
		parent, parentKey = cert, key
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		tb.Fatalf("draw a serial number: %v", err)
	}
	cert.SerialNumber = serial
	cert.NotBefore = time.Now().Add(-time.Minute)
	cert.NotAfter = time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, key.Public(), parentKey)
	if err != nil {
		tb.Fatalf("sign a certificate: %v", err)
	}
	writePEM(tb, certFile, "CERTIFICATE", der)
	if keyFile != "" {
		writeKey(tb, keyFile, key)
	}
	return key
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatalf("make a key: %v", err)
	}
	return key
}

func writeKey(tb testing.TB, path string, key *ecdsa.PrivateKey) {
	tb.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatalf("encode a key: %v", err)
	}
	writePEM(tb, path, "PRIVATE KEY", der)
}

func writePEM(tb testing.TB, path, kind string, der []byte) {
	tb.Helper()
	writeFile(tb, path, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
}
