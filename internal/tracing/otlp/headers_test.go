package otlp

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"kekd/internal/config"
	"kekd/internal/tracing"
)

func headers(t *testing.T, mode os.FileMode, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "headers")
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestHeadersFile(t *testing.T) {
	got, err := headersFile{headers(t, 0o600, "# ours\n\nAuthorization: Bearer a:b=c \r\nx-tenant:kekd\n")}.read()
	if err != nil || len(got) != 2 || got["authorization"] != "Bearer a:b=c" || got["x-tenant"] != "kekd" {
		t.Errorf("read %q, %v", got, err)
	}
	dir := t.TempDir()
	for _, c := range []struct{ name, path, want string }{
		{"missing", filepath.Join(dir, "none"), "no such file"},
		{"directory", dir, "is not a regular file"},
		{"open to the group", headers(t, 0o640, "a: hunter2"), "chmod 0600"},
		{"no name", headers(t, 0o600, "a: b\nhunter2\n"), "line 2 is no header"},
		{"two lines in one", headers(t, 0o600, "a: hunter2\x00b\n"), "line 1 is no header"},
		{"gRPC's own", headers(t, 0o600, "grpc-timeout: hunter2\n"), "line 1: names that begin with grpc-"},
		{"large", headers(t, 0o600, strings.Repeat("hunter2: x\n", 2000)), "longer than 16384 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := headersFile{c.path}.GetRequestMetadata(t.Context())
			if err == nil || !strings.HasPrefix(err.Error(), "tracing.headersFile: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error %v repeats what the file holds", err)
			}
		})
	}
	if _, err := New(config.Tracing{Endpoint: "http://127.0.0.1:4317", HeadersFile: filepath.Join(dir, "none")}, "v1", nil, nil); err == nil {
		t.Error("kekd starts with a file of headers that is not there")
	}
}

// A collector that wants a token gets the one that is in the file now, and none of the
// environment's.
func TestToken(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer environment,x-environment=1")
	r := &receiver{}
	var valid atomic.Value
	refuse := grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer "+valid.Load().(string) || len(md.Get("x-environment")) != 0 {
			return nil, status.Errorf(codes.Unauthenticated, "metadata %v", md)
		}
		return handler(ctx, req)
	})
	address, _ := r.serve(t, "127.0.0.1:0", refuse)
	path := headers(t, 0o600, "authorization: Bearer first\n")
	valid.Store("first")
	cfg := plain(address)
	cfg.HeadersFile = path
	rig := newRig(t, cfg)
	rig.end(1)
	eventually(t, "the first span comes", func() bool { return len(r.names()) == 1 })
	if err := os.WriteFile(path, []byte("authorization: Bearer second\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	valid.Store("second")
	_, s := rig.Tracer().Root(context.Background(), context.Background(), tracing.RingLook)
	s.End(tracing.ResultOK)
	eventually(t, "a span comes with the new token", func() bool { return len(r.names()) == 2 })
	if n := rig.tally.get(Failed); n != 0 {
		t.Errorf("%d spans were refused", n)
	}
}
