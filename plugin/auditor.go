package plugin

import (
	"context"
	"time"

	"google.golang.org/grpc/peer"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/kek"
)

// AuditRecord is an Encrypt or Decrypt that ended. It holds no data.
type AuditRecord struct {
	Method string // Encrypt or Decrypt
	// UID is what the client calls the request: any text, of at most 64 bytes or so.
	UID  string
	Peer PeerInfo
	// KeyID is the one of the request or, of an Encrypt, the response; empty when an
	// Encrypt failed.
	KeyID string
	// Result is "ok" or the class of the error, as in the log.
	Result  string
	Elapsed time.Duration
	Source  kek.Source
	// Verify: the client says that it is kekctl verify.
	Verify bool
}

// Auditor puts on record what callers do. Its methods are called concurrently.
type Auditor interface {
	// Request is called before a request is answered, on its way. When it returns an
	// error the client gets Unavailable, and nothing of the answer.
	Request(ctx context.Context, r AuditRecord) error
	// CallerRefused: a connection was closed because of the caller's uid. It must not
	// block.
	CallerRefused(p PeerInfo)
}

// auditError is an answer that is withheld, for it could not be put on record.
type auditError struct{ err error }

func (e *auditError) Error() string { return "the answer is withheld: " + e.err.Error() }
func (e *auditError) Unwrap() error { return e.err }

// record has the Auditor put a request on record, and returns the request's own
// error or, where it is to be withheld, why.
func (g *guard) record(ctx *kek.Request, method string, req, resp any, err error, elapsed time.Duration) error {
	r := AuditRecord{Method: method, UID: ctx.UID, KeyID: keyIDOf(req, resp), Result: "ok", Elapsed: elapsed, Source: ctx.Source, Verify: ctx.Verify}
	if err != nil {
		r.Result = classify(err).name
	}
	if p, ok := peer.FromContext(ctx.Context); ok {
		r.Peer, _ = p.AuthInfo.(PeerInfo)
	}
	if refused := g.auditor.Request(ctx.Context, r); refused != nil && err == nil {
		if d, ok := resp.(*kmsapi.DecryptResponse); ok {
			clear(d.Plaintext) // which nobody gets
		}
		return &auditError{refused}
	}
	return err
}
