package worker

import (
	"context"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"kekd/hsm/p11"
)

// maxUnknown are the values of ulMaxSessionCount that say nothing:
// CK_EFFECTIVELY_INFINITE and CK_UNAVAILABLE_INFORMATION.
func maxUnknown(n uint) bool { return n == 0 || n == ^uint(0) }

// poolSize is how many sessions the pool may have: the wish, unless the token
// names a limit, of which one session is taken by the login.
func poolSize(wish int, limit uint) int {
	if !maxUnknown(limit) && limit < uint(wish)+1 {
		return max(int(limit)-1, 1)
	}
	return wish
}

// regrowAfter is the least time between a refusal for want of sessions and the
// next try to have one more: a token's limit is often shared with others.
const regrowAfter = 30 * time.Second

// session is a place in the pool. Its handle is 0 until it is opened.
type session struct {
	handle pkcs11.SessionHandle
	open   bool
}

// sessions is a pool of sessions, each used by one goroutine at a time.
type sessions struct {
	module p11.Cryptoki
	slot   uint
	// idle holds the places that nobody uses. Its capacity is the pool's size.
	idle chan session

	mu sync.Mutex
	// places is how many places there are, idle or in use: the pool's size, less
	// those that the token refused to fill, and never below 1. Guarded by mu.
	places int
	// changed is when places last changed. Guarded by mu.
	changed time.Time
}

func newSessions(m p11.Cryptoki, slot uint, size int) *sessions {
	p := &sessions{module: m, slot: slot, idle: make(chan session, size), places: size}
	for range size {
		p.idle <- session{}
	}
	return p
}

// acquire returns an open session, waiting for one until ctx ends. Errors are the
// module's own, or that of ctx.
func (p *sessions) acquire(ctx context.Context) (session, error) {
	for {
		var s session
		select {
		case s = <-p.idle:
		case <-ctx.Done():
			return session{}, ctx.Err()
		}
		if s.open {
			return s, nil
		}
		h, err := p.module.OpenSession(p.slot)
		if err == nil {
			return session{handle: h, open: true}, nil
		}
		if e, ok := rvOf(err); ok && e.RV == pkcs11.CKR_SESSION_COUNT && p.shrink() {
			continue
		}
		p.idle <- session{}
		return session{}, err
	}
}

// shrink gives up the caller's place, since the token has fewer sessions than it
// promised: the rest must do. False when it is the last place.
func (p *sessions) shrink() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.places == 1 {
		return false
	}
	p.places--
	p.changed = time.Now()
	return true
}

// regrow brings one place back that shrink gave up, once in a while.
func (p *sessions) regrow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.places < cap(p.idle) && time.Since(p.changed) >= regrowAfter {
		p.places++
		p.changed = time.Now()
		p.idle <- session{} // never blocks: there is room for all places
	}
}

// release puts a session back after use.
func (p *sessions) release(s session) {
	p.idle <- s
	p.regrow()
}

// drop closes a session that saw an error and frees its place.
func (p *sessions) drop(s session) {
	// What C_CloseSession says about a broken session changes nothing.
	_ = p.module.CloseSession(s.handle)
	p.idle <- session{}
}
