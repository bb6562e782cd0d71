package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"kekd/hsm"
	"kekd/internal/admin/newkey"
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
extractable. The command succeeds once it has tested the key by an encryption and a
decryption.

The first key of a ring is active at once. So is a key for a ring that has no primary,
since nothing encrypts there. A further one becomes the primary on every node five
minutes later, unless --activate-in says otherwise: every node must have seen it
before.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			given := cmd.Flags().Changed("activate-in")
			if err := checkDelay(delay); err != nil {
				return err
			}
			return a.keyCreate(cmd.Context(), yes, func(s *session) newkey.Plan { return s.delayed(delay, given) })
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

// delayed plans a key as --activate-in and the policy say.
func (s *session) delayed(delay time.Duration, given bool) newkey.Plan {
	return newkey.Delayed(delay, given, s.cfg.KeyRing.Policy.MinActivationDelay)
}

// keyCreate creates a key and prints it.
func (a *app) keyCreate(ctx context.Context, yes bool, plan func(*session) newkey.Plan) error {
	s, err := a.openAdmin()
	if err != nil {
		return err
	}
	defer s.close()
	made, err := a.maker(ctx, s, yes, plan(s), "Creates an AES-256 key", s.token.Create).Make(ctx)
	if err != nil {
		return err
	}
	return a.printCreated(made)
}

// createLead is how long before its activation, beside keyRing.refresh, a pending key
// must be on the token.
const createLead = 5 * time.Second

// maker makes a key once the administrator agrees; what says in a few words what
// create does.
func (a *app) maker(ctx context.Context, s *session, yes bool, plan newkey.Plan, what string,
	create func(context.Context, kek.ID) (kek.Info, kek.Mechanism, error),
) newkey.Maker {
	return newkey.Maker{
		Token: ringToken{s}, Plan: plan, What: what, Create: create,
		Confirm: func(text string) error {
			a.note("%s", text)
			return a.confirm(ctx, yes)
		},
		Timeout: hsmTimeout, Lead: s.cfg.KeyRing.Refresh + createLead, Clock: time.Now,
	}
}

// ringToken is the token as the workflows read and change it.
type ringToken struct{ s *session }

// Name implements newkey.Token.
func (t ringToken) Name(ctx context.Context) (string, error) {
	token, err := t.s.token.Info(ctx)
	return fmt.Sprintf("token %q (serial %s)", token.Label, token.Serial), err
}

// View implements newkey.Token. The error of a ring that was read is in the View.
func (t ringToken) View(ctx context.Context) (newkey.View, error) {
	ring, keys, err := t.s.ring(ctx)
	if keys == nil && err != nil && !isAny(err, kek.ErrNoKey, kek.ErrRevoked, kek.ErrRefused, kek.ErrAmbiguous) {
		return newkey.View{}, err
	}
	return newkey.View{
		Label: t.s.cfg.KeyRing.Label, Ring: ring, Err: err, Keys: keys,
		Published: []kek.ID{t.s.published.Last},
	}, nil
}

// Keys implements newkey.Token.
func (t ringToken) Keys(ctx context.Context) ([]kek.Info, error) { return t.s.token.Keys(ctx) }

// Try implements newkey.Token.
func (t ringToken) Try(ctx context.Context, id kek.ID) (kek.Mechanism, error) {
	return t.s.token.Try(ctx, id)
}

// Create implements rotate.Token and revoke.Token.
func (t ringToken) Create(ctx context.Context, id kek.ID) (kek.Info, kek.Mechanism, error) {
	return t.s.token.Create(ctx, id)
}

// Disable implements revoke.Token.
func (t ringToken) Disable(ctx context.Context, seen kek.Info) error {
	_, err := t.s.token.SetUse(ctx, seen, hsm.Disabled())
	return err
}

// printCreated prints a new key.
func (a *app) printCreated(made newkey.Made) error {
	one := httpapi.NewKeyRing(&kek.Ring{Label: made.Key.Ring, Keys: []kek.Info{made.Key}}, time.Now()).Keys[0]
	one.Mechanism = made.Mechanism.String()
	return a.print(one, func(w io.Writer) { createdRows(w, made.Key, made.Mechanism) })
}

func createdRows(w io.Writer, key kek.Info, mechanism kek.Mechanism) {
	row(w, "key_id", key.KeyID())
	row(w, "state", key.State.String())
	row(w, "activation", key.Activation.Format(time.RFC3339))
	row(w, "mechanism", mechanism.String())
	row(w, "attributes", attributes(key.Attributes))
}
