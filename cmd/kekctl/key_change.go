package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"kekd/hsm"
	"kekd/internal/admin/evidence"
	"kekd/internal/admin/keychange"
	"kekd/internal/kek"
)

// changeFlags are the flags of a change of a key's state.
type changeFlags struct {
	yes       bool
	force     string
	wait      time.Duration
	witnesses witnessFlags
}

// newKeyChange makes the command of a change that needs no evidence.
func newKeyChange(a *app, verb keychange.Verb, short, long string) *cobra.Command {
	flags := new(changeFlags)
	return keyChangeCommand(a, verb, short, long, flags, func() (int, error) { return 0, nil })
}

// newGuardedChange makes the command of a change that needs evidence. days is called
// when it runs, and says how long a key is to stay restorable.
func newGuardedChange(a *app, verb keychange.Verb, short, long string, days func() (int, error)) *cobra.Command {
	flags := new(changeFlags)
	c := keyChangeCommand(a, verb, short, long, flags, days)
	c.Flags().StringVar(&flags.force, "force", "", "overrule the witnesses that disagree: the key's CKA_ID `again`")
	c.Flags().DurationVar(&flags.wait, "wait", 0, "wait this long for witnesses that only lag behind, such as after a rotation")
	flags.witnesses.add(a, c.Flags())
	return c
}

func keyChangeCommand(a *app, verb keychange.Verb, short, long string, flags *changeFlags, days func() (int, error)) *cobra.Command {
	c := &cobra.Command{
		Use: string(verb) + " ID", Short: short, Long: long,
		Args: exactlyOne("the key's CKA_ID or key_id; kekctl key list shows both"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := days()
			if err != nil {
				return err
			}
			return a.changeKey(cmd.Context(), args[0], keychange.Change{Verb: verb, Days: n}, flags)
		},
	}
	addYes(c, &flags.yes)
	return c
}

// exactlyOne is cobra.ExactArgs(1) that says what is missing.
func exactlyOne(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("want one argument, %s; got %d", what, len(args))
		}
		return nil
	}
}

func (a *app) changeKey(ctx context.Context, name string, change keychange.Change, flags *changeFlags) error {
	s, err := a.openAdmin()
	if err != nil {
		return err
	}
	defer s.close()
	change.Force, change.Wait = flags.force != "", flags.wait
	change.Find = func(ring *kek.Ring) (kek.Info, error) {
		key, err := findKey(ring, name)
		if err == nil && change.Force && flags.force != key.ID.String() {
			err = codeError{exitUsage, fmt.Sprintf("--force: must repeat the key's CKA_ID %s, got %q", key.ID, flags.force)}
		}
		return key, err
	}
	result, err := keychange.Run(ctx, a.changeDeps(s, flags.yes, &flags.witnesses), change)
	if err != nil {
		return errors.Join(err, a.printRefusal(change.Verb, err))
	}
	a.note("%s", result.Done(s.cfg.KeyRing.Refresh))
	out := changed{
		KeyID: result.Key.KeyID(), ID: result.Key.ID.String(), Done: string(result.Verb), Before: result.Before.String(),
		DestroyAfter: result.Key.DestroyAfter, Evidence: result.Evidence, Overruled: result.Overruled,
	}
	return a.print(out, func(w io.Writer) {
		row(w, "key_id", out.KeyID)
		row(w, "done", out.Done)
	})
}

// refused is what a change that was not made prints as JSON.
type refused struct {
	KeyID    string             `json:"keyID"`
	Refused  string             `json:"refused"`
	Reason   string             `json:"reason"`
	Evidence *evidence.Evidence `json:"evidence"`
}

// printRefusal prints the evidence that a change was refused on, as JSON. Otherwise the
// error says enough.
func (a *app) printRefusal(verb keychange.Verb, err error) error {
	r, ok := errors.AsType[*keychange.Refused](err)
	if !ok || r.Evidence == nil || a.output != "json" {
		return nil
	}
	return a.printJSON(refused{r.Evidence.KeyID, string(verb), r.Text, r.Evidence})
}

// changeDeps is what a change works with.
func (a *app) changeDeps(s *session, yes bool, flags *witnessFlags) keychange.Deps {
	return keychange.Deps{
		Token: sessionToken{s}, Trail: s.token.trail, Asker: asker{a, yes},
		Witnesses:       func(ctx context.Context) evidence.Witnesses { return flags.find(ctx, s) },
		MinDestroyDelay: s.cfg.KeyRing.Policy.MinDestroyDelay, TokenTimeout: hsmTimeout, Clock: time.Now,
	}
}

// changed is what a change prints as JSON.
type changed struct {
	KeyID        string             `json:"keyID"`
	ID           string             `json:"id"`
	Done         string             `json:"done"`
	Before       string             `json:"stateBefore"`
	DestroyAfter time.Time          `json:"destroyAfter,omitzero"`
	Evidence     *evidence.Evidence `json:"evidence,omitempty"`
	// Overruled are the witnesses that --force overruled.
	Overruled []evidence.Finding `json:"overruled,omitempty"`
}

// asker is the administrator at the terminal.
type asker struct {
	app *app
	yes bool
}

// Confirm implements keychange.Asker.
func (k asker) Confirm(ctx context.Context) error { return k.app.confirm(ctx, k.yes) }

// Repeat implements keychange.Asker. With --yes the text is there again already, as
// the value of --force.
func (k asker) Repeat(ctx context.Context, text string) error { return k.app.repeat(ctx, k.yes, text) }

// Note implements keychange.Asker.
func (k asker) Note(text string) { k.app.note("%s", text) }

// sessionToken is the token for a workflow that puts its changes on record itself.
type sessionToken struct{ s *session }

// Ring implements keychange.Token.
func (t sessionToken) Ring(ctx context.Context) (*kek.Ring, error) {
	ring, _, err := t.s.ring(ctx)
	if ring == nil {
		// Nothing can be said about states, so nothing is changed.
		return nil, err
	}
	return ring, nil
}

// SetUse implements keychange.Token.
func (t sessionToken) SetUse(ctx context.Context, seen kek.Info, use hsm.Use) (kek.Info, error) {
	return t.s.token.Token.SetUse(ctx, seen, use)
}

// Destroy implements keychange.Token.
func (t sessionToken) Destroy(ctx context.Context, seen kek.Info) error {
	return t.s.token.Token.Destroy(ctx, seen)
}

// findKey is keychange.Find with exit codes.
func findKey(ring *kek.Ring, name string) (kek.Info, error) {
	key, err := keychange.Find(ring, name)
	if bad, ok := errors.AsType[*keychange.BadName](err); ok {
		return key, codeError{exitUsage, bad.Error()}
	}
	return key, err
}
