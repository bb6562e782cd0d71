package hsm_test

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"kekd/hsm"
	"kekd/hsm/hsmtest"
	"kekd/internal/kek"
)

// A create that fails leaves nothing on the token, neither a KEK nor an HMAC key,
// whatever happened to the call: it may have taken effect although it failed, never
// have come back, or have taken the worker with it.
func TestFailedCreateLeavesNothing(t *testing.T) {
	t.Parallel()
	const spared = "C_GenerateKey ms=1 n=1" // the first call, which makes the KEK
	for name, c := range map[string]struct {
		faults    []string
		mechanism string
		timeout   time.Duration // the caller's
		want      string
	}{
		"failed":                        {faults: []string{"C_GenerateKey rv=0x5 n=1"}, want: "no key was left"},
		"refused":                       {faults: []string{"C_GenerateKey rv=0x70 n=1"}, want: "CKR_MECHANISM_INVALID"},
		"failed but took effect":        {faults: []string{"C_GenerateKey after rv=0x5 n=1"}, want: "was removed"},
		"throttled but took effect":     {faults: []string{"C_GenerateKey after rv=0x30 n=1"}, want: "was removed"},
		"refused but took effect":       {faults: []string{"C_GenerateKey after rv=0x70 n=1"}, want: "CKR_MECHANISM_INVALID"},
		"never came back":               {faults: []string{"C_GenerateKey hang n=1"}, want: "no key was left"},
		"took effect, never came back":  {faults: []string{"C_GenerateKey after hang n=1"}, want: "was removed"},
		"worker died":                   {faults: []string{"C_GenerateKey crash n=1"}, want: "no key was left"},
		"worker died after it":          {faults: []string{"C_GenerateKey after crash n=1"}, want: "was removed"},
		"worker died in the check":      {faults: []string{"C_EncryptInit crash n=1"}, want: "was removed"},
		"caller's time was up":          {faults: []string{"C_GenerateKey after hang n=1"}, timeout: time.Second, want: "was removed"},
		"HMAC key took effect":          {faults: []string{spared, "C_GenerateKey after rv=0x5 n=1"}, mechanism: "aes-cbc-hmac", want: "was removed"},
		"HMAC key refused, took effect": {faults: []string{spared, "C_GenerateKey after rv=0x70 n=1"}, mechanism: "aes-cbc-hmac", want: "CKR_MECHANISM_INVALID"},
		"worker died after the HMAC":    {faults: []string{spared, "C_GenerateKey after crash n=1"}, mechanism: "aes-cbc-hmac", want: "was removed"},
		"first search fails too":        {faults: []string{"C_GenerateKey after crash n=1", "C_DestroyObject rv=0x30 n=1"}, want: "was removed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := hsmtest.NewSoftHSM(t)
			path := f.FaultModule(t)
			token := f.Open(t, func(cfg *hsm.Config) {
				cfg.Mechanism, cfg.CallTimeout = c.mechanism, 3*time.Second
				if c.timeout > 0 {
					cfg.CallTimeout = time.Minute
				}
			})
			must(t, keysOf(t.Context(), token))
			must(t, hsmtest.SetFaults(path, c.faults...))
			ctx := t.Context()
			if c.timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, c.timeout)
				defer cancel()
			}
			id := pendingID(t)
			_, _, err := token.Create(ctx, id)
			_, left := errors.AsType[*hsm.LeftoverError](err)
			if err == nil || left || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
			must(t, hsmtest.SetFaults(path))
			other := f.Open(t)
			keys, err := other.Keys(t.Context())
			must(t, err)
			if len(keys) != 0 {
				t.Errorf("%d keys are listed, want none", len(keys))
			}
			// Which would destroy an HMAC key that was left alone.
			if err := other.Destroy(t.Context(), kek.Info{ID: id}); !errors.Is(err, kek.ErrUnknownKey) {
				t.Errorf("something is left: %v, want ErrUnknownKey", err)
			}
			_, _, err = token.Create(t.Context(), id) // the id is free again
			must(t, err)
		})
	}
}

// pendingID makes the CKA_ID of a key that no node can have taken up.
func pendingID(t *testing.T) kek.ID {
	t.Helper()
	id, err := kek.NewID(time.Now().Add(time.Hour), rand.Reader)
	must(t, err)
	return id
}

// A key that is active was perhaps taken up by a node while the answer was awaited.
func TestFailedCreateKeepsAnActiveKey(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for name, at := range map[string]time.Time{"active": time.Now(), "active by a clock that is ahead": time.Now().Add(3 * time.Minute)} {
		r.faults(t, "C_EncryptInit crash n=1") // in the check value of the new key
		id, err := kek.NewID(at, rand.Reader)
		must(t, err)
		_, _, err = r.token.Create(t.Context(), id)
		if left, ok := errors.AsType[*hsm.LeftoverError](err); !ok || !left.Found || !strings.Contains(err.Error(), "a node may encrypt under it already") {
			t.Errorf("%s: %v, want a LeftoverError", name, err)
		}
		must(t, r.token.Destroy(t.Context(), seen(t, r.token, id)))
	}
}

func keysOf(ctx context.Context, token *hsm.Token) error {
	_, err := token.Keys(ctx)
	return err
}

// What can't be removed is reported, and so is what nobody could look for.
func TestFailedCreateThatLeavesAKey(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		faults []string
		found  bool
		want   string
	}{
		"the role may not destroy keys": {[]string{"C_GenerateKey after rv=0x5 n=1", "C_DestroyObject rv=0x1b"}, true, "exists and was not removed"},
		"refused, and may not destroy":  {[]string{"C_GenerateKey after rv=0x70 n=1", "C_DestroyObject rv=0x1b"}, true, "exists and was not removed"},
		"the token is gone":             {[]string{"C_GenerateKey after crash n=1", "C_Initialize rv=0x5"}, false, "is not known"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := hsmtest.NewSoftHSM(t)
			path := f.FaultModule(t)
			token := f.Open(t)
			must(t, keysOf(t.Context(), token))
			must(t, hsmtest.SetFaults(path, c.faults...))
			id := pendingID(t)
			_, _, err := token.Create(t.Context(), id)
			left, ok := errors.AsType[*hsm.LeftoverError](err)
			if !ok || left.ID != id || left.Found != c.found || !strings.Contains(err.Error(), c.want) || !strings.Contains(hsm.Hint(err), id.String()) {
				t.Errorf("got %v, hint %q; want a LeftoverError with %q", err, hsm.Hint(err), c.want)
			}
			must(t, hsmtest.SetFaults(path))
			if keys, err := f.Open(t).Keys(t.Context()); err != nil || len(keys) != 1 {
				t.Errorf("%d keys, %v; want the one that is left", len(keys), err)
			}
		})
	}
}

// What to do depends on whether nodes use the key already.
func TestLeftoverHint(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in    time.Duration
		found bool
		want  string
	}{
		{time.Hour, true, "remove it with kekctl key cancel"},
		{time.Hour, false, "shows whether the key is there"},
		{-time.Minute, false, "shows whether the key is there"},
		{-time.Minute, true, "is active, and nodes use it like any other: do not create another"},
	} {
		id, err := kek.NewID(time.Now().Add(c.in), rand.Reader)
		must(t, err)
		if hint := (&hsm.LeftoverError{ID: id, Found: c.found}).Hint(); !strings.Contains(hint, c.want) {
			t.Errorf("activation in %v, found %t: %q, want %q", c.in, c.found, hint, c.want)
		}
	}
}

// An id that is in use is refused before anything is made, so that cleaning up can't
// meet the key that has it.
func TestCreateOfAUsedIDKeepsTheKey(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.faults(t, "C_GenerateKey crash n=1")
	if _, _, err := r.token.Create(t.Context(), r.id); !errors.Is(err, kek.ErrAmbiguous) {
		t.Errorf("got %v, want ErrAmbiguous", err)
	}
	r.faults(t)
	must(t, r.unwrap(t.Context()))
}
