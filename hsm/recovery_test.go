package hsm_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"kekd/hsm/hsmtest"
	"kekd/internal/kek"
)

// notAsked tells whether an error says that nobody asked the HSM.
func notAsked(err error) bool {
	e, ok := errors.AsType[interface {
		error
		NotAsked() bool
	}](err)
	return ok && e.NotAsked()
}

// A call that met the fault says so, even if no second worker could be started for
// it; the calls after it say that they did not ask. The key cache counts the one
// and not the others.
func TestOnlyWhoAskedSpeaksOfTheHSM(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]string{
		"in a call":  "C_Encrypt crash",
		"at a start": "C_GetTokenInfo rv=0xe0",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			r.faults(t, fault, "C_EncryptInit rv=0xe0")
			for range 3 { // so that starts are paced
				before := r.starts.Load()
				eventually(t, "a call makes a start", func() bool {
					err := r.wrap(t.Context())
					if !errors.Is(err, kek.ErrUnavailable) {
						t.Fatalf("got %v, want ErrUnavailable", err)
					}
					if started := r.starts.Load() > before; started == notAsked(err) {
						t.Errorf("started a worker: %v, not asked: %v: %v", started, notAsked(err), err)
					}
					return r.starts.Load() > before
				})
			}
			if err := r.wrap(t.Context()); !notAsked(err) || !strings.Contains(err.Error(), "next try in") {
				t.Errorf("at once after that: %v, want it not asked", err)
			}
		})
	}
}

// However long the HSM was away, a second after its return a call works.
func TestBackSoonAfterALongOutage(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.faults(t, "C_GetTokenInfo rv=0xe0", "C_EncryptInit rv=0xe0", "C_DecryptInit rv=0xe0")
	before := r.starts.Load()
	eventually(t, "many starts have failed", func() bool {
		_ = r.unwrap(t.Context()) // fails
		return r.starts.Load()-before >= 10
	})
	r.faults(t)
	back := time.Now()
	eventually(t, "it works again", func() bool { return r.unwrap(t.Context()) == nil })
	if took := time.Since(back); took > 3*time.Second {
		t.Errorf("it took %s, want about a second", took)
	}
}

// One damaged ciphertext after the other, each of which takes a canary: they go as
// fast as the token does, since others wait for the sessions meanwhile.
func TestDamageDoesNotHoldSessions(t *testing.T) {
	t.Parallel()
	const damaged = 60
	r := newRig(t, func(token *hsmtest.FakeToken) { token.AmbiguousDecrypt = true }, oneSession)
	good, bad := r.blob, append([]byte(nil), r.blob...)
	begun := time.Now()
	for n := range damaged {
		bad[len(bad)-1] = good[len(good)-1] ^ byte(n+1)
		if _, err := r.token.Unwrap(t.Context(), r.id, r.mech, bad, []byte(aad)); !errors.Is(err, kek.ErrCorrupt) {
			t.Fatalf("got %v, want ErrCorrupt", err)
		}
	}
	if took := time.Since(begun); took > damaged*50*time.Millisecond {
		t.Errorf("%d damaged blobs kept the only session for %s", damaged, took)
	}
	must(t, r.unwrap(t.Context()))
}
