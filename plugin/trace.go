package plugin

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"kekd/internal/kek"
	"kekd/internal/tracing"
)

// incoming reads the headers of a request one by one, without a copy of them all. It
// is a propagation.TextMapCarrier.
type incoming struct{ ctx context.Context }

// Get implements propagation.TextMapCarrier.
func (in incoming) Get(key string) string {
	if v := metadata.ValueFromIncomingContext(in.ctx, key); len(v) > 0 {
		return v[0]
	}
	return ""
}

// Set implements propagation.TextMapCarrier. Nothing is sent on.
func (incoming) Set(string, string) {}

// Keys implements propagation.TextMapCarrier.
func (incoming) Keys() []string { return nil }

// finish ends the span of a request that was served or, as f has it, failed.
func finish(span tracing.Span, r *kek.Request, req, resp any, f failure) {
	if !span.Recorded() {
		return
	}
	span.Set(tracing.UID.String(r.UID), tracing.RPCCode.String(codeName(f.code)))
	if id := keyIDOf(req, resp); id != "" {
		span.Set(tracing.KeyID.String(id))
	}
	if r.Source != 0 {
		span.Set(tracing.Source.String(r.Source.String()))
	}
	span.EndAs(f.name, serverFault(f.code))
}

// serverFault reports whether a code counts as an error of the server, as
// OpenTelemetry's conventions for RPC have it: what a client has brought about by
// itself does not.
func serverFault(c codes.Code) bool {
	switch c {
	case codes.Unknown, codes.DeadlineExceeded, codes.Unimplemented, codes.Internal, codes.Unavailable, codes.DataLoss:
		return true
	}
	return false
}

// codeName spells a code as gRPC's own documents do.
func codeName(c codes.Code) string {
	names := [...]string{
		"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
		"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
		"INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
	}
	if int(c) < len(names) {
		return names[c]
	}
	return names[codes.Unknown]
}
