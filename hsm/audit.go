package hsm

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// AuditKeys lists the keys that sign the audit trail, the oldest first. They carry
// the label RING (audit) and are no part of the ring.
func (t *Token) AuditKeys(ctx context.Context) ([]wire.AuditKey, error) {
	var reply wire.AuditKeysReply
	if _, err := t.do(ctx, wire.OpAuditKeys, retry, struct{}{}, nil, &reply); err != nil {
		return nil, fmt.Errorf("list the audit keys: %w", err)
	}
	return reply.Keys, nil
}

// CreateAuditKey makes a key to sign the audit trail with, which becomes the one in
// use. An empty algorithm takes the first that the token has. It is never tried
// twice: when the answer is lost, AuditKeys shows whether there is one.
func (t *Token) CreateAuditKey(ctx context.Context, algorithm wire.AuditAlgorithm) (wire.AuditKey, error) {
	id, err := kek.NewID(time.Now(), rand.Reader)
	if err != nil {
		return wire.AuditKey{}, err
	}
	var key wire.AuditKey
	if _, err := t.do(ctx, wire.OpAuditCreate, noRetry, wire.AuditCreateRequest{ID: []byte(id), Algorithm: algorithm}, nil, &key); err != nil {
		return wire.AuditKey{}, fmt.Errorf("create an audit key: %w", err)
	}
	return key, nil
}

// AuditSign signs a message by the audit key of this CKA_ID, the newest one if it is
// nil. Without such a key the error wraps kek.ErrUnknownKey.
func (t *Token) AuditSign(ctx context.Context, id, message []byte) (wire.AuditSignReply, error) {
	var reply wire.AuditSignReply
	if _, err := t.do(ctx, wire.OpAuditSign, retry, wire.AuditSignRequest{ID: id, Message: message}, nil, &reply); err != nil {
		return wire.AuditSignReply{}, fmt.Errorf("sign by the audit key: %w", err)
	}
	return reply, nil
}

// ResultOf is an error of a Token as the metrics and the audit trail spell it: "ok" or
// its class.
func ResultOf(err error) string { return resultOf(err) }
