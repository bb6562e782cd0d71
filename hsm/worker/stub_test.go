package worker

import (
	"sync"

	"github.com/miekg/pkcs11"

	"kekd/hsm/p11"
)

// stubModule is the part of a module that sessions and slots need. Calls of the
// rest panic.
type stubModule struct {
	p11.Cryptoki

	slots   []uint
	slotErr error
	tokens  map[uint]pkcs11.TokenInfo

	mu sync.Mutex
	// limit is how many sessions may be open; failures are taken first. Guarded
	// by mu, as the rest.
	limit    int
	failures []error
	next     pkcs11.SessionHandle
	open     map[pkcs11.SessionHandle]bool
	most     int
	closed   []pkcs11.SessionHandle
}

func (m *stubModule) GetSlotList() ([]uint, error) { return m.slots, m.slotErr }

func (m *stubModule) GetTokenInfo(slot uint) (pkcs11.TokenInfo, error) {
	info, ok := m.tokens[slot]
	if !ok {
		return info, p11.Error{Call: "C_GetTokenInfo", RV: pkcs11.CKR_TOKEN_NOT_RECOGNIZED}
	}
	return info, nil
}

func (m *stubModule) OpenSession(uint) (pkcs11.SessionHandle, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.failures) > 0 {
		err := m.failures[0]
		m.failures = m.failures[1:]
		return 0, err
	}
	if len(m.open) >= m.limit {
		return 0, p11.Error{Call: "C_OpenSession", RV: pkcs11.CKR_SESSION_COUNT}
	}
	m.next++
	if m.open == nil {
		m.open = map[pkcs11.SessionHandle]bool{}
	}
	m.open[m.next] = true
	m.most = max(m.most, len(m.open))
	return m.next, nil
}

func (m *stubModule) CloseSession(s pkcs11.SessionHandle) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.open, s)
	m.closed = append(m.closed, s)
	return p11.Error{Call: "C_CloseSession", RV: pkcs11.CKR_SESSION_HANDLE_INVALID} // which nobody minds
}
