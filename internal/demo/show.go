package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/internal/demo/sandbox"
)

// show runs one kekd and shows what it does.
func show(ctx context.Context, b *sandbox.Sandbox) (err error) {
	d, err := b.Configure(ctx, "kekd", sandbox.Settings{Mode: "seeded"})
	if err != nil {
		return err
	}
	step("A token, and a KEK that is made on it and never leaves it")
	out, err := b.Ctl(ctx, d, "key", "create", "--yes")
	if err != nil {
		return err
	}
	indent(out)
	step("kekd on " + d.Socket)
	if err := d.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	first, err := d.Client.Status(ctx, &kmsapi.StatusRequest{})
	if err != nil {
		return err
	}
	say("Status   %s, version %s\nkey_id   %s", first.GetHealthz(), first.GetVersion(), first.GetKeyId())

	step("What kube-apiserver does: Encrypt and Decrypt of a 32-byte seed of its own")
	plaintext := make([]byte, 32)
	_, _ = rand.Read(plaintext) // never fails
	sealed, err := encrypt(ctx, d, plaintext)
	if err != nil {
		return err
	}
	if err := decrypt(ctx, d, sealed, plaintext); err != nil {
		return err
	}
	before, err := d.Operations(ctx)
	if err != nil {
		return err
	}
	const times = 1000
	begun := time.Now()
	for range times {
		if err := roundTrip(ctx, d); err != nil {
			return err
		}
	}
	after, err := d.Operations(ctx)
	if err != nil {
		return err
	}
	say("and %d more round trips in %s", times, time.Since(begun).Round(time.Millisecond))
	say("HSM      %.0f wraps and unwraps for all of it: the seed that the KEK wraps once serves the rest", after["wrap"]+after["unwrap"])
	if before["wrap"]+before["unwrap"] != after["wrap"]+after["unwrap"] {
		return errors.New("warm requests reached the HSM")
	}
	if err := rotate(ctx, b, d, first.GetKeyId(), sealed, plaintext); err != nil {
		return err
	}
	step("For kube-apiserver: --encryption-provider-config with")
	indent(encryptionConfiguration(d.Socket))
	return linger(ctx, b, d)
}

// rotate makes a second key and waits for it to become the primary.
func rotate(ctx context.Context, b *sandbox.Sandbox, d *sandbox.Daemon, old string, sealed *kmsapi.EncryptResponse, plaintext []byte) error {
	step("A rotation: a second KEK, which every node takes up at its activation time")
	if _, err := b.Ctl(ctx, d, "key", "create", "--yes", "--activate-in", "3s"); err != nil {
		return err
	}
	out, err := b.Ctl(ctx, d, "key", "list")
	if err != nil {
		return err
	}
	indent(out)
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	begun := time.Now()
	for {
		s, err := d.Client.Status(limited, &kmsapi.StatusRequest{})
		if err != nil {
			return fmt.Errorf("wait for the new key_id: %w", err)
		}
		if s.GetKeyId() != old {
			say("key_id   %s (Status says so %s after the key was made; no restart)", s.GetKeyId(), time.Since(begun).Round(100*time.Millisecond))
			break
		}
		select {
		case <-limited.Done():
			return errors.New("the new key did not become the primary")
		case <-time.After(100 * time.Millisecond):
		}
	}
	if err := roundTrip(ctx, d); err != nil {
		return err
	}
	say("what the old key sealed still opens:")
	if err := decrypt(ctx, d, sealed, plaintext); err != nil {
		return err
	}
	if out, err = b.Ctl(ctx, d, "key", "list"); err != nil {
		return err
	}
	indent(out)
	return nil
}

// linger keeps kekd running where somebody sits before it.
func linger(ctx context.Context, b *sandbox.Sandbox, d *sandbox.Daemon) error {
	if !term.IsTerminal(int(os.Stdout.Fd())) {
		return nil
	}
	step("kekd goes on until Ctrl-C; try in another terminal")
	say("%s -c %s status\n%s -c %s verify\n%s -c %s doctor\ncurl http://%s/metrics",
		b.CtlPath(), d.Config, b.CtlPath(), d.Config, b.CtlPath(), d.Config, d.HTTP)
	return d.Wait(ctx)
}

func encrypt(ctx context.Context, d *sandbox.Daemon, plaintext []byte) (*kmsapi.EncryptResponse, error) {
	begun := time.Now()
	sealed, err := d.Client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: plaintext, Uid: "demo"})
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	say("Encrypt  %d bytes -> %d bytes in %s", len(plaintext), len(sealed.GetCiphertext()), time.Since(begun).Round(time.Microsecond))
	return sealed, nil
}

func decrypt(ctx context.Context, d *sandbox.Daemon, sealed *kmsapi.EncryptResponse, want []byte) error {
	begun := time.Now()
	opened, err := d.Client.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: sealed.GetCiphertext(), KeyId: sealed.GetKeyId(), Uid: "demo"})
	if err != nil {
		return fmt.Errorf("decrypt: %w", err)
	}
	if !bytes.Equal(opened.GetPlaintext(), want) {
		return errors.New("decrypt: it is not what was encrypted")
	}
	say("Decrypt  %d bytes -> %d bytes in %s, and they are the same", len(sealed.GetCiphertext()), len(want), time.Since(begun).Round(time.Microsecond))
	return nil
}

// roundTrip encrypts and decrypts without a word.
func roundTrip(ctx context.Context, d *sandbox.Daemon) error {
	plaintext := make([]byte, 32)
	_, _ = rand.Read(plaintext) // never fails
	sealed, err := d.Client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: plaintext, Uid: "demo"})
	if err != nil {
		return fmt.Errorf("encrypt: %w", err)
	}
	opened, err := d.Client.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: sealed.GetCiphertext(), KeyId: sealed.GetKeyId(), Uid: "demo"})
	if err != nil {
		return fmt.Errorf("decrypt: %w", err)
	}
	if !bytes.Equal(opened.GetPlaintext(), plaintext) {
		return errors.New("decrypt: it is not what was encrypted")
	}
	return nil
}

func encryptionConfiguration(socket string) string {
	return `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  - resources: [secrets]
    providers:
      - kms:
          apiVersion: v2
          name: kekd
          endpoint: unix://` + socket + `
          timeout: 3s
      - identity: {}
`
}

func step(text string)            { fmt.Printf("\n== %s\n", text) }
func say(format string, a ...any) { indent(fmt.Sprintf(format, a...)) }
func indent(text string) {
	fmt.Println("   " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n   "))
}
