package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"

	"kekd/hsm"
	"kekd/hsm/wire"
	"kekd/internal/admin/keychange"
	"kekd/internal/admin/lock"
	"kekd/internal/admin/wait"
	"kekd/internal/audit"
	"kekd/internal/config"
	"kekd/internal/kek"
	"kekd/internal/setup"
	"kekd/internal/state"
	"kekd/internal/version"
)

// adminChain is kekctl's chain in audit.dir.
const adminChain = "kekctl"

const (
	// trailWait is how long kekctl waits for another kekctl to end its entry.
	trailWait = 15 * time.Second
	// trailClose bounds the signature at the end of an entry.
	trailClose = 15 * time.Second
)

// adminTrail puts on record what an administrator does. Each change opens, signs and
// closes the chain by itself, so that a command that runs for long keeps no other one
// waiting.
type adminTrail struct {
	app   *app
	cfg   config.Config
	store *state.Dir
	token *hsm.Token // nil where none can be used: nothing is signed then
	log   *zap.Logger
}

// do is Do for a change that says which key it was about only afterwards, and needs
// no detail.
func (t *adminTrail) do(ctx context.Context, operation, keyID string, change func() (keyID string, err error)) error {
	return t.record(ctx, operation, keyID, "", func(context.Context) (string, string, error) {
		id, err := change()
		return id, "", err
	})
}

// Do implements keychange.Trail.
func (t *adminTrail) Do(ctx context.Context, operation, keyID, detail string, change func(context.Context) (string, error)) error {
	return t.record(ctx, operation, keyID, detail, func(ctx context.Context) (string, string, error) {
		detail, err := change(ctx)
		return "", detail, err
	})
}

// record does something that goes on record, before and after, and while no other
// kekctl of this machine changes anything.
func (t *adminTrail) record(ctx context.Context, operation, keyID, detail string, change func(context.Context) (keyID, detail string, err error)) error {
	release, err := lock.Take(ctx, t.cfg.StateDir, trailWait)
	switch {
	case err == nil:
		defer release()
	case errors.Is(err, lock.ErrHeld) || ctx.Err() != nil:
		return err
	default:
		// A full disk must not keep a key from being revoked. The token refuses a change
		// to a key that another kekctl has changed, all the same.
		t.app.note("kekctl: warning: another kekctl may change the token at the same time: %s", oneLine(err))
	}
	if t.cfg.Audit.Dir == "" {
		_, _, err := change(ctx)
		return err
	}
	event := audit.Event{
		Operation: operation, KeyID: keyID, Result: audit.Begun, Detail: t.detail(detail),
		Caller: audit.Caller{UID: uint32(os.Getuid()), PID: int32(os.Getpid())}, Called: true, //nolint:gosec // G115: as the kernel has them
	}
	l, err := t.begin(ctx, event)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		if t.cfg.Audit.OnFailure == config.AuditBlock {
			return fmt.Errorf("%w; nothing was done, since audit.onFailure is block", err)
		}
		t.app.note("kekctl: warning: this does not go on record: %s", oneLine(err))
		_, _, err = change(ctx)
		return err
	}
	start := time.Now()
	id, detail, err := change(ctx)
	if id != "" {
		event.KeyID = id
	}
	event.Time, event.Result, event.Latency, event.Detail = time.Time{}, resultOf(err), time.Since(start), t.detail(detail)
	t.end(l, event)
	return err
}

// resultOf spells how a change ended.
func resultOf(err error) string {
	if _, refused := errors.AsType[*keychange.Refused](err); refused {
		return kek.Class(kek.ErrRefused)
	}
	return hsm.ResultOf(err)
}

// end puts the last event on record and signs the chain. It does not use the command's
// context: what was done is recorded even if the administrator interrupted kekctl.
func (t *adminTrail) end(l *audit.Log, event audit.Event) {
	ctx, cancel := context.WithTimeout(context.Background(), trailClose)
	defer cancel()
	written := l.RecordWait(ctx, event)
	closed := l.Close(ctx)
	switch {
	case written != nil:
		t.app.note("kekctl: warning: how this ended does not go on record: %s", oneLine(written))
	case errors.Is(closed, audit.ErrNoKey) && t.token != nil:
		t.app.note("kekctl: warning: the audit trail is not signed: the token has no audit key; kekctl audit key create makes one")
	case closed != nil && !errors.Is(closed, audit.ErrNoKey):
		t.app.note("kekctl: warning: the audit trail ends without a signature: %s", oneLine(closed))
	}
}

// begin opens the chain and puts a first event on record.
func (t *adminTrail) begin(ctx context.Context, event audit.Event) (*audit.Log, error) {
	cfg := setup.Audit(t.cfg.Audit, adminChain, "kekctl "+version.Read().String(), t.token, t.store, t.log, nil)
	cfg.Aggregate = false
	// Not beside what the command does: SoftHSM fails to make a key while its objects are
	// looked at.
	cfg.SignAtClose = true
	// What the chain declares, and verify goes by: what a command that is killed leaves
	// unsigned the next one signs, which may be hours later.
	cfg.CheckpointEvery, cfg.CheckpointRecords = time.Hour, 1<<30
	if t.token == nil {
		cfg.Signer = nil
	}
	deadline := time.Now().Add(trailWait)
	for {
		l, err := audit.Open(cfg)
		if err == nil {
			l.Start()
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), trailClose)
			defer cancel()
			if err = l.RecordWait(ctx, event); err != nil {
				// Nothing to sign where nothing could be written.
				ended, end := context.WithCancel(ctx)
				end()
				if closed := l.Close(ended); !errors.Is(closed, audit.ErrNotWritten) { // which is err once more
					err = errors.Join(err, closed)
				}
				return nil, err
			}
			return l, nil
		}
		if !errors.Is(err, audit.ErrLocked) || time.Now().After(deadline) {
			return nil, err
		}
		if err := wait.Pause(ctx, 50*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// detail says which command it is, who logged in on this session, which the kernel
// keeps through su and sudo, and what more there is to say.
func (t *adminTrail) detail(more string) string {
	text := t.app.command
	login, err := os.ReadFile("/proc/self/loginuid")
	if uid := strings.TrimSpace(string(login)); err == nil && uid != "4294967295" { // which is nobody
		text += ", login uid " + uid
	}
	if more != "" {
		text += "; " + more
	}
	return text
}

// adminToken is the token with every change on record.
type adminToken struct {
	*hsm.Token

	trail *adminTrail
}

// keyID spells a key_id of which no more is known.
func (t adminToken) keyID(id kek.ID) string { return t.trail.cfg.KeyRing.Label + "/" + id.String() }

// Create is hsm.Token's.
func (t adminToken) Create(ctx context.Context, id kek.ID) (key kek.Info, m kek.Mechanism, err error) {
	err = t.trail.do(ctx, audit.Create, t.keyID(id), func() (string, error) {
		if key, m, err = t.Token.Create(ctx, id); err != nil {
			return "", err
		}
		return key.KeyID(), nil
	})
	return key, m, err
}

// SetUse is hsm.Token's.
func (t adminToken) SetUse(ctx context.Context, seen kek.Info, use hsm.Use) (key kek.Info, err error) {
	operation := audit.Destroy
	switch use {
	case hsm.Enabled():
		operation = audit.Enable
		if seen.State == kek.Scheduled {
			operation = audit.Restore
		}
	case hsm.Disabled():
		operation = audit.Disable
	}
	err = t.trail.do(ctx, operation, t.keyID(seen.ID), func() (string, error) {
		if key, err = t.Token.SetUse(ctx, seen, use); err != nil {
			return "", err
		}
		return key.KeyID(), nil
	})
	return key, err
}

// Destroy is hsm.Token's.
func (t adminToken) Destroy(ctx context.Context, seen kek.Info) error {
	operation := audit.Purge
	if seen.State == kek.Pending {
		operation = audit.Cancel
	}
	return t.trail.do(ctx, operation, t.keyID(seen.ID), func() (string, error) { return "", t.Token.Destroy(ctx, seen) })
}

// Import is hsm.Token's.
func (t adminToken) Import(ctx context.Context, req wire.ImportRequest) (key kek.Info, m kek.Mechanism, err error) {
	err = t.trail.do(ctx, audit.Import, t.keyID(kek.ID(req.ID)), func() (string, error) {
		if key, m, err = t.Token.Import(ctx, req); err != nil {
			return "", err
		}
		return key.KeyID(), nil
	})
	return key, m, err
}

// BeginImport is hsm.Token's.
func (t adminToken) BeginImport(ctx context.Context, bits int) (key wire.WrappingKey, err error) {
	err = t.trail.do(ctx, audit.ImportBegin, "", func() (string, error) {
		key, err = t.Token.BeginImport(ctx, bits)
		return kek.ID(key.ID).String(), err
	})
	return key, err
}

// AbortImport is hsm.Token's.
func (t adminToken) AbortImport(ctx context.Context, id kek.ID) error {
	return t.trail.do(ctx, audit.ImportAbort, id.String(), func() (string, error) { return "", t.Token.AbortImport(ctx, id) })
}

// CreateAuditKey is hsm.Token's.
func (t adminToken) CreateAuditKey(ctx context.Context, algorithm wire.AuditAlgorithm) (key wire.AuditKey, err error) {
	err = t.trail.do(ctx, audit.CreateAudit, "", func() (string, error) {
		if key, err = t.Token.CreateAuditKey(ctx, algorithm); err != nil {
			return "", err
		}
		return setup.AuditKeyName(key), nil
	})
	return key, err
}
