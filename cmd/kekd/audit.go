package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"kekd/hsm"
	"kekd/internal/audit"
	"kekd/internal/config"
	"kekd/internal/health"
	"kekd/internal/kek"
	"kekd/internal/secret"
	"kekd/internal/setup"
	"kekd/internal/state"
	"kekd/internal/version"
	"kekd/plugin"
)

// auditChain is kekd's chain in audit.dir.
const auditChain = "kekd"

// configMemory is under which name the state directory keeps what the configuration
// was.
const configMemory = "audit-config"

// trail puts on record what the parts of kekd do. Without audit.dir it does nothing.
// It is safe for concurrent use.
type trail struct {
	log   *audit.Log // nil for none
	block bool

	mu sync.Mutex
	// keyIDs are the key_ids of the ring's keys. Guarded by mu.
	keyIDs map[kek.ID]string
	// withdrawn: nothing is published, which is on record. Guarded by mu.
	withdrawn bool
	// refusals are those of the minute since refusedSince, and unsaid how many of them
	// have no record yet. Guarded by mu.
	refusals, unsaid uint64
	refusedSince     time.Time
}

// maxRefusals is how many callers that are turned away get a record of their own in
// a minute. More are counted together: nobody shall fill the disk, and push out other
// records, by connecting.
const maxRefusals = 100

// openTrail opens the trail where one is configured. Nothing is written or signed
// before start.
func openTrail(cfg config.Config, token *hsm.Token, store *state.Dir, log *zap.Logger, observer audit.Observer) (*trail, error) {
	t := &trail{block: cfg.Audit.OnFailure == config.AuditBlock}
	if cfg.Audit.Dir == "" {
		return t, nil
	}
	l, err := audit.Open(setup.Audit(cfg.Audit, auditChain, "kekd "+version.Read().String(), token, store, log, observer))
	if err != nil {
		return nil, err
	}
	t.log = l
	return t, nil
}

// start begins to write, and puts the configuration on record if it is not that of
// the last run.
func (t *trail) start(cfg config.Config, store *state.Dir, log *zap.Logger) {
	if t.log == nil {
		return
	}
	t.log.Start()
	if err := t.configured(cfg, store); err != nil {
		// It is on record again at the next start.
		log.Warn("the configuration's digest is not remembered", zap.Error(err))
	}
}

// configured puts a changed configuration on record, as its SHA-256.
func (t *trail) configured(cfg config.Config, store *state.Dir) error {
	sum := sha256.Sum256([]byte(cfg.String()))
	now := struct {
		SHA256 string `json:"sha256"`
	}{hex.EncodeToString(sum[:])}
	before := now
	before.SHA256 = ""
	_, err := store.Load(configMemory, &before)
	if err == nil && before == now {
		return nil
	}
	detail := "sha256 " + now.SHA256
	if before.SHA256 != "" {
		detail += ", before " + before.SHA256
	}
	t.log.Record(audit.Event{Operation: audit.Configure, Result: audit.OK, Detail: detail})
	return errors.Join(err, store.Save(configMemory, now))
}

// close ends the trail; the token must still be there to sign.
func (t *trail) close(ctx context.Context) error {
	if t.log == nil {
		return nil
	}
	t.mu.Lock()
	t.tellRefusals()
	t.mu.Unlock()
	return t.log.Close(ctx)
}

func (t *trail) record(e audit.Event) {
	if t.log != nil {
		t.log.Record(e)
	}
}

// auditor is the trail as package plugin needs it; nil for none.
func (t *trail) auditor() plugin.Auditor {
	if t.log == nil {
		return nil
	}
	return t
}

// Request implements plugin.Auditor.
func (t *trail) Request(ctx context.Context, r plugin.AuditRecord) error {
	e := audit.Event{
		Operation: audit.Decrypt, UID: r.UID, Caller: audit.Caller{UID: r.Peer.UID, PID: r.Peer.PID}, Called: true,
		KeyID: r.KeyID, Result: r.Result, Latency: r.Elapsed, Source: r.Source.String(),
	}
	if r.Method == "Encrypt" {
		e.Operation = audit.Encrypt
	}
	if r.Verify {
		e.Detail = "verify"
	}
	if t.block {
		return t.log.RecordWait(ctx, e)
	}
	t.log.Record(e)
	return nil
}

// CallerRefused implements plugin.Auditor.
func (t *trail) CallerRefused(p plugin.PeerInfo) {
	t.mu.Lock()
	if now := time.Now(); now.Sub(t.refusedSince) >= time.Minute {
		t.tellRefusals()
		t.refusals, t.refusedSince = 0, now
	}
	t.refusals++
	tooMany := t.refusals > maxRefusals
	if tooMany {
		t.unsaid++
	}
	t.mu.Unlock()
	if !tooMany {
		t.record(audit.Event{
			Operation: audit.CallerRefused, Caller: audit.Caller{UID: p.UID, PID: p.PID}, Called: true, Result: "refused",
		})
	}
}

// tellRefusals puts on record how many refusals have no record. The caller holds mu.
func (t *trail) tellRefusals() {
	if t.unsaid > 0 {
		t.record(audit.Event{Operation: audit.CallerRefused, Result: "refused", Count: t.unsaid, Detail: "more of them, of any callers"})
		t.unsaid = 0
	}
}

// login puts a login on record.
func (t *trail) login(result string, elapsed time.Duration) {
	t.record(audit.Event{Operation: audit.Login, Result: result, Latency: elapsed})
}

// keyID spells the key_id of a key on the ring, and the CKA_ID of any other.
func (t *trail) keyID(id kek.ID) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if keyID, ok := t.keyIDs[id]; ok {
		return keyID
	}
	return id.String()
}

// sawRing puts on record which keys have come, gone or changed their state.
func (t *trail) sawRing(r *kek.Ring, changes []keyChange) {
	if t.log == nil {
		return
	}
	ids := make(map[kek.ID]string, len(r.Keys))
	for _, k := range r.Keys {
		ids[k.ID] = k.KeyID()
	}
	t.mu.Lock()
	t.keyIDs = ids
	t.mu.Unlock()
	for _, c := range changes {
		detail := "seen as " + spell(c.to)
		if c.from != 0 {
			detail = spell(c.from) + " to " + spell(c.to)
		}
		t.record(audit.Event{Operation: audit.State, KeyID: c.keyID, Result: audit.OK, Detail: detail})
	}
}

// auditedHealth puts on record what is published and withdrawn.
type auditedHealth struct {
	*health.Monitor

	trail *trail
}

// Published implements rotation.Health.
func (h auditedHealth) Published(keyID string) {
	h.Monitor.Published(keyID)
	h.trail.mu.Lock()
	h.trail.withdrawn = false
	h.trail.mu.Unlock()
	h.trail.record(audit.Event{Operation: audit.Publish, KeyID: keyID, Result: audit.OK})
}

// Revoked implements rotation.Health.
func (h auditedHealth) Revoked(err error) {
	h.Monitor.Revoked(err)
	h.trail.mu.Lock()
	known := h.trail.withdrawn
	h.trail.withdrawn = true
	h.trail.mu.Unlock()
	if !known {
		h.trail.record(audit.Event{Operation: audit.Withdraw, Result: audit.OK, Detail: firstLine(err)})
	}
}

func firstLine(err error) string {
	text, _, _ := strings.Cut(fmt.Sprint(err), "\n")
	return text
}

// auditedToken puts on record what the HSM does with the KEKs.
type auditedToken struct {
	*hsm.Token

	trail *trail
}

// note puts an operation on record that began at start.
func (t auditedToken) note(operation string, id kek.ID, start time.Time, err error) {
	if t.trail.log == nil {
		return
	}
	t.trail.record(audit.Event{
		Operation: operation, KeyID: t.trail.keyID(id), Result: hsm.ResultOf(err), Latency: time.Since(start), Source: audit.FromHSM,
	})
}

// Wrap implements keycache.Wrapper.
func (t auditedToken) Wrap(ctx context.Context, id kek.ID, m kek.Mechanism, plaintext secret.Bytes, aad []byte) ([]byte, error) {
	start := time.Now()
	blob, err := t.Token.Wrap(ctx, id, m, plaintext, aad)
	t.note(audit.Wrap, id, start, err)
	return blob, err
}

// Unwrap implements keycache.Wrapper.
func (t auditedToken) Unwrap(ctx context.Context, id kek.ID, m kek.Mechanism, blob, aad []byte) (secret.Bytes, error) {
	start := time.Now()
	plain, err := t.Token.Unwrap(ctx, id, m, blob, aad)
	t.note(audit.Unwrap, id, start, err)
	return plain, err
}

// Prove implements rotation.Token.
func (t auditedToken) Prove(ctx context.Context, id kek.ID) (kek.Mechanism, []string, error) {
	start := time.Now()
	m, passedOver, err := t.Token.Prove(ctx, id)
	t.note(audit.Prove, id, start, err)
	return m, passedOver, err
}

// Try implements rotation.Token.
func (t auditedToken) Try(ctx context.Context, id kek.ID) (kek.Mechanism, error) {
	start := time.Now()
	m, err := t.Token.Try(ctx, id)
	t.note(audit.Prove, id, start, err)
	return m, err
}

// Probe proves a key by a round trip.
func (t auditedToken) Probe(ctx context.Context, id kek.ID, m kek.Mechanism) error {
	start := time.Now()
	err := t.Token.Probe(ctx, id, m)
	t.note(audit.Probe, id, start, err)
	return err
}
