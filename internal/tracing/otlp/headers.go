package otlp

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// maxHeaders is the largest file of headers, in bytes.
const maxHeaders = 16 << 10

// headersFile is tracing.headersFile: what every batch carries besides, such as the
// token that a collector wants. It is a credentials.PerRPCCredentials, so it is read
// anew for each batch: a token that is renewed in the file needs no restart.
type headersFile struct{ path string }

// GetRequestMetadata implements credentials.PerRPCCredentials. No error repeats what
// the file holds.
func (h headersFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	headers, err := h.read()
	if err != nil {
		return nil, fmt.Errorf("tracing.headersFile: %w", err)
	}
	return headers, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials. The configuration
// refuses the file where the way to the collector is neither TLS nor the loopback.
func (headersFile) RequireTransportSecurity() bool { return false }

func (h headersFile) read() (map[string]string, error) {
	f, err := os.Open(h.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file; name one with lines of the form NAME: VALUE", h.path)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s has mode %#o, so its group or others can use it; run chmod 0600 %s", h.path, info.Mode().Perm(), h.path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxHeaders+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxHeaders {
		return nil, fmt.Errorf("%s is longer than %d bytes; name a file with headers and nothing else", h.path, maxHeaders)
	}
	headers := map[string]string{}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		if !ok || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return nil, fmt.Errorf("%s, line %d is no header; write NAME: VALUE, as in authorization: Bearer TOKEN", h.path, number)
		}
		if strings.HasPrefix(name, "grpc-") || strings.HasSuffix(name, "-bin") {
			return nil, fmt.Errorf("%s, line %d: names that begin with grpc- or end in -bin are gRPC's own; remove the line", h.path, number)
		}
		headers[name] = value
	}
	return headers, nil
}
