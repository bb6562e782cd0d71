package hsm

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/zap"

	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// jsonStore is a LatchStore that keeps what a file would.
type jsonStore struct {
	stored  []byte
	failing bool
}

func (s *jsonStore) Load(_ string, v any) (bool, error) {
	if s.stored == nil {
		return false, nil
	}
	return true, json.Unmarshal(s.stored, v)
}

func (s *jsonStore) Save(_ string, v any) error {
	if s.failing {
		return errors.New("no space left on device")
	}
	b, err := json.Marshal(v)
	s.stored = b
	return err
}

func (s *jsonStore) Remove(string) error {
	if s.failing {
		return errors.New("read-only file system")
	}
	s.stored = nil
	return nil
}

func (s *jsonStore) Writable() error {
	if s.failing {
		return fmt.Errorf("%w: no space left on device", kek.ErrState)
	}
	return nil
}

func refused(rv uint) error {
	return &wire.Error{Class: wire.ClassPIN, Call: "C_Login", RV: rv, Text: "log in to the token"}
}

func testLatch(s LatchStore) *pinLatch { return newPINLatch(s, zap.NewNop(), noObserver{}) }

func TestPINLatch(t *testing.T) {
	t.Parallel()
	store := &jsonStore{}
	token := wire.TokenInfo{Serial: "4711"}
	l := testLatch(store)
	check := func(l *pinLatch, token wire.TokenInfo, pin string) error {
		return l.check(token, []byte(pin), false, "file /etc/pin")
	}
	if err := check(l, token, "1111"); err != nil {
		t.Fatalf("nothing refused yet: %v", err)
	}
	err := l.set(token, []byte("1111"), "file /etc/pin", refused(0xa0))
	if !errors.Is(err, kek.ErrPIN) || !strings.Contains(err.Error(), "CKR_PIN_INCORRECT") || !strings.Contains(err.Error(), "file /etc/pin") {
		t.Errorf("set: %v, want ErrPIN with the reason and the source", err)
	}
	if !strings.Contains(Hint(err), "kekctl pin unlatch") {
		t.Errorf("hint %q, want one that names the command", Hint(err))
	}
	if err := testLatch(&jsonStore{}).set(token, []byte("1111"), "file /etc/pin", refused(pinLocked)); !strings.Contains(Hint(err), "officer") {
		t.Errorf("hint %q to a locked PIN, want one that names who unlocks it", Hint(err))
	}
	if strings.Contains(string(store.stored), "1111") || strings.Contains(err.Error(), "1111") {
		t.Errorf("the PIN is stored or told: %s, %v", store.stored, err)
	}
	var rec LatchRecord
	if err := json.Unmarshal(store.stored, &rec); err != nil {
		t.Fatal(err)
	}
	if rec.Serial != "4711" || rec.Iterations < 600_000 || len(rec.Salt) != 16 || len(rec.Hash) != 32 || rec.Since.IsZero() {
		t.Errorf("stored %+v, want serial, time, a salt of 16 bytes and a slow hash of 32", rec)
	}
	for _, l := range []*pinLatch{l, testLatch(store)} { // as after a restart
		for range 2 { // the second answer is remembered
			if err := check(l, token, "1111"); !errors.Is(err, kek.ErrPIN) {
				t.Errorf("the refused PIN: %v, want ErrPIN", err)
			}
		}
	}
	if err := check(testLatch(store), wire.TokenInfo{Serial: "0815"}, "1111"); err != nil {
		t.Errorf("the same PIN for another token: %v", err)
	}
	if store.stored == nil {
		t.Error("another token's login removed the latch")
	}
	if err := check(l, token, "2222"); err != nil {
		t.Errorf("another PIN: %v", err)
	}
	if store.stored != nil {
		t.Error("the latch is still stored after the PIN changed")
	}
	if err := check(l, token, "1111"); err != nil {
		t.Errorf("the first PIN after the latch is gone: %v", err)
	}
}

// The slow hash knows the same serial and PIN again and nothing else.
func TestLatchHash(t *testing.T) {
	t.Parallel()
	rec := &LatchRecord{Serial: "4711", Salt: []byte("0123456789abcdef"), Iterations: 2}
	sum := func(serial, pin string) string {
		r := *rec
		r.Serial = serial
		h, err := r.hash([]byte(pin))
		if err != nil {
			t.Fatal(err)
		}
		return string(h)
	}
	seen := map[string]string{}
	for _, c := range []struct{ serial, pin string }{{"4711", "1234"}, {"4711", "1235"}, {"4712", "1234"}, {"47111", "234"}, {"", "47111234"}} {
		h := sum(c.serial, c.pin)
		if before, ok := seen[h]; ok {
			t.Errorf("%s and %v have one hash", before, c)
		}
		seen[h] = c.serial + " " + c.pin
	}
	if _, ok := seen[sum("4711", "1234")]; !ok {
		t.Error("the same input has two hashes")
	}
}

// A latch that could not be stored is in force all the same, whatever an older
// record of another token says.
func TestUnsavedLatch(t *testing.T) {
	t.Parallel()
	store := &jsonStore{}
	l := testLatch(store)
	first, second := wire.TokenInfo{Serial: "1"}, wire.TokenInfo{Serial: "2"}
	if err := l.set(first, []byte("1111"), "test", refused(0xa0)); !errors.Is(err, kek.ErrPIN) {
		t.Fatal(err)
	}
	store.failing = true
	if err := l.set(second, []byte("1111"), "test", refused(0xa4)); !errors.Is(err, kek.ErrPIN) {
		t.Fatal(err)
	}
	if err := l.check(second, []byte("1111"), true, "test"); !errors.Is(err, kek.ErrPIN) {
		t.Errorf("the PIN that was refused last: %v, want ErrPIN", err)
	}
	store.failing = false
	if err := l.Clear(); err != nil {
		t.Fatal(err)
	}
	if err := l.check(second, []byte("1111"), true, "test"); err != nil {
		t.Errorf("after the latch was cleared: %v", err)
	}
}

// A latch that could not be stored at first is stored once it can be, so that a
// restart knows it.
func TestUnsavedLatchIsStoredLater(t *testing.T) {
	t.Parallel()
	store := &jsonStore{failing: true}
	l := testLatch(store)
	token := wire.TokenInfo{Serial: "1"}
	if err := l.set(token, []byte("1111"), "test", refused(0xa0)); !errors.Is(err, kek.ErrPIN) {
		t.Fatal(err)
	}
	store.failing = false
	for _, l := range []*pinLatch{l, testLatch(store)} {
		if err := l.check(token, []byte("1111"), false, "test"); !errors.Is(err, kek.ErrPIN) {
			t.Errorf("got %v, want ErrPIN", err)
		}
	}
}

// A process that has not logged in yet tries no PIN whose refusal would be
// forgotten with it. One that has goes on with that PIN, and no other.
func TestNoTryThatCouldBeForgotten(t *testing.T) {
	t.Parallel()
	store := &jsonStore{failing: true}
	l := testLatch(store)
	token := wire.TokenInfo{Serial: "1"}
	forgetful := func(what, pin string) {
		t.Helper()
		err := l.check(token, []byte(pin), false, "test")
		if !errors.Is(err, kek.ErrState) || errors.Is(err, kek.ErrPIN) {
			t.Errorf("%s: %v, want ErrState: nothing was refused", what, err)
		}
	}
	forgetful("the first login", "1111")
	l.accept(token, []byte("1111"))
	if err := l.check(token, []byte("1111"), false, "test"); err != nil {
		t.Errorf("the PIN that worked: %v", err)
	}
	forgetful("another PIN", "2222")
	if err := l.set(token, []byte("1111"), "test", refused(0xa0)); !errors.Is(err, kek.ErrPIN) {
		t.Fatal(err)
	}
	if err := l.check(token, []byte("1111"), false, "test"); !errors.Is(err, kek.ErrPIN) {
		t.Errorf("the PIN that worked until it was refused: %v, want ErrPIN", err)
	}
}

// With the state directory gone, a worker of a process that has logged in is
// replaced all the same.
func TestUnreadableLatchAfterLogin(t *testing.T) {
	t.Parallel()
	l := testLatch(goneStore{&jsonStore{failing: true}})
	token := wire.TokenInfo{Serial: "1"}
	if err := l.check(token, []byte("1111"), false, "test"); !errors.Is(err, kek.ErrState) {
		t.Errorf("before the first login: %v, want ErrState", err)
	}
	l.accept(token, []byte("1111"))
	if err := l.check(token, []byte("1111"), false, "test"); err != nil {
		t.Errorf("after it: %v", err)
	}
	if err := l.check(token, []byte("2222"), false, "test"); !errors.Is(err, kek.ErrState) {
		t.Errorf("another PIN: %v, want ErrState", err)
	}
}

type goneStore struct{ *jsonStore }

func (goneStore) Load(string, any) (bool, error) {
	return false, fmt.Errorf("%w: no such file or directory", kek.ErrState)
}

// A changed PIN is not tried while the old record can't be removed: it would be
// there for the next start.
func TestLatchThatCannotBeRemoved(t *testing.T) {
	t.Parallel()
	store := &jsonStore{}
	l := testLatch(store)
	token := wire.TokenInfo{Serial: "1"}
	if err := l.set(token, []byte("1111"), "test", refused(0xa0)); !errors.Is(err, kek.ErrPIN) {
		t.Fatal(err)
	}
	store.failing = true
	if err := l.check(token, []byte("2222"), false, "test"); !errors.Is(err, kek.ErrPIN) {
		t.Errorf("got %v, want ErrPIN", err)
	}
}

func TestDamagedLatch(t *testing.T) {
	t.Parallel()
	token := wire.TokenInfo{Serial: "1"}
	for name, stored := range map[string]string{
		"no JSON":       "{",
		"no iterations": `{"serial":"1","salt":"AAAA","hash":"AAAA"}`,
		"negative ones": `{"serial":"1","iterations":-7,"salt":"AAAA","hash":"AAAA"}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := testLatch(&jsonStore{stored: []byte(stored)})
			if err := l.check(token, []byte("1111"), false, "test"); !errors.Is(err, kek.ErrPIN) {
				t.Errorf("got %v, want ErrPIN: better one latch too many than one try", err)
			}
		})
	}
}

func TestTokenFlags(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		token wire.TokenInfo
		allow bool
		want  error
	}{
		"fine":               {wire.TokenInfo{}, false, nil},
		"count low":          {wire.TokenInfo{PINLow: true}, false, nil},
		"final try":          {wire.TokenInfo{PINFinalTry: true}, false, kek.ErrPIN},
		"final try, allowed": {wire.TokenInfo{PINFinalTry: true}, true, nil},
		"locked":             {wire.TokenInfo{PINLocked: true}, false, kek.ErrPIN},
		"locked, allowed":    {wire.TokenInfo{PINLocked: true, PINFinalTry: true}, true, kek.ErrPIN},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := testLatch(&jsonStore{}).check(c.token, []byte("1111"), c.allow, "test")
			if diff := cmp.Diff(c.want, err, cmpopts.EquateErrors()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if err != nil && Hint(err) == "" {
				t.Error("no hint")
			}
		})
	}
}
