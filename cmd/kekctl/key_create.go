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
			given := cmd.Flags().Changed("activate-in")
			if err := checkDelay(delay); err != nil {
				return err
			}
			return a.keyCreate(cmd.Context(), yes, func(s *session, ring *kek.Ring, ringErr error, keys []kek.Info, now time.Time) (time.Time, error) {
				return s.planActivation(ring, ringErr, keys, delay, given, now)
			})
		},
	}
	addYes(c, &yes)
	c.Flags().DurationVar(&delay, "activate-in", 0, "when the key becomes the primary (default 0s where the ring has no primary, else 5m)")
	return c
}

// addYes adds the flag that every command has which asks.
func addYes(c *cobra.Command, yes *bool) {
	c.Flags().BoolVarP(yes, "yes", "y", false, "do not ask")
}

func checkDelay(delay time.Duration) error {
	if delay < 0 {
		return codeError{exitUsage, fmt.Sprintf("--activate-in: must not be negative, got %s", delay)}
	}
	return nil
}

// planner decides when a new key activates in the ring that was found.
type planner func(s *session, ring *kek.Ring, ringErr error, keys []kek.Info, now time.Time) (time.Time, error)

// keyCreate creates a key and prints it.
func (a *app) keyCreate(ctx context.Context, yes bool, plan planner) error {
	s, err := a.openAdmin()
	if err != nil {
		return err
	}
	defer s.close()
	key, mechanism, err := a.createKey(ctx, s, yes, plan)
	if err != nil {
		return err
	}
	return a.printCreated(key, mechanism)
}

// createKey creates a key once it was agreed to. Its state is Primary or Pending.
func (a *app) createKey(ctx context.Context, s *session, yes bool, plan planner) (kek.Info, kek.Mechanism, error) {
	return a.addKey(ctx, s, yes, plan, "Creates an AES-256 key", s.token.Create)
}

// addKey has make bring a key onto the token once it was agreed to; what says so in
// a sentence. The key's state is Primary or Pending.
func (a *app) addKey(ctx context.Context, s *session, yes bool, plan planner, what string,
	make func(context.Context, kek.ID) (kek.Info, kek.Mechanism, error),
) (kek.Info, kek.Mechanism, error) {
	ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	token, err := s.token.Info(ctx)
	if err != nil {
		return kek.Info{}, 0, err
	}
	ring, keys, err := s.ring(ctx)
	if err != nil && !isAny(err, kek.ErrNoKey, kek.ErrRevoked, kek.ErrRefused, kek.ErrAmbiguous) {
		return kek.Info{}, 0, err
	}
	activation, err := plan(s, ring, err, s.withPublished(keys), time.Now())
	if err != nil {
		return kek.Info{}, 0, err
	}
	a.note("%s on token %q (serial %s), ring %q, beside %d other(s); it becomes the primary at %s.",
		what, token.Label, token.Serial, s.cfg.KeyRing.Label, len(keys), activation.UTC().Format(time.RFC3339))
	if err := a.confirm(ctx, yes); err != nil {
		return kek.Info{}, 0, err
	}
	id, err := kek.NewID(activation, rand.Reader)
	if err != nil {
		return kek.Info{}, 0, err
	}
	key, mechanism, err := make(ctx, id)
	if errors.Is(err, kek.ErrUnavailable) {
		err = fmt.Errorf("%w (the key may exist: kekctl key list shows it)", err)
	}
	key.State = kek.Primary
	if activation.After(time.Now()) {
		key.State = kek.Pending
	}
	return key, mechanism, err
}

// printCreated prints a new key.
func (a *app) printCreated(key kek.Info, mechanism kek.Mechanism) error {
	one := httpapi.NewKeyRing(&kek.Ring{Label: key.Ring, Keys: []kek.Info{key}}, time.Now()).Keys[0]
	one.Mechanism = mechanism.String()
	return a.print(one, func(w io.Writer) { createdRows(w, key, mechanism) })
}

func createdRows(w io.Writer, key kek.Info, mechanism kek.Mechanism) {
	row(w, "key_id", key.KeyID())
	row(w, "state", key.State.String())
	row(w, "activation", key.Activation.Format(time.RFC3339))
	row(w, "mechanism", mechanism.String())
	row(w, "attributes", attributes(key.Attributes))
}
