package hsm

import (
	"context"
	"crypto/rand"
	"fmt"

	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// ImportState tells what the token has and can for the import of keys.
func (t *Token) ImportState(ctx context.Context) (wire.ImportState, error) {
	var state wire.ImportState
	if _, err := t.do(ctx, wire.OpImportState, retry, struct{}{}, nil, &state); err != nil {
		return wire.ImportState{}, fmt.Errorf("look for wrapping keys: %w", err)
	}
	return state, nil
}

// BeginImport makes a one-time RSA key pair of so many bits, whose private half
// can unwrap and nothing else. It is never tried twice: when the answer is lost,
// ImportState shows whether there is one.
func (t *Token) BeginImport(ctx context.Context, bits int) (wire.WrappingKey, error) {
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return wire.WrappingKey{}, err
	}
	var key wire.WrappingKey
	if _, err := t.do(ctx, wire.OpImportBegin, noRetry, wire.ImportBeginRequest{ID: id, Bits: bits}, nil, &key); err != nil {
		return wire.WrappingKey{}, fmt.Errorf("make a wrapping key: %w", err)
	}
	return key, nil
}

// Import unwraps a KEK of 32 bytes onto the token, checks and proves it. The
// mechanism of the request is the configured one. It is never tried twice. When it
// fails it leaves no key, or the error is a *LeftoverError.
func (t *Token) Import(ctx context.Context, req wire.ImportRequest) (kek.Info, kek.Mechanism, error) {
	req.Mechanism = t.cfg.Mechanism
	reply, err := t.add(ctx, wire.OpImport, kek.ID(req.ID), req)
	if err != nil {
		return kek.Info{}, 0, fmt.Errorf("import key %s: %w", kek.ID(req.ID), err)
	}
	return describeKey(t.cfg.Ring, reply.Key), reply.Proof.Mechanism, nil
}

// AbortImport removes a one-time key pair, or a key whose import was cut off.
func (t *Token) AbortImport(ctx context.Context, id kek.ID) error {
	if _, err := t.do(ctx, wire.OpImportAbort, noRetry, wire.ImportAbortRequest{ID: []byte(id)}, nil, nil); err != nil {
		return fmt.Errorf("remove wrapping key %s: %w", id, err)
	}
	return nil
}

// Evidence is what the token tells of a key.
type Evidence struct {
	// Info is as Token.Keys has it.
	Info kek.Info
	wire.Evidence
}

// Evidence tells of every key of the ring what the token tells. It changes nothing
// on the token.
func (t *Token) Evidence(ctx context.Context) ([]Evidence, error) {
	var reply wire.EvidenceReply
	if _, err := t.do(ctx, wire.OpEvidence, retry, struct{}{}, nil, &reply); err != nil {
		return nil, fmt.Errorf("read the attributes of the key ring: %w", err)
	}
	keys := make([]Evidence, 0, len(reply.Keys))
	for _, e := range reply.Keys {
		keys = append(keys, Evidence{describeKey(t.cfg.Ring, e.Key), e})
	}
	return keys, nil
}
