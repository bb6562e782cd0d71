package harness

import (
	"net"
	"testing"
)

// freeAddresses returns n distinct loopback addresses that nobody listens on.
// Another process could take one before it is used; the kernel hands its ports
// out in turn, so that is rare, and the log then says so.
func freeAddresses(tb testing.TB, n int) []string {
	tb.Helper()
	addresses := make([]string, n)
	for i := range addresses {
		l, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatalf("find a free port: %v", err)
		}
		defer func() { _ = l.Close() }() // all at the end: that keeps them distinct
		addresses[i] = l.Addr().String()
	}
	return addresses
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
