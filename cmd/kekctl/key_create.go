package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"kekd/internal/httpapi"
	"kekd/internal/kek"
)

// defaultDelay is how far ahead a key beside others activates: long enough for
// every node to see it first.
const defaultDelay = 5 * time.Minute

func newKeyCreate(a *app) *cobra.Command {
	var yes bool
	var delay time.Duration
	c := &cobra.Command{
		Use:   "create",
		Short: "Create a KEK on the token",
		Long: `Create an AES-256 key on the token: generated there, sensitive, never
extractable. It is proven by an encryption and a decryption before the command
succeeds.

The first key of a ring is active at once, and so is a key for a ring that has no
primary, where nothing encrypts until it is. A further one becomes the primary on
every node five minutes later, unless --activate-in says otherwise: the nodes
must have seen it before.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if delay < 0 {
				return codeError{exitUsage, fmt.Sprintf("--activate-in: must not be negative, got %s", delay)}
			}
			return a.keyCreate(cmd.Context(), yes, delay, cmd.Flags().Changed("activate-in"))
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().DurationVar(&delay, "activate-in", 0, "when the key becomes the primary (default 0s where the ring has no primary, else 5m)")
	return c
}

func (a *app) keyCreate(ctx context.Context, yes bool, delay time.Duration, given bool) error {
	ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.close()
	token, err := s.token.Info(ctx)
	if err != nil {
		return err
	}
	ring, keys, err := s.ring(ctx)
	if err != nil && !isAny(err, kek.ErrNoKey, kek.ErrRevoked, kek.ErrRefused, kek.ErrAmbiguous) {
		return err
	}
	if _, ok := ring.Primary(); !given && (ok || errors.Is(err, kek.ErrAmbiguous)) {
		// In an ambiguous ring a running kekd may still use the key it had before.
		delay = defaultDelay
	}
	activation := time.Now().Add(delay)
	for _, k := range keys {
		if !given && k.Activation.Equal(activation.Truncate(time.Second)) {
			// Activations are whole seconds, and this one is ours to choose.
			activation = k.Activation.Add(time.Second)
		}
		if !k.Activation.Before(activation.Truncate(time.Second)) {
			return codeError{exitFailed, fmt.Sprintf("key %s activates at %s, so a key that activates at %s would never be the primary; choose a longer --activate-in",
				k.ID, k.Activation.Format(time.RFC3339), activation.UTC().Format(time.RFC3339))}
		}
	}
	a.note("Creates an AES-256 key on token %q (serial %s), ring %q, beside %d other(s); it becomes the primary at %s.",
		token.Label, token.Serial, s.cfg.KeyRing.Label, len(keys), activation.UTC().Format(time.RFC3339))
	if err := a.confirm(yes); err != nil {
		return err
	}
	id, err := kek.NewID(activation, rand.Reader)
	if err != nil {
		return err
	}
	key, mechanism, err := s.token.Create(ctx, id)
	if err != nil {
		if errors.Is(err, kek.ErrUnavailable) {
			return fmt.Errorf("%w (the key may exist: kekctl key list shows it)", err)
		}
		return err
	}
	key.State = kek.Primary
	if activation.After(time.Now()) {
		key.State = kek.Pending
	}
	one := httpapi.NewKeyRing(&kek.Ring{Label: key.Ring, Keys: []kek.Info{key}}, time.Now()).Keys[0]
	created := struct {
		httpapi.Key
		Mechanism string `json:"mechanism"`
	}{one, mechanism.String()}
	return a.print(created, func(w io.Writer) {
		row(w, "key_id", key.KeyID())
		row(w, "state", key.State.String())
		row(w, "activation", key.Activation.Format(time.RFC3339))
		row(w, "mechanism", mechanism.String())
		row(w, "attributes", attributes(key.Attributes))
	})
}
