package naive_test

import (
	"bytes"
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"kekd/hsm"
	"kekd/hsm/hsmtest"
	"kekd/hsm/hsmtest/naive"
	"kekd/hsm/worker"
	"kekd/internal/kek"
)

// TestMain lets the tests' own binary be the worker of the token that makes the key.
func TestMain(m *testing.M) {
	if worker.Is(os.Args) {
		os.Exit(worker.Main(worker.OpenModule))
	}
	os.Exit(m.Run())
}

func TestNaive(t *testing.T) {
	f := hsmtest.NewSoftHSM(t)
	counts := f.FaultModule(t)
	id, err := kek.NewID(time.Unix(1_700_000_000, 0), bytes.NewReader(make([]byte, 64)))
	if err != nil {
		t.Fatal(err)
	}
	token := hsm.New(f.Config)
	_, _, err = token.Create(context.Background(), id)
	token.Close()
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range f.Config.Env {
		t.Setenv(name, value)
	}

	n, err := naive.Open(f.Config.Module, f.Config.Token.Label, "123456", hsmtest.Ring, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
	if !bytes.Equal(n.ID(), []byte(id)) {
		t.Errorf("key %x, want %x", n.ID(), []byte(id))
	}
	before, err := hsmtest.CallCounts(counts)
	if err != nil {
		t.Fatal(err)
	}
	plaintext, aad := []byte("0123456789abcdef0123456789abcdef"), []byte("key_id")
	const callers = 4 // more than there are sessions
	var running sync.WaitGroup
	for range callers {
		running.Go(func() {
			sealed, err := n.Encrypt(plaintext, aad)
			if err != nil {
				t.Error(err)
				return
			}
			if len(sealed) != len(plaintext)+naive.Overhead {
				t.Errorf("%d bytes", len(sealed))
			}
			opened, err := n.Decrypt(sealed, aad)
			if err != nil || !bytes.Equal(opened, plaintext) {
				t.Errorf("opened %q, %v", opened, err)
			}
			if _, err := n.Decrypt(sealed[:naive.Overhead-1], aad); err == nil {
				t.Error("a short ciphertext was opened")
			}
			sealed[len(sealed)-1] ^= 1
			if _, err := n.Decrypt(sealed, aad); err == nil {
				t.Error("a changed ciphertext was opened")
			}
		})
	}
	running.Wait()
	after, err := hsmtest.CallCounts(counts)
	if err != nil {
		t.Fatal(err)
	}
	// Each value is one operation, in the binding's two calls.
	for call, want := range map[string]uint64{"C_EncryptInit": callers, "C_Encrypt": 2 * callers, "C_DecryptInit": 2 * callers} {
		if got := after[call] - before[call]; got != want {
			t.Errorf("%d calls of %s, want %d", got, call, want)
		}
	}
}

func TestNaiveRefuses(t *testing.T) {
	f := hsmtest.NewSoftHSM(t)
	for name, value := range f.Config.Env {
		t.Setenv(name, value)
	}
	for name, open := range map[string]func() (*naive.Token, error){
		"a token that is not there": func() (*naive.Token, error) {
			return naive.Open(f.Config.Module, "none", "123456", hsmtest.Ring, 1)
		},
		"a wrong PIN": func() (*naive.Token, error) {
			return naive.Open(f.Config.Module, f.Config.Token.Label, "654321", hsmtest.Ring, 1)
		},
		"an empty token": func() (*naive.Token, error) {
			return naive.Open(f.Config.Module, f.Config.Token.Label, "123456", hsmtest.Ring, 1)
		},
	} {
		if n, err := open(); err == nil {
			_ = n.Close()
			t.Errorf("%s was opened", name)
		}
	}
}
