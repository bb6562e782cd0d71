package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"kekd/internal/kek"
)

// keyChange is a change of one key's state: what the commands key cancel, disable,
// enable, destroy, restore and purge have in common.
type keyChange struct {
	// verb is the command's name.
	verb string
	// allowed says why the key can't be changed so, empty if it can.
	allowed func(s *session, k kek.Info, now time.Time) (refusal string)
	// guarded: refused while etcd holds objects under the key.
	guarded bool
	// plan says in a sentence what will be done.
	plan func(k kek.Info) string
	// do does it, and returns the key as it is afterwards.
	do func(ctx context.Context, s *session, k kek.Info) (kek.Info, error)
	// done says what was done and what comes next.
	done func(s *session, k kek.Info) string
}

// changeFlags are the flags of a keyChange.
type changeFlags struct {
	yes   bool
	force string
	etcd  etcdFlags
}

// newKeyChange makes the command of a change. change is called when it runs.
func newKeyChange(a *app, use, short, long string, guarded bool, change func() (keyChange, error)) *cobra.Command {
	var flags changeFlags
	c := &cobra.Command{
		Use: use + " ID", Short: short, Long: long,
		Args: exactlyOne("the key's CKA_ID or key_id; kekctl key list shows both"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ch, err := change()
			if err != nil {
				return err
			}
			return a.changeKey(cmd.Context(), args[0], ch, flags)
		},
	}
	addYes(c, &flags.yes)
	if guarded {
		c.Flags().StringVar(&flags.force, "force", "", "do it although etcd holds objects under the key, or could not be asked: the key's CKA_ID `again`")
		flags.etcd.add(a, c.Flags())
	}
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

func (a *app) changeKey(ctx context.Context, name string, ch keyChange, flags changeFlags) error {
	s, err := a.openAdmin()
	if err != nil {
		return err
	}
	defer s.close()
	key, err := s.target(ctx, name)
	if err != nil {
		return err
	}
	if flags.force != "" && flags.force != key.ID.String() {
		return codeError{exitUsage, fmt.Sprintf("--force: must repeat the key's CKA_ID %s, got %q", key.ID, flags.force)}
	}
	if refusal := ch.allowed(s, key, time.Now()); refusal != "" {
		return codeError{exitFailed, refusal}
	}
	if ch.guarded {
		if err := a.guard(ctx, ch.verb, key, flags); err != nil {
			return err
		}
	}
	a.note("%s", ch.plan(key))
	if err := a.confirm(flags.yes); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	after, err := ch.do(ctx, s, key)
	if err != nil {
		return err
	}
	a.note("%s", ch.done(s, after))
	result := changed{KeyID: after.KeyID(), ID: after.ID.String(), Done: ch.verb, Before: key.State.String(), DestroyAfter: after.DestroyAfter}
	return a.print(result, func(w io.Writer) {
		row(w, "key_id", result.KeyID)
		row(w, "done", result.Done)
	})
}

// changed is what a change prints as JSON.
type changed struct {
	KeyID        string    `json:"keyID"`
	ID           string    `json:"id"`
	Done         string    `json:"done"`
	Before       string    `json:"stateBefore"`
	DestroyAfter time.Time `json:"destroyAfter,omitzero"`
}

// target finds the key that an argument names: by its CKA_ID in hexadecimal, or
// by its key_id. Its state is set.
func (s *session) target(ctx context.Context, name string) (kek.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	ring, _, err := s.ring(ctx)
	if ring == nil {
		// Nothing can be said about states, so nothing is changed.
		return kek.Info{}, err
	}
	label, id, err := kek.ParseKeyID(name)
	if err != nil || label != ring.Label {
		if id, err = kek.ParseID(name); err != nil {
			return kek.Info{}, codeError{exitUsage, fmt.Sprintf("%v; give the CKA_ID or the key_id that kekctl key list shows", err)}
		}
	}
	k, ok := ring.Lookup(id)
	if !ok {
		return kek.Info{}, codeError{exitFailed, fmt.Sprintf("the ring %q has no key %s; kekctl key list shows its keys", ring.Label, id)}
	}
	return k, nil
}
