package setup

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"kekd/hsm"
	"kekd/hsm/wire"
	"kekd/internal/audit"
	"kekd/internal/config"
	"kekd/internal/kek"
)

// Audit returns what audit.Open needs for the chain of a program. It must not be
// called while audit.dir is empty. The observer may be nil.
func Audit(cfg config.Audit, chain, program string, token *hsm.Token, memory audit.Memory, log *zap.Logger, observer audit.Observer) audit.Config {
	c := audit.Config{
		Dir: cfg.Dir, Chain: chain, Program: program,
		MaxFileSize: int64(cfg.MaxFileSize), MaxFiles: cfg.MaxFiles, MaxAge: cfg.MaxAge,
		CheckpointEvery: cfg.CheckpointEvery, CheckpointRecords: cfg.CheckpointRecords,
		Aggregate: cfg.WarmDecrypts == config.WarmAggregate,
		Signer:    AuditKeys{token}, Memory: memory, Observer: observer, Logger: log.Named("audit"), Clock: time.Now,
	}
	switch cfg.Forward {
	case config.ForwardSyslog:
		c.Forward = audit.NewSyslog(audit.SyslogSocket, chain+"-audit")
	case config.ForwardJournald:
		c.Forward = audit.NewJournald(audit.JournaldSocket, chain+"-audit")
	}
	return c
}

// AuditKeys are the audit keys on a token.
type AuditKeys struct{ Token *hsm.Token }

// Sign implements audit.Signer.
func (k AuditKeys) Sign(ctx context.Context, message []byte) (audit.Signature, error) {
	reply, err := k.Token.AuditSign(ctx, nil, message)
	if errors.Is(err, kek.ErrUnknownKey) {
		err = fmt.Errorf("%w: %w", audit.ErrNoKey, err)
	}
	if err != nil {
		return audit.Signature{}, err
	}
	return audit.Signature{Key: AuditKeyName(reply.Key), Algorithm: string(reply.Key.Algorithm), Value: reply.Signature}, nil
}

// AuditKeyName is what an audit.Signature calls a key.
func AuditKeyName(k wire.AuditKey) string {
	if k.Algorithm == wire.ECDSAP256 {
		return audit.KeyName(k.PublicKey)
	}
	return kek.ID(k.ID).String()
}

// Check implements audit.Keys. An HMAC is made again and compared.
func (k AuditKeys) Check(ctx context.Context, message []byte, s audit.Signature) error {
	if s.Algorithm != audit.HMAC {
		return fmt.Errorf("unknown algorithm %q", s.Algorithm)
	}
	id, err := kek.ParseID(s.Key)
	if err != nil {
		return err
	}
	reply, err := k.Token.AuditSign(ctx, []byte(id), message)
	switch {
	case err != nil:
		return err
	case reply.Key.Algorithm != wire.HMACSHA256 || subtle.ConstantTimeCompare(reply.Signature, s.Value) != 1:
		return errors.New("the HMAC is wrong")
	}
	return nil
}
