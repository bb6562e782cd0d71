package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kekd/internal/httpapi"
	"kekd/internal/kek"
)

func newKeyList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the key ring, oldest key first",
		Long: `List the keys of the ring on the token, oldest first, with the state that kekd
on this node gives them.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.keyList(cmd.Context()) },
	}
}

func (a *app) keyList(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.close()
	ring, keys, problem := s.ring(ctx)
	if ring == nil {
		if keys == nil {
			return problem
		}
		// The states are unclear; the keys themselves are what helps.
		ring = &kek.Ring{Label: s.cfg.KeyRing.Label, Keys: keys}
	}
	now := time.Now()
	shown := httpapi.NewKeyRing(ring, now)
	err = a.print(shown, func(w io.Writer) {
		row(w, "CKA_ID", "STATE", "ACTIVATION", "AGE", "CHECK VALUE", "ATTRIBUTES")
		for _, k := range ring.Keys {
			activation, age := "-", "-"
			if !k.Activation.IsZero() {
				activation = k.Activation.Format(time.RFC3339)
				age = shortAge(now.Sub(k.Activation))
			}
			name := "unclear"
			if k.State != 0 {
				name = k.State.String()
			}
			row(w, k.ID.String(), name, activation, age, k.CheckValue.String(), attributes(k.Attributes))
		}
	})
	if err != nil {
		return err
	}
	return problem
}

// shortAge spells a duration in its largest unit: 34d, 5h, -12m.
func shortAge(d time.Duration) string {
	sign := ""
	if d < 0 {
		sign, d = "-", -d
	}
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%s%dd", sign, d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%s%dh", sign, d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%s%dm", sign, d/time.Minute)
	}
	return fmt.Sprintf("%s%ds", sign, d/time.Second)
}

// attributes names what an operator should know of a key, the unsafe in capitals.
func attributes(at kek.Attributes) string {
	var words []string
	for _, f := range []struct {
		value   *bool
		yes, no string
	}{
		{at.Encrypt, "encrypt", ""},
		{at.Decrypt, "decrypt", ""},
		{at.Sensitive, "sensitive", "NOT-SENSITIVE"},
		{at.Extractable, "EXTRACTABLE", "non-extractable"},
		{at.NeverExtractable, "never-extractable", ""},
		{at.Local, "local", ""},
	} {
		switch {
		case f.value == nil:
		case *f.value && f.yes != "":
			words = append(words, f.yes)
		case !*f.value && f.no != "":
			words = append(words, f.no)
		}
	}
	return strings.Join(words, ",")
}
