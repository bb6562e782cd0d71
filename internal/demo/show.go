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

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/term"
	kmsapi "k8s.io/kms/apis/v2"

	"net/http"
)

// show runs one kekd and shows what it does.
func show(ctx context.Context, b *sandbox) (err error) {
	d, err := b.configure(ctx, "kekd", "seeded")
	if err != nil {
		return err
	}
	step("A token, and a KEK that is made on it and never leaves it")
	out, err := b.ctl(ctx, d, "key", "create", "--yes")
	if err != nil {
		return err
	}
	indent(out)
	step("kekd on " + d.socket)
	if err := b.start(ctx, d); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	first, err := d.client.Status(ctx, &kmsapi.StatusRequest{})
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
	before, err := operations(ctx, d)
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
	after, err := operations(ctx, d)
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
	indent(encryptionConfiguration(d.socket))
	return linger(ctx, b, d)
}

// rotate makes a second key and waits for it to become the primary.
func rotate(ctx context.Context, b *sandbox, d *daemon, old string, sealed *kmsapi.EncryptResponse, plaintext []byte) error {
	step("A rotation: a second KEK, which every node takes up at its activation time")
	if _, err := b.ctl(ctx, d, "key", "create", "--yes", "--activate-in", "3s"); err != nil {
		return err
	}
	out, err := b.ctl(ctx, d, "key", "list")
	if err != nil {
		return err
	}
	indent(out)
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	begun := time.Now()
	for {
		s, err := d.client.Status(limited, &kmsapi.StatusRequest{})
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
	if out, err = b.ctl(ctx, d, "key", "list"); err != nil {
		return err
	}
	indent(out)
	return nil
}

// linger keeps kekd running where somebody sits before it.
func linger(ctx context.Context, b *sandbox, d *daemon) error {
	if !term.IsTerminal(int(os.Stdout.Fd())) {
		return nil
	}
	step("kekd goes on until Ctrl-C; try in another terminal")
	say("%s -c %s status\n%s -c %s verify\n%s -c %s doctor\ncurl http://%s/metrics",
		b.kekctl, d.config, b.kekctl, d.config, b.kekctl, d.config, d.http)
	select {
	case <-ctx.Done():
		return nil
	case err := <-d.ended:
		d.ended <- err
		return fmt.Errorf("kekd ended: %w\n%s", err, d.log.String())
	}
}

func encrypt(ctx context.Context, d *daemon, plaintext []byte) (*kmsapi.EncryptResponse, error) {
	begun := time.Now()
	sealed, err := d.client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: plaintext, Uid: "demo"})
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	say("Encrypt  %d bytes -> %d bytes in %s", len(plaintext), len(sealed.GetCiphertext()), time.Since(begun).Round(time.Microsecond))
	return sealed, nil
}

func decrypt(ctx context.Context, d *daemon, sealed *kmsapi.EncryptResponse, want []byte) error {
	begun := time.Now()
	opened, err := d.client.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: sealed.GetCiphertext(), KeyId: sealed.GetKeyId(), Uid: "demo"})
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
func roundTrip(ctx context.Context, d *daemon) error {
	plaintext := make([]byte, 32)
	_, _ = rand.Read(plaintext) // never fails
	sealed, err := d.client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: plaintext, Uid: "demo"})
	if err != nil {
		return fmt.Errorf("encrypt: %w", err)
	}
	opened, err := d.client.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: sealed.GetCiphertext(), KeyId: sealed.GetKeyId(), Uid: "demo"})
	if err != nil {
		return fmt.Errorf("decrypt: %w", err)
	}
	if !bytes.Equal(opened.GetPlaintext(), plaintext) {
		return errors.New("decrypt: it is not what was encrypted")
	}
	return nil
}

// operations reads how many HSM operations there were, by kind.
func operations(ctx context.Context, d *daemon) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.http+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read /metrics: %w", err)
	}
	ops := make(map[string]float64)
	for _, m := range families["kekd_hsm_operations_total"].GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == "op" {
				ops[l.GetValue()] += m.GetCounter().GetValue()
			}
		}
	}
	return ops, nil
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
