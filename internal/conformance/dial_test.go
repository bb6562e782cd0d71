package conformance_test

import (
	"strings"
	"testing"

	"kekd/internal/conformance"
)

func TestDialRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, endpoint, want string
	}{
		{"nothing", "", "names no socket"},
		{"a URL of nothing", "unix:///", "names no socket"},
		{"an abstract socket without a name", "unix:///@", "names no socket"},
		{"a URL with two slashes", "unix://run/kekd.sock", "write three slashes"},
		{"another scheme", "tcp://127.0.0.1:80", `no scheme "tcp"`},
		{"a path that Linux cannot take", "/" + strings.Repeat("x", 107), "108 bytes and Linux takes 107"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			conn, err := conformance.Dial(tt.endpoint)
			if err == nil {
				_ = conn.Close()
				t.Fatalf("Dial(%q) succeeded", tt.endpoint)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Dial(%q): %v, want %q in it", tt.endpoint, err, tt.want)
			}
		})
	}
}

// Every spelling must reach the socket that it names: the error of the missing
// one tells which was dialled.
func TestDialSpellings(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, endpoint, dialled string
	}{
		{"a path", "/nonexistent/kms.sock", "dial unix /nonexistent/kms.sock:"},
		{"a relative path", "nonexistent/kms.sock", "dial unix nonexistent/kms.sock:"},
		{"a URL", "unix:///nonexistent/kms.sock", "dial unix /nonexistent/kms.sock:"},
		{"a path with what a URL would decode", "/nonexistent/50%25?x#y.sock", "dial unix /nonexistent/50%25?x#y.sock:"},
		{"an abstract socket", "@kms-conformance-nobody", "dial unix @kms-conformance-nobody:"},
		{"the URL of an abstract socket", "unix:///@kms-conformance-nobody", "dial unix @kms-conformance-nobody:"},
		{"the longest path", "/" + strings.Repeat("x", 106), "dial unix /xxx"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			conn, err := conformance.Dial(tt.endpoint)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			first := conformance.Run(t.Context(), conn, conformance.Options{}).Results[0]
			if first.Outcome != conformance.Fail || !strings.Contains(first.Detail, tt.dialled) {
				t.Errorf("%s: %s, want %q in it", first.Outcome, first.Detail, tt.dialled)
			}
		})
	}
}
