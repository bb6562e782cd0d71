package harness

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// Ports are taken from below those that Linux gives to outgoing connections, one of
// which could have a port between its choice and its use.
const firstPort, ports = 20000, 12000

// freeAddresses returns n distinct loopback addresses that nobody listens on, and that
// no other test of any process is given until this one ends: a UDP socket that nobody
// uses holds the port meanwhile.
func freeAddresses(tb testing.TB, n int) []string {
	tb.Helper()
	var addresses []string
	for tries := 0; len(addresses) < n; tries++ {
		if tries == 100*n {
			tb.Fatalf("%d of %d free ports found from %d on", len(addresses), n, firstPort)
		}
		address := net.JoinHostPort(loopback, strconv.Itoa(firstPort+rand.IntN(ports))) //nolint:gosec // G404: any port will do
		held, err := new(net.ListenConfig).ListenPacket(tb.Context(), "udp", address)
		if err != nil {
			continue // somebody's
		}
		l, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", address)
		if err != nil {
			_ = held.Close()
			continue
		}
		_ = l.Close()
		tb.Cleanup(func() { _ = held.Close() })
		addresses = append(addresses, address)
	}
	return addresses
}

// FreeAddress is freeAddresses for a program of the test's own.
func FreeAddress(tb testing.TB) string {
	tb.Helper()
	return freeAddresses(tb, 1)[0]
}

// port returns the port of an address that freeAddresses made.
func port(tb testing.TB, address string) string {
	tb.Helper()
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		tb.Fatalf("split the address %q: %v", address, err)
	}
	return p
}

// loopback is the host of all addresses.
const loopback = "127.0.0.1"
