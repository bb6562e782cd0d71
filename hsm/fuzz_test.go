package hsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"kekd/hsm/wire"
	"kekd/internal/kek"
	"kekd/internal/state"
)

// FuzzAnswer: whatever a worker sends, its parent takes it for the answer to the
// call, for an error of the token's, or for a worker that must be replaced.
func FuzzAnswer(f *testing.F) {
	add := func(which uint8, kind wire.Kind, meta, secret string) {
		b, err := wire.Append(nil, wire.Frame{ID: 1, Kind: kind, Meta: []byte(meta), Secret: []byte(secret)})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(which, b)
	}
	add(0, wire.ReplyOK, `{"library":"x 1.0","slot":3,"label":"kekd","loginRequired":true}`, "")
	add(1, wire.ReplyOK, `{"sessions":4}`, "")
	add(1, wire.ReplyOK, `{"sessions":-1}`, "")
	add(2, wire.ReplyOK, `{"keys":[{"id":"AQ==","checkValue":[1,2,3],"attributes":{"label":"k8s-kek/disabled"}}]}`, "")
	add(3, wire.ReplyOK, `{"mechanism":1}`, "")
	add(4, wire.ReplyOK, `{"blob":"AAAA"}`, "")
	add(5, wire.ReplyOK, "", "the plaintext")
	add(5, wire.OpUnwrap, "", "the plaintext")
	add(5, wire.ReplyError, `{"class":2,"text":"corrupt"}`, "")
	add(5, wire.ReplyError, `{"class":99,"text":"x"}`, "left over")
	add(5, wire.ReplyError, "", "")
	f.Fuzz(func(t *testing.T, which uint8, in []byte) {
		frame, err := wire.Read(bytes.NewReader(in))
		if err != nil {
			return // FuzzRead's
		}
		kept := frame.Secret
		replies := []any{new(wire.TokenInfo), new(wire.LoginReply), new(wire.KeysReply), new(wire.ProveReply), new(wire.WrapReply), nil}
		reply := replies[int(which)%len(replies)]
		secret, err := take(frame, reply)
		if err != nil {
			if _, said := errors.AsType[*wire.Error](err); said == errors.Is(err, errWorkerGone) {
				t.Errorf("neither the token's error nor a broken worker, or both: %v", err)
			}
			if secret != nil || len(bytes.Trim(kept, "\x00")) != 0 {
				t.Errorf("a secret outlives the error %v", err)
			}
			return
		}
		if frame.Kind != wire.ReplyOK || !bytes.Equal(secret, kept) {
			t.Errorf("%s with %d bytes of a secret was taken for an answer with %d", frame.Kind, len(kept), len(secret))
		}
		switch m := reply.(type) {
		case *wire.LoginReply:
			_ = make(chan struct{}, m.Sessions)
		case *wire.KeysReply:
			keys := make([]kek.Info, 0, len(m.Keys))
			for _, k := range m.Keys {
				keys = append(keys, describeKey("k8s-kek", k))
			}
			buildable(t, keys, RingOptions{Now: time.Unix(1_790_000_000, 0)})
		}
	})
}

// buildable makes a ring of keys and checks what must hold of any.
func buildable(t *testing.T, keys []kek.Info, o RingOptions) {
	t.Helper()
	ring, err := BuildRing("k8s-kek", keys, o)
	if err != nil {
		classes := []error{kek.ErrNoKey, kek.ErrRevoked, kek.ErrRefused, kek.ErrAmbiguous}
		known := false
		for _, class := range classes {
			known = known || errors.Is(err, class)
		}
		if !known {
			t.Errorf("an error of no class: %v", err)
		}
	}
	if ring == nil {
		if !errors.Is(err, kek.ErrAmbiguous) {
			t.Errorf("no ring, and the error %v", err)
		}
		return
	}
	primary, ok := ring.Primary()
	if ok != (err == nil) {
		t.Errorf("primary %s %t beside the error %v", primary.ID, ok, err)
	}
	for _, k := range ring.Keys {
		if k.State < kek.Pending || k.State > kek.Scheduled {
			t.Errorf("key %s is %s", k.ID, k.State)
		}
		if ok && k.State == kek.Primary && k.ID != primary.ID {
			t.Errorf("two primaries, %s and %s", k.ID, primary.ID)
		}
		if out := k.Attributes.Label != "k8s-kek" && strings.HasPrefix(k.Attributes.Label, "k8s-kek"); out && k.State.Decrypts() {
			t.Errorf("key %s with the label %q is %s", k.ID, k.Attributes.Label, k.State)
		}
	}
}

// FuzzLabel: what stands behind the ring's label takes a key out of use, whoever
// wrote it, and a key is scheduled for the day that its label names.
func FuzzLabel(f *testing.F) {
	for _, suffix := range []string{"", "/disabled", "/destroy-after-2027-01-31", "/destroy-after-2027-02-30", "/destroy-after-", "/Disabled", "/x", "/", "/destroy-after-2027-1-31"} {
		f.Add(suffix)
	}
	f.Fuzz(func(t *testing.T, suffix string) {
		k := describeKey("k8s-kek", wire.Key{ID: []byte{1}, Attributes: kek.Attributes{Label: "k8s-kek" + suffix}})
		switch {
		case suffix == "":
			if k.State != 0 {
				t.Errorf("a key in use is %s", k.State)
			}
		case k.State == kek.Scheduled:
			if again := DestroyAfter(k.DestroyAfter).suffix; again != suffix {
				t.Errorf("%q is scheduled for %v, which is spelled %q", suffix, k.DestroyAfter, again)
			}
		case k.State != kek.Disabled || !k.DestroyAfter.IsZero():
			t.Errorf("a key with %q is %s, destroyed after %v", suffix, k.State, k.DestroyAfter)
		}
	})
}

// FuzzStateFiles: a file in the state directory is refused by its path, or is what
// a save of it holds; and no record of the PIN latch holds up a login, or lets a
// PIN through that it can't be compared with.
func FuzzStateFiles(f *testing.F) {
	dir, err := os.MkdirTemp("", "kekd")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = os.RemoveAll(dir) })
	store, err := state.Open(filepath.Join(dir, "state"))
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{
		"", "null", "{}", "[]", `{"last":""}`, `{"last":"01ff","checkValue":"a1b2c3","before":["02","03"]}`,
		`{"last":"01ff","checkValue":"a1b2c3","before":null}{}`, `{"last":"zz","checkValue":"a1b2c3"}`, `{"last":"01","checkValue":"a1"}`,
		`{"serial":"4711","reason":"CKR_PIN_INCORRECT","since":"2026-01-02T03:04:05Z","salt":"AAAA","iterations":1,"hash":"AAAA"}`,
		`{"serial":"4711","salt":"AAAA","iterations":10000000000,"hash":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`,
		`{"serial":"4711","salt":null,"iterations":-1,"hash":null}`, `{"serial":4711}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		for name, values := range map[string][2]any{
			"published": {new(Published), new(Published)},
			LatchName:   {new(LatchRecord), new(LatchRecord)},
		} {
			if err := os.WriteFile(store.Path(name), content, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := store.Load(name, values[0]); err != nil {
				if !strings.Contains(err.Error(), store.Path(name)) {
					t.Errorf("the error does not name the file: %v", err)
				}
				continue
			}
			if err := store.Save(name, values[0]); err != nil {
				t.Fatalf("what was loaded can't be saved: %v", err)
			}
			if _, err := store.Load(name, values[1]); err != nil {
				t.Fatalf("what was saved can't be loaded: %v", err)
			}
			if diff := cmp.Diff(values[0], values[1], cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s, and %s again (-first +second):\n%s", name, name, diff)
			}
			if rec, ok := values[0].(*LatchRecord); ok && (rec.Iterations < 1 || rec.Iterations > maxLatchIterations || len(rec.Hash) != 32) {
				if latch := newPINLatch(store, nil, noObserver{}); !latch.matches(rec, []byte("1234")) {
					t.Errorf("a PIN passed the damaged latch %s", content)
				}
			}
		}
	})
}

// The parent sizes a channel by what the worker says of its sessions.
func TestNonsenseFromTheWorker(t *testing.T) {
	for name, c := range map[string]struct {
		kind  wire.Kind
		meta  string
		reply any
	}{
		"a pool below nothing": {wire.ReplyOK, `{"sessions":-1}`, new(wire.LoginReply)},
		"an empty pool":        {wire.ReplyOK, `{"sessions":0}`, new(wire.LoginReply)},
		"a vast pool":          {wire.ReplyOK, `{"sessions":9223372036854775807}`, new(wire.LoginReply)},
		"no mechanism":         {wire.ReplyOK, `{}`, new(wire.ProveReply)},
		"a request":            {wire.OpUnwrap, ``, nil},
		"an error of no class": {wire.ReplyError, `{"text":"x"}`, nil},
		"an error of no JSON":  {wire.ReplyError, `x`, nil},
		"no JSON":              {wire.ReplyOK, `x`, new(wire.KeysReply)},
	} {
		sec := []byte("a secret")
		out, err := take(wire.Frame{Kind: c.kind, Meta: json.RawMessage(c.meta), Secret: sec}, c.reply)
		if out != nil || !errors.Is(err, errWorkerGone) || !faulty(err) {
			t.Errorf("%s: %v, want a worker that is replaced", name, err)
		}
		if !bytes.Equal(sec, make([]byte, len(sec))) {
			t.Errorf("%s: the secret was not wiped", name)
		}
	}
}

// A latch with a damaged count neither hangs nor lets the PIN through.
func TestLatchWithAbsurdIterations(t *testing.T) {
	latch := newPINLatch(nil, nil, noObserver{})
	rec := &LatchRecord{Serial: "4711", Salt: []byte("0123456789abcdef"), Iterations: 1 << 40, Hash: make([]byte, 32)}
	done := make(chan bool, 1)
	go func() { done <- latch.matches(rec, []byte("1234")) }()
	select {
	case hit := <-done:
		if !hit {
			t.Error("the PIN passed")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the latch counts for ever")
	}
}
